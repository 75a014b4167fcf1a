"Layout round trip, both layouts, indirection, atomic writing."
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from fsrvos.data.corpus import (Corpus, CorpusError, Expression, ObjectTrack, Video, mask_palette, write_bytes_atomic, write_frame,
                                write_json_atomic, write_masks, write_metas)


def test_round_trip(tiny_corpus, tmp_path):
    corpus = tiny_corpus()
    write_metas(corpus.root, list(corpus.videos.values()))
    again = Corpus.load(corpus.root)
    assert again.videos == corpus.videos
    assert len(again.videos) == 20 and set(again.videos_by_class) == {"cat", "dog", "bus", "fish", "hat"}
    assert corpus.check(images=True) == []


def test_masks_and_frames(tiny_corpus):
    corpus = tiny_corpus(classes=["cat"])
    video = corpus.videos["cat_0"]
    frames = corpus.read_frames("cat_0", video.frames)
    masks = corpus.read_masks("cat_0", video.frames, [2, 1])
    assert frames.shape == (6, 32, 48, 3) and frames.dtype == np.uint8
    assert masks.shape == (2, 6, 32, 48) and masks.dtype == bool
    assert not masks[0, -1].any() and masks[1].sum(axis=(1, 2)).tolist() == [100] * 6
    assert corpus.read_masks("cat_0", video.frames[:1], [1]).sum() == 100
    assert (video.height, video.width) == (32, 48)


def test_object_ids_as_written(tiny_corpus):
    corpus = tiny_corpus(classes=["cat"], videos_per_class=1)
    content = json.loads((corpus.root / "meta_expressions/train/meta_expressions.json").read_text())
    ids = [e["obj_id"] for e in content["videos"]["cat_0"]["expressions"].values()]
    assert ids == ["1", "1", "1", "2", "2", "2", ["1", "2"]]
    assert [e.object_ids for e in corpus.videos["cat_0"].expressions][-2:] == [(2,), (1, 2)]


def test_obj_id_may_be_a_number(tiny_corpus):
    corpus = tiny_corpus(classes=["cat"], videos_per_class=1)
    path = corpus.root / "meta_expressions/train/meta_expressions.json"
    content = json.loads(path.read_text())
    content["videos"]["cat_0"]["expressions"]["0"] = {"exp": "a  cat ", "obj_id": 2}
    path.write_text(json.dumps(content))
    expression = Corpus.load(corpus.root).videos["cat_0"].expressions[0]
    assert expression == Expression("0", "a cat", (2,), None, None)


def test_sail_layout_and_train_json(tiny_corpus, tmp_path):
    corpus = tiny_corpus(classes=["dog"])
    root = tmp_path / "Mini-Ref-SAIL-VOS"
    shutil.copytree(corpus.root, root)
    for path in (root / "train/JPEGImages").glob("*/*.jpg"):
        target = root / "train/Images" / path.parent.name / f"{path.stem}.bmp"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    shutil.rmtree(root / "train/JPEGImages")
    (root / "train/meta.json").rename(root / "train/train.json")
    sail = Corpus.load(root)
    assert sail.videos["dog_0"].suffix == ".bmp"
    names = sail.videos["dog_0"].frames
    assert np.array_equal(sail.read_frames("dog_0", names), corpus.read_frames("dog_0", names))


def test_frames_elsewhere(tiny_corpus, tmp_path):
    corpus = tiny_corpus()
    root = tmp_path / "curated"
    write_metas(root, [corpus.videos["cat_1"]])
    write_json_atomic(root / "corpus.json", {"frames": "../corpus"})
    curated = Corpus.load(root)
    assert list(curated.videos) == ["cat_1"]
    assert curated.read_masks("cat_1", ["00000"], [1]).any()
    assert curated.check(images=True) == []


def test_category_of_mixed_video(tmp_path):
    tracks = {1: ObjectTrack(1, "cat", ("0",)), 2: ObjectTrack(2, "dog", ("0",))}
    video = Video("v", ("0",), tracks, (), tmp_path, ".jpg")
    assert video.categories == ("cat", "dog")
    with pytest.raises(ValueError, match="v: objects of several categories"):
        video.category


def test_masks_same_bytes_every_time(tmp_path):
    ids = np.random.default_rng(0).integers(0, 4, (20, 30)).astype(np.uint8)
    write_masks(tmp_path / "a.png", ids)
    write_masks(tmp_path / "b.png", ids)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), ids)
    assert list(mask_palette()[:12]) == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


@pytest.mark.parametrize("ids", [np.zeros((3, 4), np.int64), np.zeros((3, 4, 1), np.uint8)])
def test_masks_refuse_other_arrays(tmp_path, ids):
    with pytest.raises(ValueError, match="uint8"):
        write_masks(tmp_path / "a.png", ids)
    assert list(tmp_path.iterdir()) == []


def test_frame_formats(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    write_frame(tmp_path / "a.bmp", frame)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.bmp")), frame)
    with pytest.raises(ValueError, match=".gif"):
        write_frame(tmp_path / "a.gif", frame)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep/meta.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"a": object()})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_bytes_atomic(path, b"half")
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in path.parent.iterdir()] == ["meta.json"]


def test_unknown_video(tiny_corpus):
    with pytest.raises(KeyError, match="no video 'whale_9'"):
        tiny_corpus(classes=["cat"]).read_frames("whale_9", ["00000"])


def test_indexing_is_fast(tiny_corpus):
    corpus = tiny_corpus(classes=["cat"], videos_per_class=300, frames=2, size=(32, 32))
    start = time.process_time()
    Corpus.load(corpus.root)
    assert time.process_time() - start < 1  # 3,000 videos in about a second: 300 have ten times the slack
