"Still images as pseudo-clips: what is written, what stays true of it, and that it is a corpus to train on."
from functools import partial
from dataclasses import replace

import numpy as np
import pytest

from fsrvos.data.adapters import convert
from fsrvos.data.corpus import Corpus, CorpusError, Expression, ObjectTrack, Video, write_frame, write_masks, write_metas
from fsrvos.data.episodes import EpisodeDataset, PixelSource
from fsrvos.data.still_images import REMAINS, choose_still, still_images
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.training.loop import TrainSettings, train
from tests.test_adapters import make_refcoco

COLOURS = np.array([(120, 120, 120), (210, 40, 40), (40, 70, 210)], np.uint8)
SENTENCES = (Expression("a", "the red one", (1,), "attribute", False), Expression("ß", "the cup “on the left”", (1,), None, None), Expression("b", "both of them", (1, 2), "several", False),
             Expression("c", "the cup moving left", (2,)), Expression("d", "it", (2,), "motion", False))


def write_images(root, videos, sentences=SENTENCES) -> Corpus:
    "A corpus of `videos`: id -> (class, ids uint8 [T, H, W]); frames are drawn from the ids."
    written = []
    for name, (category, ids) in videos.items():
        frames = tuple(f"{5 * t:05d}" for t in range(len(ids)))
        for frame, mask in zip(frames, ids):
            write_masks(root / "train/Annotations" / name / f"{frame}.png", mask)
            write_frame(root / "train/JPEGImages" / name / f"{frame}.jpg", COLOURS[mask])
        tracks = {int(n): ObjectTrack(int(n), category, tuple(f for f, mask in zip(frames, ids) if (mask == n).any())) for n in np.unique(ids) if n}
        written.append(Video(name, frames, tracks, tuple(e for e in sentences if set(e.object_ids) <= set(tracks)), root, ".jpg"))
    write_metas(root, written)
    return Corpus.load(root)


def two_squares(size=(45, 71), frames=1):
    "Object 1 on the left, object 2 on the right; in further frames both shrink."
    ids = np.zeros((frames, *size), np.uint8)
    for t, frame in enumerate(ids):
        frame[12:30 - t, 14:30 - t], frame[15:33 - t, 42:58 - t] = 1, 2
    return ids


@pytest.fixture
def images(tmp_path):
    "Images of two classes, of wide, tall and odd sizes, one id in another script."
    return write_images(tmp_path / "images", {"cup0": ("cup", two_squares()), "cup1": ("cup", two_squares((64, 96))), "椅子 1": ("chair", two_squares((97, 79))), "chair2": ("chair", two_squares((47, 72)))})


def pixels(corpus, name):
    frames = list(corpus.videos[name].frames)
    return corpus.read_frames(name, frames), corpus.read_object_ids(name, frames)


def test_what_is_written(images, tmp_path):
    clips = still_images(images, tmp_path / "clips", frames=5, progress=False)
    assert clips.check(images=True) == [] and clips.videos.keys() == images.videos.keys()
    for name, video in clips.videos.items():
        still = images.videos[name]
        assert video.frames == tuple(f"{t:05d}" for t in range(5)) and (video.height, video.width) == (still.height, still.width)
        assert {n: (t.category, t.frames) for n, t in video.objects.items()} == {n: (t.category, video.frames) for n, t in still.objects.items()}
        assert video.expressions == tuple(e for e in still.expressions if e.id not in "cd"), "those about motion are gone, the others are what they were"


def test_frames_and_masks_move_alike_and_smoothly(images, tmp_path):
    clips = still_images(images, tmp_path / "clips", frames=8, progress=False)
    for name in clips.videos:
        frames, ids = pixels(clips, name)
        for number, colour in ((1, COLOURS[1]), (2, COLOURS[2])):
            mask, inside = ids == number, np.abs(frames.astype(int) - colour).max(-1) < 80
            assert (mask & inside).sum() > .9 * (mask | inside).sum()
            centres = np.array([np.argwhere(frame).mean(0) for frame in mask])
            steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
            assert steps.sum() > 1 and steps.max() < .15 * max(ids.shape[1:])
    still = images.read_object_ids("cup1", ["00000"])[0]
    frames, ids = pixels(clips, "cup1")
    assert all((frame != still).any() for frame in ids) and frames.min(-1).min() > 20, "nothing black comes in at the border"


