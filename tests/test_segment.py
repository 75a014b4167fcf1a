"Your own video: reading and writing, supports, streaming, what is saved, and a dozen kinds of bad input."
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fsrvos.apps.segment import SegmentError, Segmenter, load_model, painted, read_support, windows
from fsrvos.data.corpus import write_masks
from fsrvos.data.video import Video, VideoError, read_image, read_mask, turned, write_video
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel, select
from fsrvos.models.sequence_matching import SequenceMatchingModel


def moving(frames=7, size=(48, 72)):
    "A bright square that moves to the right over a grey ground, and its masks."
    clip, masks = np.full((frames, *size, 3), 90, np.uint8), np.zeros((frames, *size), bool)
    for t in range(frames):
        masks[t, 10:30, 5 + 4 * t:25 + 4 * t] = True
    clip[masks] = (230, 180, 60)
    return clip, masks


# ---- videos

def test_images_are_a_video(tmp_path):
    clip, _ = moving()
    for t, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / f"{t:03d}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    for source in (tmp_path, tmp_path / "*.png", f"{tmp_path}/00?.png"):
        assert all(np.array_equal(a, b) for a, b in zip(Video(source), clip, strict=True))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_files_are_a_video(tmp_path, suffix):
    import av
    clip, _ = moving()
    path = tmp_path / f"clip{suffix}"
    if suffix == ".mp4":
        write_video(path, iter(clip), 12)
    elif suffix == ".gif":
        Image.fromarray(clip[0]).save(path, save_all=True, append_images=[Image.fromarray(f) for f in clip[1:]], duration=80)
    else:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libvpx-vp9", rate=12)
            stream.height, stream.width, stream.pix_fmt = 48, 72, "yuv420p"
            for packet in (p for f in [*clip, None] for p in stream.encode(None if f is None else av.VideoFrame.from_ndarray(f, format="rgb24"))):
                container.mux(packet)
    read = list(Video(path))
    assert len(read) == 7 and all(np.abs(a.astype(int) - b).mean() < 15 for a, b in zip(read, clip)) and 11 < Video(path).fps < 14


def test_a_frame_is_turned_as_its_note_says():
    frame = np.arange(6).reshape(2, 3, 1).repeat(3, 2)
    assert turned(frame, -90).shape == (3, 2, 3) and turned(frame, -90)[0, 1, 0] == 0, "a quarter clockwise: what was on the left is above"
    assert np.array_equal(turned(turned(frame, 90), -90), frame) and np.array_equal(turned(frame, 180)[0, 0], frame[1, 2])


def test_transparent_images_lie_on_black(tmp_path):
    Image.fromarray(np.full((4, 4, 4), (200, 100, 50, 0), np.uint8)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").max() == 0


def test_odd_sizes_are_written(tmp_path):
    assert next(iter(Video(write_video(tmp_path / "odd.mp4", iter(np.zeros((2, 35, 51, 3), np.uint8)))))).shape == (36, 52, 3)


def bad_video(folder, what):
    path = folder / "clip.mp4"
    if what == "text": path.write_text("this is no video")
    if what == "empty": path.write_bytes(b"")
    if what == "folder without images": path = folder / "some"; path.mkdir()
    if what == "broken image": path = folder / "some"; path.mkdir(); (path / "0.png").write_bytes(b"no image")
    if what == "two sizes":
        path = folder / "some"; path.mkdir()
        for i in (8, 9): Image.new("RGB", (i, i)).save(path / f"{i}.png")
    return path


@pytest.mark.parametrize("what, told", [("none", "no such video, folder or pattern"), ("text", "no readable video"), ("empty", "no readable video"), ("folder without images", "no images in it"),
                                        ("broken image", "no readable image"), ("two sizes", "make them of one size")])
def test_bad_videos(tmp_path, what, told):
    with pytest.raises(VideoError, match=told):
        list(Video(bad_video(tmp_path, what)))


def test_nothing_is_left_of_a_video_that_cannot_be_written(tmp_path):
    with pytest.raises(VideoError, match="no frames"):
        write_video(tmp_path / "none.mp4", iter(()))
    assert not list(tmp_path.iterdir())


# ---- supports

def write_support(folder, frames=2, masks=None, text="the square", suffix=".jpg", mask="{}.png"):
    folder.mkdir(parents=True)
    clip, truth = moving(frames)
    for t in range(frames):
        Image.fromarray(clip[t]).save(folder / f"{t}{suffix}")
        drawn = truth[t].astype(np.uint8) if masks is None else masks
        write_masks(folder / mask.format(t), drawn)
    if text is not None:
        (folder / "expression.txt").write_text(text)
    return folder


@pytest.mark.parametrize("options", [{}, dict(suffix=".png", mask="{}_mask.png"), dict(mask="{}_mask.png")])
def test_a_support_folder(tmp_path, options):
    frames, masks, text = read_support(write_support(tmp_path / "s", **options))
    assert frames.shape == (2, 48, 72, 3) and np.array_equal(masks, moving(2)[1]) and text == "the square"


def test_masks_that_are_no_palette_images(tmp_path):
    Image.fromarray((moving(1)[1][0] * 255).astype(np.uint8)).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), moving(1)[1][0])


def test_the_only_object_counts_whatever_its_number(tmp_path):
    ids = moving(1)[1][0].astype(np.uint8) * 7
    assert np.array_equal(read_support(write_support(tmp_path / "s", 1, ids))[1][0], ids > 0)


def broken_support(folder, what):
    if what == "missing": return folder
    if what == "no frames": folder.mkdir(); (folder / "expression.txt").write_text("the square"); return folder
    two = np.zeros((48, 72), np.uint8); two[:4], two[8:12] = 3, 5
    write_support(folder, text={"no sentence": None, "empty sentence": "  "}.get(what, "the square"),
                  masks={"empty mask": np.zeros((48, 72), np.uint8), "other size": np.ones((24, 36), np.uint8), "two objects": two}.get(what))
    if what == "no mask": (folder / "1.png").unlink()
    if what == "no frame": (folder / "1.jpg").unlink()
    if what == "broken frame": (folder / "1.jpg").write_bytes(b"x")
    return folder


BROKEN = [("missing", "no such folder"), ("no frames", "no frames; put jpg"), ("no sentence", "expression.txt: missing"), ("empty sentence", "expression.txt: empty"), ("empty mask", "the mask is empty"),
          ("other size", "36x24 pixels, its frame 0.jpg has 72x48"), ("two objects", r"objects \[3, 5\], none of them number 1"), ("no mask", "1.jpg: no mask"), ("no frame", "1.png: no frame of that name"),
          ("broken frame", "no readable image")]


@pytest.mark.parametrize("what, told", BROKEN)
def test_bad_supports(tmp_path, what, told):
    with pytest.raises((SegmentError, VideoError), match=told):
        read_support(broken_support(tmp_path / "s", what))


def write_coco(folder, kind="polygon", change=lambda content: None):
    from pycocotools import mask as rle
    folder.mkdir()
    clip, truth = moving(2)
    code = rle.encode(np.asfortranarray(truth[1].astype(np.uint8)))
    drawn = {"polygon": [[5, 10, 25, 10, 25, 30, 5, 30]], "code": {"size": [48, 72], "counts": code["counts"].decode()}, "runs": {"size": [48, 72], "counts": [0, 48 * 72]}}
    for t in range(2):
        Image.fromarray(clip[t]).save(folder / f"{t}.jpg")
    content = {"images": [{"id": 7 + t, "file_name": f"{t}.jpg", "height": 48, "width": 72} for t in range(2)],
               "annotations": [{"id": 1, "image_id": 7, "segmentation": drawn["polygon"]}, {"id": 2, "image_id": 8, "segmentation": drawn[kind]}]}
    change(content)
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "expression.txt").write_text("the square")
    return folder