def test_every_object_stays(tmp_path):
    "Objects at all four borders and of one pixel: some paths have to be drawn again, the worst end in no motion."
    ids = np.zeros((1, 40, 60), np.uint8)
    ids[0, :3, 20:40], ids[0, 37:, 10:50] = 1, 2
    dot = np.zeros_like(ids)
    dot[0, 39, 59] = 1
    whole = {f"{n}": ("cup", ids) for n in range(12)}
    images = write_images(tmp_path / "images", whole | {"dot": ("cup", dot)})
    clips, standing = still_images(images, tmp_path / "clips", progress=False), 0
    for name, video in clips.videos.items():
        moved, still = pixels(clips, name)[1], images.read_object_ids(name, ["00000"])[0]
        standing += (moved == still).all()
        for number in video.objects: assert ((moved == number).sum((1, 2)) >= .6 * REMAINS * (still == number).sum()).all()     # areas may shrink by the scale, too
    assert 1 <= standing < 13


def test_a_sentence_about_place_stays_true(tmp_path):
    "One square is a little left of the other, and far below it: a small rotation would turn left into right."
    ids = np.zeros((1, 80, 40), np.uint8)
    ids[0, 8:18, 15:25], ids[0, 62:72, 17:27] = 1, 2
    said = (Expression("0", "the left cup", (1,)), Expression("1", "the red one", (1,)))
    images = write_images(tmp_path / "images", {f"{n}": ("cup", ids) for n in range(16)}, said)
    centre = lambda mask: np.nonzero(mask)[1].mean() / 40
    gaps = {}
    for place, kept in ((True, said), (False, said[1:])):
        corpus = Corpus(images.root, "train", {name: replace(video, expressions=kept) for name, video in images.videos.items()}, images.annotations)
        clips = still_images(corpus, tmp_path / f"clips {place}", progress=False)
        gaps[place] = [centre(frame == 2) - centre(frame == 1) for name in clips.videos for frame in pixels(clips, name)[1]]
    assert min(gaps[True]) > -.05 > min(gaps[False]), "no frame shows it plainly on the right; without the sentence some do"


def test_of_a_longer_video_the_frame_that_shows_most(tmp_path):
    shrinking = two_squares(frames=4)
    shrinking[0][shrinking[0] == 2] = 0                  # the first frame has the largest squares, but one of them only
    apart = two_squares(frames=2)
    apart[0][apart[0] == 2], apart[1][apart[1] == 1] = 0, 0
    images = write_images(tmp_path / "images", {"shrinking": ("cup", shrinking), "apart": ("cup", apart)})
    assert choose_still(images, images.videos["shrinking"]) == "00005" and choose_still(images, images.videos["apart"]) is None
    clips = still_images(images, tmp_path / "clips", progress=False)
    assert list(clips.videos) == ["shrinking"], "no frame of the other shows both"


def test_the_same_seed_gives_the_same_clips_in_any_order(images, tmp_path):
    one = still_images(images, tmp_path / "one", progress=False)
    backwards = Corpus(images.root, "train", dict(reversed(images.videos.items())), images.annotations)
    some = Corpus(images.root, "train", {name: backwards.videos[name] for name in list(backwards.videos)[:2]}, images.annotations)
    files = lambda corpus: {p.relative_to(corpus.root): p.read_bytes() for p in sorted(corpus.root.rglob("*.*")) if p.suffix in (".jpg", ".png")}
    assert files(still_images(backwards, tmp_path / "two", progress=False)) == files(one)
    assert files(still_images(some, tmp_path / "three", progress=False)).items() <= files(one).items()
    other = still_images(images, tmp_path / "four", seed=1, progress=False)
    assert all((pixels(other, name)[1] != pixels(one, name)[1]).any() for name in one.videos), "another seed, other clips"
    paths = {name: np.argwhere(pixels(one, name)[1][0] == 1).mean(0) - np.argwhere(images.read_object_ids(name, ["00000"])[0] == 1).mean(0) for name in ("cup0", "chair2")}
    assert not np.allclose(*paths.values(), atol=.5), "another video, another path"