@pytest.mark.parametrize("kind, pixels", [("polygon", 400), ("code", 400), ("runs", 48 * 72)])
def test_a_support_in_cocos_format(tmp_path, kind, pixels):
    frames, masks, _ = read_support(write_coco(tmp_path / "s", kind))
    assert frames.shape == (2, 48, 72, 3) and masks[1].sum() == pixels and np.array_equal(masks[0], moving(1)[1][0])


@pytest.mark.parametrize("change, told", [
    (lambda c: c.pop("images"), "not in COCO's format"), (lambda c: c["annotations"].pop(), "0 annotations of 1.jpg"), (lambda c: c["annotations"].append(c["annotations"][0]), "2 annotations of 0.jpg"),
    (lambda c: c["images"][0].update(file_name="9.jpg"), "9.jpg: no such frame"), (lambda c: c["annotations"][0].update(segmentation=[[1, 2]]), "cannot be read|is empty"),
    (lambda c: c["images"][0].update(height=24), "72x24 pixels, its frame 0.jpg has 72x48")])
def test_bad_supports_in_cocos_format(tmp_path, change, told):
    with pytest.raises(SegmentError, match=told):
        read_support(write_coco(tmp_path / "s", change=change))


# ---- segmenting

@pytest.fixture(scope="module")
def single():
    torch.manual_seed(0)
    return FSRVOSModel(FSRVOSConfig.from_preset("tiny", referring_head="look", similarity_prior=True)).eval()


@pytest.fixture(scope="module")
def multi(single):
    return SequenceMatchingModel.from_single(single, queries=6, threshold=0.0).eval()


def ready(model, **options):
    clip, masks = moving(3)
    return Segmenter(model, short=48, longest=72, **options).support(clip, masks, "the bright square")


def test_one_chunk_is_the_protocols_answer(single):
    "Eq. 7 on the same frames, but for the eight bits in which logits are kept."
    clip, masks = moving()
    segmenter = ready(single)
    found = segmenter.segment(clip, "the square", progress=False)
    words, mask = segmenter._words("the square", "sentence")
    with torch.no_grad():
        wanted, score, _ = select(single.decode(segmenter._encode(clip), words, mask, **segmenter._support), (48, 72))
    assert found.masks.shape == (1, 7, 48, 72) and found.scores == pytest.approx(score.tolist())
    assert (found.masks[0] == wanted[0].numpy()).mean() > .99


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_chunks_are_linked_and_saved(kind, request, tmp_path):
    clip, _ = moving(9)
    found = ready(request.getfixturevalue(kind), chunk=4, overlap=1).segment(clip, "the square", progress=False)
    assert found.frames == 9 and found.size == (48, 72) and len(found) >= 1 and (kind == "multi" or len(found) == 1)
    assert found.scores[1:] == sorted(found.scores[1:], reverse=True), "the sequence of eq. 7 comes first"
    found.save(tmp_path / "out")
    result, coded = (json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in ("result", "masks"))
    assert result["frames"] == 9 and result["objects"] == len(found) and len(coded["objects"]) == len(found)
    assert len(list(Video(tmp_path / "out/overlay.mp4"))) == 9 and len(list((tmp_path / "out/masks").iterdir())) == 9
    from pycocotools import mask as rle
    first = rle.decode(coded["objects"][0]["segmentations"][3]).astype(bool)
    assert np.array_equal(first, found.frame_masks(3)[0]) and np.array_equal(read_mask(tmp_path / "out/masks/00003.png") == 1, first)
    assert Image.open(tmp_path / "out/sheet.png").size[0] == 4 * 320


def test_nothing_found_is_saved_too(multi, tmp_path):
    strict = SequenceMatchingModel.from_single(FSRVOSModel(FSRVOSConfig.from_preset("tiny", referring_head="look")), queries=6, presence_threshold=1.0)
    found = ready(strict).segment(moving()[0], "nothing of the kind", progress=False)
    assert len(found) == 0 and found.masks.shape == (0, 7, 48, 72)
    found.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/masks.json").read_text())["objects"] == [] and read_mask(tmp_path / "out/masks/00000.png").max() == 0


def test_one_object_of_a_multi_object_model(multi):
    assert len(ready(multi, single=True).segment(moving()[0], "the square", progress=False)) == 1


def test_the_support_is_encoded_once(single, monkeypatch):
    segmenter = ready(single)
    calls = []
    original = segmenter.inference.encode_frames
    monkeypatch.setattr(segmenter.inference, "encode_frames", lambda x: calls.append(x.shape[1]) or original(x))
    for sentence in ("the square", "the other one"):
        segmenter.segment(moving()[0], sentence, progress=False)
    assert calls == [7, 7]


def test_no_more_than_a_chunk_is_held():
    alive = []

    def frames():
        for t in range(50):
            alive.append(t)
            yield np.full((4, 4, 3), t, np.uint8)
    for start, chunk in windows(frames(), 6, 2):
        assert len(alive) - start <= 6 and chunk.shape[0] <= 6
    assert len(alive) == 50


@pytest.mark.parametrize("call, told", [
    (lambda s: s.support(np.zeros((0, 8, 8, 3)), np.zeros((0, 8, 8)), "x"), "K at least 1"), (lambda s: s.support(moving(2)[0], moving(3)[1], "x"), "wanted"),
    (lambda s: s.support(moving(2)[0], moving(2)[1] & False, "x"), "every mask is empty"), (lambda s: s.support(*moving(2), " "), "support: the expression is empty"),
    (lambda s: s.segment(moving()[0], "the square"), "no support yet"), (lambda s: ready(s.model).segment(moving()[0], ""), "sentence: the expression is empty"),
    (lambda s: Segmenter(s.model, chunk=2, overlap=2), "never end"), (lambda s: Segmenter(s.model, device="cuda"), "no GPU found here")])
def test_bad_calls(single, call, told):
    if "GPU" in told and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SegmentError, match=told):
        call(Segmenter(single))


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(SegmentError, match="no model; give 'fsrvos-demo', or a folder"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SegmentError, match="a model of type 'bert'"):
        load_model(tmp_path)


def test_masks_are_painted_with_a_line_around():
    clip, masks = moving(1)
    drawn = painted(clip[0], masks[:1])
    assert (drawn[10, 5] == 255).all() and np.array_equal(drawn[0, 0], clip[0, 0, 0]) and not np.array_equal(drawn[20, 15], clip[0, 20, 15])


# ---- the command

def test_the_command(single, tmp_path, capsys):
    from fsrvos.apps.cli import main
    single.save_pretrained(tmp_path / "model")
    write_video(tmp_path / "clip.mp4", iter(moving()[0]))
    common = ["segment", "--video", str(tmp_path / "clip.mp4"), "--support", str(write_support(tmp_path / "s")), "--model", str(tmp_path / "model"), "--short", "48", "--longest", "72"]
    with pytest.raises(SystemExit) as end:
        main([*common, "--expression", "the square", "--expression", "the other one", "--out", str(tmp_path / "out")])
    assert end.value.code == 0 and "'the other one': 1 object(s)" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"00", "01"} and (tmp_path / "out/01/result.json").exists()


@pytest.mark.parametrize("change, told", [({"--video": "none.mp4"}, "no such video"), ({"--support": "none"}, "no such folder"), ({"--model": "none"}, "none: no model"), ({"--expression": " "}, "it is empty"),
                                          ({"--device": "tpu"}, "one of auto, cpu, cuda")])
def test_the_command_tells_what_is_wrong(tmp_path, monkeypatch, capsys, change, told):
    from fsrvos.apps.cli import main
    monkeypatch.chdir(tmp_path)
    write_video("clip.mp4", iter(moving()[0]))
    write_support(tmp_path / "s")
    options = {"--video": "clip.mp4", "--support": "s", "--model": "m", "--expression": "the square"} | change
    with pytest.raises(SystemExit) as end:
        main(["segment", *(x for pair in options.items() for x in pair)])
    err = capsys.readouterr().err
    assert end.value.code == 2 and told in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