def test_classes(images, tmp_path):
    assert set(still_images(images, tmp_path / "clips", classes=["chair"], progress=False).videos) == {"椅子 1", "chair2"}
    with pytest.raises(CorpusError, match="no object is of the class 'unicorn'"):
        still_images(images, tmp_path / "other", classes=["chair", "unicorn"], progress=False)


# ---- what cannot be

def test_nothing_is_overwritten(images, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/mine.txt").write_text("mine")
    with pytest.raises(CorpusError, match="clips: exists already -> remove it"):
        still_images(images, tmp_path / "clips", progress=False)
    assert [p.name for p in (tmp_path / "clips").iterdir()] == ["mine.txt"]


def test_no_usable_still(tmp_path):
    images = write_images(tmp_path / "images", {"cup": ("cup", two_squares())}, SENTENCES[3:])
    with pytest.raises(CorpusError, match="images: has no usable still"):
        still_images(images, tmp_path / "clips", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("damage, told", [(lambda p: p.write_bytes(p.read_bytes()[:200]), "00000.jpg: cannot be decoded"), (lambda p: write_frame(p, np.zeros((20, 30, 3), np.uint8)), "00000.png: size: is 72x47 px")])
def test_a_broken_image_is_named_and_leaves_nothing(images, tmp_path, damage, told):
    damage(images.videos["chair2"].frame_path("00000"))
    with pytest.raises(CorpusError, match=told):
        still_images(images, tmp_path / "clips", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


# ---- command line

@pytest.fixture
def stills(run_cli):
    return partial(run_cli, "stills")


def test_command(stills, images, tmp_path):
    out = tmp_path / "clips"
    assert stills(images.root, out, "--frames", 3, "--seed", 4)[:2] == (0, f"{out}: 4 clips of 4 videos, 12 expressions\n")
    direct = still_images(images, tmp_path / "direct", frames=3, seed=4, progress=False)
    assert all((a == b).all() for name in direct.videos for a, b in zip(pixels(direct, name), pixels(Corpus.load(out), name)))
    for argv, told in (((images.root, out), "exists; remove it"), ((tmp_path / "nowhere", tmp_path / "new"), "nowhere"), ((images.root, tmp_path / "new", "--frames", 1), "--frames")):
        status, _, err = stills(*argv)
        assert status == 2 and told in err and "Traceback" not in err and not (tmp_path / "new").exists()


# ---- and then

def test_an_episode_and_a_training_step(images, tmp_path):
    clips = still_images(images, tmp_path / "clips", progress=False)
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny"))
    same = Corpus(clips.root, "train", {name: video for name, video in clips.videos.items() if video.category == "cup"}, clips.annotations)
    dataset = EpisodeDataset(same, ["cup"], source=PixelSource(same, model.encoders()[1].tokenizer), frames=3, shots=2, episodes_per_class=2)
    sample = dataset[0]
    assert sample.masks.shape[1] == 3 and not np.array_equal(sample.query_levels[0][0], sample.query_levels[0][2]), "the clip moves"
    done = train(model, dataset, TrainSettings(episodes_per_class=2, batch_size=1), tmp_path / "out")
    assert done.steps == 2 and (done.final / "model.safetensors").exists()


def test_refcoco_becomes_clips_and_episodes(tmp_path):
    corpus = convert("refcoco", make_refcoco(tmp_path / "raw"), tmp_path / "corpus", progress=False)
    clips = still_images(corpus, tmp_path / "clips", progress=False)
    assert clips.check(images=True) == [] and clips.videos.keys() == corpus.videos.keys()
    assert {name: [e.text for e in video.expressions] for name, video in clips.videos.items()} == {name: [e.text for e in video.expressions] for name, video in corpus.videos.items()}
    people = {name: replace(video, objects={n: replace(t, category="person") for n, t in video.objects.items()}) for name, video in clips.videos.items()}     # only one image shows people alone
    people = Corpus(clips.root, "train", people, clips.annotations)
    episodes = EpisodeDataset(people, ["person"], source=PixelSource(people, lambda text: {"input_ids": [1] * len(text.split())}), frames=4, shots=2, episodes_per_class=2)
    assert len(episodes[0].query_levels[0]) == 4 and episodes.episode(0).query.video != episodes.episode(0).support.video
