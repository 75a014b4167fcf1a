"Published corpora in miniature: what each becomes, and what is told where it is broken."
from functools import partial
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from pycocotools import mask as rle

from fsrvos.apps.cli import main
from fsrvos.data.adapters import ADAPTERS, convert, find_problems
from fsrvos.data.corpus import Corpus, CorpusError, Expression, ObjectTrack, Video, write_frame, write_masks, write_metas
from fsrvos.data.curation import CurationRules, curate
from fsrvos.data.episodes import EpisodeDataset, PixelSource, support_manifest
from fsrvos.data.ref_davis import refdavis_to_corpus
from fsrvos.data.refcoco import refcoco_to_corpus
from fsrvos.data.sail_vos import sailvos_to_corpus
from fsrvos.data.safe_files import MAX_PICKLE_BYTES, MAX_PIXELS, image_size, inside, load_h5, load_mat, load_npy, load_pickle, read_ids
from fsrvos.evaluation.protocol import Prediction, evaluate
from fsrvos.training.loop import TrainSettings, train
from tests.toy import ToyModel

WIDE, TALL = (20, 36), (40, 24)


# ---- miniatures

def frame(path, size):
    "A noisy frame: one that is cut off cannot be mistaken for a whole one."
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    if path.suffix == ".png":
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    else:
        write_frame(path, pixels)


def box(size, *rectangles):
    "Ids [H, W]: rectangle i (top, bottom, left, right) is object i, counted from 1."
    ids = np.zeros(size, np.uint8)
    for i, (top, bottom, left, right) in enumerate(rectangles, 1):
        ids[top:bottom, left:right] = i
    return ids


def grey16(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint16)).save(path)


def make_refdavis(root):
    "Two videos of the validation set, one of the training set; gaps in the frame numbers, an object that vanishes, void, a 16-bit mask, a misspelt name, Latin-1 in the files of annotator 2."
    davis = root / "DAVIS"
    frames = {"été-jump": (WIDE, ("00000", "00003", "00010")), "classic-car": (TALL, ("00000", "00001")), "bear": (WIDE, ("00000",))}
    for video, (size, names) in frames.items():
        for t, name in enumerate(names):
            frame(davis / f"JPEGImages/480p/{video}/{name}.jpg", size)
            ids = box(size, (2, 8, 3, 10), (10, 16, 12, 20)) if t < 2 else box(size, (2, 8, 3, 10))
            if video == "été-jump" and t == 0:
                ids[0, 0] = 255
            path = davis / f"Annotations_unsupervised/480p/{video}/{name}.png"
            grey16(path, ids) if t == 1 else write_masks(path, ids)
    texts = root / "davis_text_annotations"
    texts.mkdir()
    for name in ("annot1", "annot1_full_video", "annot2", "annot2_full_video"):
        encoding = "latin-1" if "annot2" in name else "utf-8"
        lines = [f'été-jump 1 "a man in a "blue" cap, {name}"', 'été-jump 2 "le café"', 'clasic-car 1 "the car"', 'bear 2 "the cub"']
        (texts / f"Davis17_{name}.txt").write_text("\n".join(lines) + "\n", encoding=encoding)
    (davis / "davis_semantics.json").write_text(json.dumps({"été-jump": {"1": "person", "2": "dog"}, "classic-car": {"1": "car", "2": "person"}, "bear": {"1": "bear", "2": "bear"}}))
    (davis / "ImageSets/2017").mkdir(parents=True)
    (davis / "ImageSets/2017/val.txt").write_text("été-jump\nclassic-car\n")
    (davis / "ImageSets/2017/train.txt").write_text("bear\n")
    return root


def write_h5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def make_a2d(root):
    "Sparse frames; two instances, one instance (masks without the first dimension), an instance that vanishes, a video as a clip, one to pass over, the published slip, a sentence about nobody."
    release, texts = root / "Release", root / "text_annotations"
    first, second = box(WIDE, (2, 8, 3, 10)), box(WIDE, (10, 16, 12, 20))
    for name in ("00012", "00024", "00048"):
        frame(release / f"pngs320H/-aB_1/{name}.png", WIDE)
    frame(release / "pngs320H/-aB_1/00013.png", WIDE)  # not annotated
    masks = texts / "a2d_annotation_with_instances"
    for name in ("00012", "00024"):
        write_h5(masks / f"-aB_1/{name}.h5", instance=np.array([0, 3]), reMask=np.stack([first.T, second.T]), id=np.array([[18, 75]]))
    write_h5(masks / "-aB_1/00048.h5", instance=np.array([3]), reMask=second.T)
    from fsrvos.data.video import write_video
    for clip in ("clip", "clip_2"):
        write_video(release / f"CLIPS320/{clip}.mp4", [np.full((*WIDE, 3), 40 * t, np.uint8) for t in range(6)])
        for name in ("00002", "00005"):
            write_h5(masks / f"{clip}/{name}.h5", instance=np.array([1]), reMask=first.T)
    row = "{},{},00:00,00:05,320,240,60,3,{}\n".format
    (release / "videoset.csv").write_text(row("-aB_1", 75, 0) + row("clip", 43, 1) + row("clip_2", 43, 0) + row("gone", 11, 0))
    (texts / "a2d_missed_videos.txt").write_text("gone\n")
    (texts / "a2d_annotation.txt").write_text('video_id,instance_id,query\n-aB_1,0,"man, ""old"", walking"\n-aB_1,3,dog jumping\n-aB_1,1 (copy),a slip\n-aB_1,9,nobody\n'
                                              "clip,1,bird flies\nclip_2,1,bird\ngone,0,nothing\n")
    return root


def make_jhmdb(root):
    "Frames beyond the masks, a puppet that vanishes, brackets in a name."
    masks = np.zeros((*TALL, 3), np.uint8)
    masks[4:20, 5:12, :2] = 7
    for action, video, part in (("wave", "man_[1]_über", masks), ("run", "one", masks[:, :, 0])):
        for t in range(1, 5):
            frame(root / f"Rename_Images/{action}/{video}/{t:05d}.png", TALL)
        (root / f"puppet_mask/{action}/{video}").mkdir(parents=True)
        scipy.io.savemat(root / f"puppet_mask/{action}/{video}/puppet_mask.mat", {"part_mask": part}, do_compression=True)
    (root / "jhmdb_annotation.txt").write_text('video_id,query\nman_[1]_über,"he waves, and ""smiles"""\none,a man runs\n', encoding="utf-8")
    return root


def make_refcoco(data):
    "Two images of different shapes; polygons, both kinds of run-length codes, an object without a sentence, one of another split."
    names = {9: ("COCO_train2014_000000000009", WIDE), 12: ("COCO_train2014_000000000012", TALL)}
    for name, size in names.values():
        frame(data / f"images/mscoco/images/train2014/{name}.jpg", size)
    coded = rle.encode(np.asfortranarray(box(TALL, (10, 20, 4, 10))))
    annotations = [{"id": 50, "image_id": 9, "category_id": 1, "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12], [20, 2, 22, 2, 22, 4, 20, 4]]},
                   {"id": 60, "image_id": 9, "category_id": 18, "segmentation": [[5, 5, 9, 5, 9, 9, 5, 9]]},
                   {"id": 61, "image_id": 9, "category_id": 18, "segmentation": [[30, 2, 34, 2, 34, 4, 30, 4]]},
                   {"id": 70, "image_id": 12, "category_id": 1, "segmentation": {"size": list(TALL), "counts": coded["counts"].decode()}},
                   {"id": 71, "image_id": 12, "category_id": 1, "segmentation": {"size": list(TALL), "counts": [0, 40, 920]}}]
    instances = {"images": [{"id": i, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]} for i, (name, size) in names.items()],
                 "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}], "annotations": annotations}
    sentence = lambda i, text: {"sent": text, "sent_id": i, "raw": text, "tokens": text.split()}
    refs = [{"ref_id": 1, "ann_id": 60, "image_id": 9, "split": "train", "category_id": 18, "sentences": [sentence(0, "the dog"), sentence(1, 'the "small" one')]},
            {"ref_id": 2, "ann_id": 50, "image_id": 9, "split": "train", "category_id": 1, "sentences": [sentence(2, "mann mit Hündchen")]},
            {"ref_id": 3, "ann_id": 70, "image_id": 12, "split": "testA", "category_id": 1, "sentences": [sentence(3, "left")]},
            {"ref_id": 4, "ann_id": 71, "image_id": 12, "split": "train", "category_id": 1, "sentences": [sentence(4, "edge")]}]
    root = data / "refcoco"
    root.mkdir(parents=True)
    (root / "instances.json").write_text(json.dumps(instances))
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, 0))
    (root / "refs(google).p").write_bytes(b"not read")
    return root


def make_sailvos(root):
    "Two videos: ids beyond 255, an object that vanishes, one that is never seen, gaps in the frame numbers, folders that are not read."
    for video, size in (("abigail_1", WIDE), ("zoë_2", TALL)):
        folder = root / video
        objects = {"0012_Ped_1": (12, (2, 12, 3, 10)), "0300_Vehicle": (300, (6, 14, 6, 20)), "0301_Vehicle_2": (301, None)}
        for name in ("000000", "000004", "000005"):
            frame(folder / f"images/{name}.bmp", size)
            seen = np.zeros(size, np.int64)
            for label, (number, place) in objects.items():
                whole = np.zeros(size, np.uint8)
                if place and not (name == "000005" and number == 300):
                    whole[place[0]:place[1], place[2]:place[3]] = 255
                    seen[whole > 0] = number
                (folder / label).mkdir(exist_ok=True)
                Image.fromarray(whole).save(folder / label / f"{name}.png")
            for kind in ("visible", "depth"):
                (folder / kind).mkdir(exist_ok=True)
                np.save(folder / kind / f"{name}.npy", seen)
    return root


def make_ytvos(root, images="JPEGImages", suffix=".jpg", listed="meta.json", shown={"0a1b": ("dog", WIDE), "ß2": ("dog", TALL)}):
    "The layout of Ref-YouTube-VOS and of the two mini corpora; two objects of one class a video."
    videos = []
    for video, (name, size) in shown.items():
        for t, number in enumerate(("00000", "00005", "00020")):
            frame(root / f"train/{images}/{video}/{number}{suffix}", size)
            write_masks(root / f"train/Annotations/{video}/{number}.png", box(size, (2, 8, 3, 10), (10, 16, 12, 20)) if t else box(size, (2, 8, 3, 10)))
        tracks = {1: ObjectTrack(1, name, ("00000", "00005", "00020")), 2: ObjectTrack(2, name, ("00005", "00020"))}
        videos.append(Video(video, ("00000", "00005", "00020"), tracks, (Expression("0", f'a "big" {name}', (1,)), Expression("1", "the later one", (2,))), root, suffix))
    write_metas(root, videos)
    (root / "train/meta.json").rename(root / "train" / listed)
    return root


def make_mevis(root):
    code = lambda ids: {"size": list(ids.shape), "counts": rle.encode(np.asfortranarray(ids))["counts"].decode()}
    for video, size in (("v1", WIDE), ("v2", TALL)):
        for name in ("00000", "00004"):
            frame(root / f"JPEGImages/{video}/{name}.jpg", size)
    sentences = {"0": {"exp": 'the "small" one', "obj_id": [0], "anno_id": [7]}, "1": {"exp": "both", "obj_id": [0, 1], "anno_id": [7, 11]}}
    other = {"0": {"exp": "it moves", "obj_id": [0], "anno_id": [12]}}
    videos = {"v1": {"frames": ["00000", "00004"], "expressions": sentences}, "v2": {"frames": ["00000", "00004"], "expressions": other}}
    (root / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    small, large = box(WIDE, (4, 8, 4, 8)), box(WIDE, (2, 12, 2, 20))
    (root / "mask_dict.json").write_text(json.dumps({"7": [code(small), None], "11": [code(large)] * 2, "12": [None, code(box(TALL, (1, 5, 1, 5)))]}))
    return root


MAKE = {"refytvos": make_ytvos, "mevis": make_mevis, "a2d": make_a2d, "refdavis": make_refdavis, "jhmdb": make_jhmdb, "refcoco": make_refcoco, "sailvos": make_sailvos}


@pytest.fixture
def make(tmp_path):
    "make(kind) writes the miniature of a corpus and names its root."
    return lambda kind: MAKE[kind](tmp_path / "raw")


def texts(corpus, video):
    return {e.text: (e.object_ids, e.kind) for e in corpus.videos[video].expressions}


def areas(corpus, video, number):
    record = corpus.videos[video]
    return corpus.read_masks(video, list(record.frames), [number]).sum((0, 2, 3)).tolist()


# ---- what becomes of them

@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_miniature_becomes_a_whole_corpus(make, tmp_path, kind):
    root = make(kind)
    before = sorted(root.rglob("*"))
    assert find_problems(kind, root, progress=False) == []
    corpus = convert(kind, root, tmp_path / "new/out", progress=False)
    assert corpus.check(images=True) == [] and sorted(root.rglob("*")) == before
    for video in corpus.videos.values():
        assert corpus.read_frames(video.id, list(video.frames)).shape == (len(video.frames), video.height, video.width, 3)
        assert not video.expressions or {n for e in video.expressions for n in e.object_ids} <= set(video.objects)
        if video.suffix != ".png" or kind == "jhmdb":  # a clip's frames are decoded
            assert video.frame_path(video.frames[0]).resolve().is_relative_to(root.parent if kind == "refcoco" else root)
    assert not [path for path in tmp_path.rglob("*.partial")]


def test_refdavis(make, tmp_path):
    corpus = convert("refdavis", make("refdavis"), tmp_path / "out", progress=False)
    assert list(corpus.videos) == ["bear", "classic-car", "été-jump"]
    jump = corpus.videos["été-jump"]
    assert jump.frames == ("00000", "00003", "00010") and [jump.objects[i].category for i in (1, 2)] == ["person", "dog"]
    assert jump.objects[2].frames == ("00000", "00003") and areas(corpus, jump.id, 1) == [42] * 3 and areas(corpus, jump.id, 2) == [48, 48, 0]
    assert not corpus.read_object_ids(jump.id, ["00000"])[0, 0, 0]  # void
    assert {e.id for e in jump.expressions} == {f"{a}_{k}_{i}" for a in ("annot1", "annot2") for k in ("first_frame", "full_video") for i in (1, 2)}
    assert texts(corpus, jump.id)['a man in a "blue" cap, annot2_full_video'] == ((1,), "full_video")
    assert [e.text for e in jump.expressions if 2 in e.object_ids] == ["le café"] * 4
    assert len(corpus.videos["classic-car"].expressions) == 4 and corpus.videos["classic-car"].objects[2].category == "person"


def test_refdavis_by_split_and_without_classes(make, tmp_path):
    root = make("refdavis")
    (root / "DAVIS/davis_semantics.json").unlink()
    (root / "DAVIS/Annotations_unsupervised").rename(root / "DAVIS/Annotations")
    corpus = refdavis_to_corpus(root, tmp_path / "out", split="val", progress=False)
    assert sorted(corpus.videos) == ["classic-car", "été-jump"] and corpus.videos["classic-car"].category == "object"
    assert set(corpus.videos["classic-car"].objects) == {1}  # nobody speaks of the other one


def test_a2d(make, tmp_path):
    corpus = convert("a2d", make("a2d"), tmp_path / "out", progress=False)
    video, clip = corpus.videos["-aB_1"], corpus.videos["clip"]
    assert video.frames == ("00012", "00024", "00048") and [video.objects[i].category for i in (1, 2)] == ["adult", "dog"]
    assert areas(corpus, video.id, 1) == [42, 42, 0] and areas(corpus, video.id, 2) == [48, 48, 48]
    assert corpus.read_masks(video.id, ["00012"], [1])[0, 0, 2:8, 3:10].all()  # turned the right way
    assert texts(corpus, video.id) == {'man, "old", walking': ((1,), None), "dog jumping": ((2,), None)}
    assert clip.category == "bird" and clip.frames == ("00002", "00005") and "gone" not in corpus.videos
    means = corpus.read_frames("clip", ["00002", "00005"]).mean((1, 2, 3))
    assert np.abs(means - [40, 160]).max() < 8  # frames 2 and 5, counted from 1
    assert sorted(convert("a2d", tmp_path / "raw", tmp_path / "test", split="test", progress=False).videos) == ["clip"]


def test_hdf5_files_are_read_and_their_links_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["instance"], file["away"] = np.arange(3), h5py.ExternalLink("b.h5", "/x")
    assert load_h5(tmp_path / "a.h5", "instance", "id")["instance"].tolist() == [0, 1, 2]
    with pytest.raises(CorpusError, match="points at another file"):
        load_h5(tmp_path / "a.h5", "away")
    (tmp_path / "a.h5").write_bytes(b"no")
    with pytest.raises(CorpusError, match="no readable HDF5 file"):
        load_h5(tmp_path / "a.h5", "instance")


def test_jhmdb(make, tmp_path):
    corpus = convert("jhmdb", make("jhmdb"), tmp_path / "out", progress=False)
    video = corpus.videos["man_[1]_über"]
    assert video.frames == ("00001", "00002", "00003") and video.objects[1].frames == ("00001", "00002") and video.category == "person"
    assert areas(corpus, video.id, 1) == [112, 112, 0] and list(texts(corpus, video.id)) == ['he waves, and "smiles"']
    assert corpus.videos["one"].frames == ("00001",)


def test_refcoco(make, tmp_path):
    corpus = convert("refcoco", make("refcoco"), tmp_path / "out", progress=False)
    dog = corpus.videos["COCO_train2014_000000000009"]
    assert dog.frames == (dog.id,) and {i: t.category for i, t in dog.objects.items()} == {1: "person", 2: "dog"}
    assert texts(corpus, dog.id) == {"the dog": ((2,), None), 'the "small" one': ((2,), None), "mann mit Hündchen": ((1,), None)}
    assert areas(corpus, dog.id, 1) == [100 + 4 - 16] and areas(corpus, dog.id, 2) == [16]
    tall = corpus.videos["COCO_train2014_000000000012"]
    assert areas(corpus, tall.id, 1) == [60] and areas(corpus, tall.id, 2) == [40] and (tall.height, tall.width) == TALL
    train = refcoco_to_corpus(tmp_path / "raw/refcoco", tmp_path / "train", split="train", progress=False)
    assert list(texts(train, tall.id)) == ["edge"] and set(train.videos[tall.id].objects) == {1}


def test_sailvos(make, tmp_path):
    corpus = sailvos_to_corpus(make("sailvos"), tmp_path / "out", {"Ped": "person"}, progress=False)
    video = corpus.videos["zoë_2"]
    assert video.frames == ("000000", "000004", "000005") and {i: t.category for i, t in video.objects.items()} == {1: "person", 2: "Vehicle"}
    assert video.objects[2].frames == ("000000", "000004") and areas(corpus, video.id, 1) == [70 - 24, 70 - 24, 70] and areas(corpus, video.id, 2) == [112, 112, 0]
    whole = np.asarray(Image.open(corpus.root / "train/AmodalAnnotations/zoë_2/1/000000.png"))
    assert (whole > 0).sum() == 70 and video.expressions == () and video.suffix == ".bmp"


def test_mevis(make, tmp_path):
    corpus = convert("mevis", make("mevis"), tmp_path / "out", progress=False)
    assert texts(corpus, "v1") == {'the "small" one': ((1,), "motion"), "both": ((1, 2), "several")}
    assert areas(corpus, "v1", 1) == [16, 0] and areas(corpus, "v1", 2) == [180 - 16, 180] and areas(corpus, "v2", 1) == [0, 16]


@pytest.mark.parametrize("images, suffix, listed", [("JPEGImages", ".jpg", "meta.json"), ("JPEGImages", ".jpg", "train.json"), ("Images", ".bmp", "meta.json"), ("Images", ".bmp", "train.json")])
def test_the_mini_corpora_as_published(tmp_path, images, suffix, listed):
    "They are read where they lie; imported, they have lists of their own and no copies."
    root = make_ytvos(tmp_path / "mini-ref", images, suffix, listed)
    assert Corpus.load(root).check(images=True) == []
    corpus = convert("refytvos", root, tmp_path / "out", progress=False)
    assert corpus.videos.keys() == Corpus.load(root).videos.keys() and areas(corpus, "0a1b", 2) == [0, 48, 48]
    assert sum(path.is_file() for path in corpus.root.rglob("*")) == 3 and corpus.videos["ß2"].expressions[0].text == 'a "big" dog'


def test_splits_without_masks_are_told_what_they_are_for(tmp_path):
    for split in ("valid", "test"):
        frame(tmp_path / split / "JPEGImages/v/00000.jpg", WIDE)
    for root in (tmp_path, tmp_path / "test"):
        with pytest.raises(CorpusError, match="no masks.*fsrvos segment"):
            convert("refytvos", root, tmp_path / "out", progress=False)
    make_ytvos(tmp_path / "whole")
    with pytest.raises(CorpusError, match="is one split"):
        convert("refytvos", tmp_path / "whole/train", tmp_path / "out", progress=False)


# ---- bad data

def rewrite(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def refs(root, change):
    path = root / "refs(unc).p"
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content, 2))


def append(path, text):
    path.write_bytes(path.read_bytes() + text.encode())


def cut(path):
    path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])


def swap(path, old, new):
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


DAVIS, TEXTS, A2D, COCO = "DAVIS/JPEGImages/480p/été-jump/", "davis_text_annotations/Davis17_", "text_annotations/", "../images/mscoco/images/train2014/COCO_train2014_0000000000"
BAD = {  # kind of corpus -> [(how to break it, what must be told)]: all are broken at once, and all must be told
    "refdavis": [(lambda r: cut(r / f"{DAVIS}00003.jpg"), "été-jump/00003.jpg: cannot be decoded"),
                 (lambda r: (r / "DAVIS/Annotations_unsupervised/480p/été-jump/00010.png").unlink(), "été-jump/00010.png: cannot be decoded (there is no such file)"),
                 (lambda r: append(r / f"{TEXTS}annot1.txt", "bear the bear\n"), "Davis17_annot1.txt: line 5: is not <video>"),
                 (lambda r: append(r / f"{TEXTS}annot2.txt", '../../etc 1 "up"\n'), "'../../etc' is not a plain name"),
                 (lambda r: append(r / f"{TEXTS}annot1_full_video.txt", 'bear 2 "again"\n'), "line 5: is a second sentence about object 2 of bear"),
                 (lambda r: (r / f"{TEXTS}annot2_full_video.txt").unlink(), "annot2_full_video.txt: cannot be read"),
                 (lambda r: append(r / f"{TEXTS}annot2.txt", 'bear 9 "a ninth"\n'), "480p/bear: object 9: is spoken of, but no mask shows it"),
                 (lambda r: append(r / f"{TEXTS}annot2.txt", 'lucia 1 "she"\n'), "JPEGImages/480p/lucia: no such folder of frames"),
                 (lambda r: write_masks(r / "DAVIS/Annotations_unsupervised/480p/classic-car/00000.png", box((9, 9), (1, 2, 1, 2), (3, 5, 3, 5))), "classic-car: frame 00000: its mask is 9x9 px, the video is 24x40 px")],
    "a2d": [(lambda r: cut(r / "Release/pngs320H/-aB_1/00024.png"), "-aB_1/00024.png: cannot be decoded"),
            (lambda r: append(r / f"{A2D}a2d_annotation.txt", "other,0,a cat\n"), "videoset.csv: other: is missing"),
            (lambda r: append(r / f"{A2D}a2d_annotation.txt", "-aB_1,zero,a cat\n"), "a2d_annotation.txt: line 10: instance 'zero'"),
            (lambda r: (r / f"{A2D}a2d_missed_videos.txt").write_text(""), "a2d_annotation_with_instances/gone: has no masks"),
            (lambda r: (r / "Release/CLIPS320/clip.mp4").write_bytes(b"no"), "clip.mp4: no readable video")],
    "jhmdb": [(lambda r: cut(r / "Rename_Images/wave/man_[1]_über/00002.png"), "00002.png: cannot be decoded"),
              (lambda r: scipy.io.savemat(r / "puppet_mask/run/one/puppet_mask.mat", {"mask": np.eye(3)}), "one/puppet_mask.mat: part_mask: is missing (it has mask)"),
              (lambda r: append(r / "jhmdb_annotation.txt", "nobody,a man sits\n"), "puppet_mask: nobody: has no folder"),
              (lambda r: append(r / "jhmdb_annotation.txt", 'one,""\n'), "jhmdb_annotation.txt: line 5: has no query")],
    "refcoco": [(lambda r: cut(r / f"{COCO}12.jpg"), "0012.jpg: cannot be decoded"),
                (lambda r: refs(r, lambda c: c[1].update(ann_id=999)), "[1].ann_id: 999 is not in instances.json"),
                (lambda r: refs(r, lambda c: c[2].pop("sentences")), "[2].sentences: wants 'sent'"),
                (lambda r: rewrite(r / "instances.json", lambda c: c["annotations"][1].update(segmentation=[[1, 2]])), "0009: a segmentation cannot be decoded")],
    "sailvos": [(lambda r: cut(r / "abigail_1/images/000004.bmp"), "000004.bmp: cannot be decoded"),
                (lambda r: (r / "abigail_1/visible/000005.npy").unlink(), "000005.npy: there is no such file"),
                (lambda r: cut(r / "abigail_1/visible/000000.npy"), "000000.npy: is no whole array"),
                (lambda r: np.save(r / "zoë_2/visible/000000.npy", np.array([{}], object), allow_pickle=True), "zoë_2/visible/000000.npy: is no whole array"),
                (lambda r: (r / "abigail_1/0012_Ped_1/000000.png").write_bytes(b"no"), "0012_Ped_1/000000.png: cannot be decoded"),
                (lambda r: (r / "empty/images").mkdir(parents=True), "empty/images: has no frames")],
    "mevis": [(lambda r: cut(r / "JPEGImages/v2/00004.jpg"), "v2/00004.jpg: cannot be decoded"),
              (lambda r: rewrite(r / "mask_dict.json", lambda c: c["12"][1].update(size=[3, 3])), "video v2, frame 00004: a mask cannot be decoded"),
              (lambda r: rewrite(r / "meta_expressions.json", lambda c: c["videos"]["v1"]["frames"].__setitem__(1, "../v2/00004")), "'../v2/00004' is not a plain name")],
    "refytvos": [(lambda r: cut(r / "train/JPEGImages/0a1b/00005.jpg"), "0a1b/00005.jpg: cannot be decoded"),
                 (lambda r: rewrite(r / "train/meta.json", lambda c: c["videos"]["ß2"]["objects"]["1"].pop("category")), "videos.ß2.objects.1.category: is missing"),
                 (lambda r: (r / "train/Annotations/0a1b/00020.png").unlink(), "0a1b/00020.png: is missing")]}


@pytest.mark.parametrize("kind", BAD)
def test_all_that_is_wrong_is_told_at_once_and_nothing_is_written(make, tmp_path, kind):
    root = make(kind)
    for damage, _ in BAD[kind]:
        damage(root)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorpusError) as error:
        convert(kind, root, tmp_path / "out", progress=False)
    assert [told for _, told in BAD[kind] if told not in str(error.value)] == []
    assert all(problem.mend for problem in error.value.problems) and sorted(tmp_path.rglob("*")) == before
    assert {*map(str, find_problems(kind, root, progress=False))} == {*map(str, error.value.problems)}


ALONE = [  # faults that keep the lists from being read at all
    ("a2d", lambda r: swap(r / f"{A2D}a2d_annotation.txt", "instance_id", "instance"), "line 1: has the columns video_id, instance, query"),
    ("a2d", lambda r: (r / "Release/videoset.csv").write_text("a,b\n"), "videoset.csv: row 1: has 2 columns, not 9"),
    ("a2d", lambda r: shutil.rmtree(r / "Release/CLIPS320"), "CLIPS320/clip.mp4: there is no such clip"),
    ("a2d", lambda r: (r / f"{A2D}a2d_annotation_with_instances/clip/00005.h5").rename(r / f"{A2D}a2d_annotation_with_instances/clip/00050.h5"), "frame 00050: is annotated, but the clip ends before it"),
    ("a2d", lambda r: (r / f"{A2D}a2d_annotation_with_instances/clip/00005.h5").write_bytes(b"no"), "clip/00005.h5: is no readable HDF5 file"),
    ("jhmdb", lambda r: (r / "jhmdb_annotation.txt").unlink(), "jhmdb_annotation.txt: cannot be read"),
    ("jhmdb", lambda r: cut(r / "puppet_mask/run/one/puppet_mask.mat"), "one/puppet_mask.mat"),
    ("jhmdb", lambda r: [path.unlink() for path in sorted((r / "Rename_Images/wave/man_[1]_über").iterdir())[1:]], "has 3 masks for 1 frames"),
    ("refcoco", lambda r: (r / "instances.json").write_text('{"images": ['), "instances.json: is not valid JSON"),
    ("refcoco", lambda r: rewrite(r / "instances.json", lambda c: c.pop("annotations")), "instances.json: annotations: is not a list"),
    ("refcoco", lambda r: rewrite(r / "instances.json", lambda c: c["images"][0].update(file_name="../../../secret.jpg")), "'../../../secret.jpg' is not a path below the root"),
    ("refcoco", lambda r: rewrite(r / "instances.json", lambda c: c["images"][0].update(height=10**9)), "pixels"),
    ("refcoco", lambda r: refs(r, list.clear), "has no videos"),
    ("refcoco", lambda r: shutil.rmtree(r.parent / "images"), "train2014: no such folder of images"),
    ("refcoco", lambda r: (r / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'true'\ntR."), "it asks for"),
    ("sailvos", shutil.rmtree, "no such folder"),
    ("mevis", lambda r: rewrite(r / "meta_expressions.json", lambda c: c["videos"].update({"../v3": c["videos"]["v1"]})), "'../v3' is not a plain name"),
    ("refdavis", lambda r: (r / "DAVIS/davis_semantics.json").write_text('{"bear": 3}'), "davis_semantics.json: classic-car: wants a class"),
    ("refdavis", lambda r: shutil.rmtree(r / "DAVIS/Annotations_unsupervised"), "480p/bear: no such folder of masks"),
    ("refdavis", lambda r: append(r / f"{TEXTS}annot1.txt", 'bear 0 "ground"\nbear 300 "none"\n'), "video bear: has the object ids 0, 1, 2, 300"),
    ("refcoco", lambda r: refs(r, lambda c: c[1]["sentences"][0].update(sent_id=0)), "video COCO_train2014_000000000009: has two sentences with the id 0"),
    ("jhmdb", lambda r: append(r / "jhmdb_annotation.txt", 'one,"never closed' + "x" * 200000), "jhmdb_annotation.txt: is no comma-separated table"),
    ("jhmdb", lambda r: append(r / "jhmdb_annotation.txt", "one,a man, who runs\n"), "jhmdb_annotation.txt: row 4: has 3 columns, not 2"),
    ("refytvos", lambda r: (r / "train/meta.json").unlink(), "meta.json: is missing")]


@pytest.mark.parametrize("kind, damage, told", ALONE, ids=lambda x: x if isinstance(x, str) else "")
def test_lists_that_cannot_be_read(make, tmp_path, kind, damage, told):
    root = make(kind)
    damage(root)
    with pytest.raises(CorpusError) as error:
        convert(kind, root, tmp_path / "out", progress=False)
    assert told in str(error.value) and not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_empty_folder_is_told(tmp_path, kind):
    (tmp_path / "raw").mkdir()
    with pytest.raises(CorpusError):
        convert(kind, tmp_path / "raw", tmp_path / "out", progress=False)
    assert find_problems(kind, tmp_path / "raw", progress=False) and not (tmp_path / "out").exists()


def test_nothing_is_overwritten(make, tmp_path):
    root = make("jhmdb")
    (tmp_path / "out").mkdir()
    with pytest.raises(CorpusError, match="exists already"):
        convert("jhmdb", root, tmp_path / "out", progress=False)
    with pytest.raises(CorpusError, match="no lists of splits"):
        convert("jhmdb", root, tmp_path / "other", split="test", progress=False)
    for kind, split in (("refdavis", "nope"), ("a2d", "val"), ("refcoco", "nope")):
        assert find_problems(kind, root, split=split, progress=False)


def test_a_corpus_in_which_nothing_is_seen_is_told(make, tmp_path):
    root = make("sailvos")
    for path in root.glob("*/visible/*.npy"):
        np.save(path, np.zeros_like(np.load(path)))
    with pytest.raises(CorpusError, match="has no object that any mask shows"):
        convert("sailvos", root, tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_an_interrupted_import_leaves_nothing(make, tmp_path, monkeypatch):
    root = make("jhmdb")
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr("fsrvos.data.real_corpora.write_metas", stop)
    with pytest.raises(KeyboardInterrupt):
        convert("jhmdb", root, tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


# ---- files that mean harm

class Call:
    def __init__(self, function, *arguments): self.call = function, arguments
    def __reduce__(self): return self.call


@pytest.mark.parametrize("harm", [Call(os.system, "touch harmed"), Call(eval, "1"), Call(subprocess.Popen, ["true"]), Call(getattr, "", "join"), Call(bytearray, 10), Call(np.dtype, "f8"),
                                  SimpleNamespace(a=1), np.float64(1), len, os.system, Call(__import__, "os")], ids=str)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_asks_for_anything_is_refused(tmp_path, monkeypatch, harm, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"ref_id": 1}, harm], protocol))
    with pytest.raises(CorpusError, match=r"refs\(unc\)\.p: is refused as a pickle \(it asks for .*download it again"):
        load_pickle(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_pickles_of_python_2_and_broken_ones(tmp_path):
    path = tmp_path / "refs(google).p"
    path.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9'\np3\nsS'id'\np4\nL12L\nsa.")  # as Python 2 writes them
    assert load_pickle(path) == [{"sent": "café", "id": 12}]
    for data in (b"", b"\x80", b"(lp0\n", b"garbage", pickle.dumps(["a" * 99])[:-9], b"\x80\x04\x8e" + b"\xff" * 8 + b"."):
        path.write_bytes(data)
        with pytest.raises(CorpusError, match="pickle"):
            load_pickle(path)
    with pytest.raises(CorpusError, match="cannot be read"):
        load_pickle(tmp_path / "none.p")
    path.write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")  # a memo of two thousand million places
    assert load_pickle(path) == []
    with path.open("wb") as file:
        file.truncate(MAX_PICKLE_BYTES + 1)
    with pytest.raises(CorpusError, match="is larger than 256 MiB"):
        load_pickle(path)


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "a\\..\\b", "", ".", "a\0", None, 3, ["a"]])
def test_names_that_leave_the_root_are_refused(tmp_path, name):
    with pytest.raises(CorpusError, match="list.json.*is not a path below the root"):
        inside(tmp_path, name, "list.json")
    for plain in ("a/b", "./a", "a/", name):
        with pytest.raises(CorpusError, match="is not a plain name"):
            inside(tmp_path, plain, "list.json", plain=True)
    assert inside(tmp_path, "a/b.jpg", "list.json") == tmp_path / "a/b.jpg" and inside(tmp_path, "été [1]", "l", plain=True).parent == tmp_path


def png(width, height):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("width, height", [(8193, 8192), (10000, 10000), (20000, 20000), (2**31 - 1, 2)])
def test_image_bombs_are_refused_undecoded(tmp_path, width, height):
    path = tmp_path / "00000.png"
    path.write_bytes(png(width, height))
    for read in (image_size, read_ids):
        with pytest.raises(CorpusError, match=f"00000.png: has too many pixels .*the limit is {MAX_PIXELS}"):
            read(path)


def test_a_bomb_among_the_masks_of_a_corpus(make, tmp_path):
    root = make("refdavis")
    (root / "DAVIS/Annotations_unsupervised/480p/bear/00000.png").write_bytes(png(20000, 20000))
    with pytest.raises(CorpusError, match="bear/00000.png: has too many pixels"):
        convert("refdavis", root, tmp_path / "out", progress=False)


def test_arrays_of_absurd_size_are_refused(tmp_path):
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (99999999, 99999999), }"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(CorpusError, match="is no whole array"):
        load_npy(tmp_path / "a.npy")
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file" + b" " * 105 + b"\x00\x02IM" + b"\x89HDF")
    with pytest.raises(CorpusError, match="no readable MATLAB file"):
        load_mat(tmp_path / "a.mat", "part_mask")


def test_colour_masks_are_told(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(CorpusError, match="is a mask in mode RGB"):
        read_ids(tmp_path / "a.png")


# ---- command line

@pytest.fixture
def fsrvos(run_cli):
    return partial(run_cli, "import-corpus")


@pytest.fixture
def curate_from_published(capsys, tmp_path, monkeypatch):
    "Run `fsrvos curate --from ...` in a folder with the study's parameters, loosened: (exit status, output, errors)."
    text = (Path(__file__).parents[1] / "params.yaml").read_text().replace("  min_track_frames: 5", "  min_track_frames: 1", 1).replace("  min_videos: 10", "  min_videos: 1", 1)
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    def run(*argv):
        with pytest.raises(SystemExit) as end: main(["curate", "--from", *map(str, argv)])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err
    return run


@pytest.mark.parametrize("kind", ADAPTERS)
def test_curate_from_published_archives(curate_from_published, make, tmp_path, kind):
    "Import and curation in one run; everything wrong is listed at once, before anything is written; `--check` writes nothing."
    root = make(kind)
    if kind == "sailvos":  # the published folders, by the names that the paper uses
        for folder in sorted(root.glob("*/0012_Ped_1")): folder.rename(folder.with_name("0012_person"))
    before = sorted(tmp_path.rglob("*"))
    assert curate_from_published(kind, "--raw", root, "--check")[:2] == (0, f"{root}: nothing wrong\n") and sorted(tmp_path.rglob("*")) == before
    status, out, err = curate_from_published(kind, "--raw", root, "--out", "new/mini")
    assert status == 0 and "| after the rule |" in out, err
    assert ("| paper |" in out) == (kind in ("refytvos", "sailvos")) and ("the paper has 1668" in out) == (kind == "refytvos")
    curated = Corpus.load("new/mini")
    assert curated.check(images=True) == [] and curated.videos and Path("new/mini/folds.json").is_file() and Path("new/mini-imported").is_dir() == (kind != "refytvos")
    if kind in BAD:
        for damage, _ in BAD[kind]: damage(root) if kind != "sailvos" else shutil.rmtree(root / "abigail_1/images", ignore_errors=True)
        for argv in (["--check"], ["--out", "other"]):
            status, _, err = curate_from_published(kind, "--raw", root, *argv)
            assert status == 2 and "problem(s), listed above" in err.splitlines()[-1] and "Traceback" not in err and not Path("other").exists() and not Path("other-imported").exists()


def test_import_corpus(fsrvos, make, tmp_path):
    root = make("refdavis")
    assert fsrvos("refdavis", root, "--check")[:2] == (0, f"{root}: nothing wrong\n") and not (tmp_path / "out").exists()
    status, out, _ = fsrvos("refdavis", root, tmp_path / "out", "--split", "val")
    assert (status, out) == (0, f"{tmp_path / 'out'}: 2 videos, 12 expressions\n") and Corpus.load(tmp_path / "out").check() == []
    for damage, _ in BAD["refdavis"]: damage(root)
    for argv in (("refdavis", root, "--check"), ("refdavis", root, tmp_path / "other")):
        status, _, err = fsrvos(*argv)
        assert status == 2 and all(told in err for _, told in BAD["refdavis"]) and "Traceback" not in err and "problem(s), listed above" in err.splitlines()[-1]
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("argv, told", [(("davis", "--raw", "x"), "'davis' is no kind of corpus; known: refytvos"), (("jhmdb", "--raw", "x", "--split", "val"), "no lists of splits"),
                                        (("jhmdb", "--raw", "x", "--check"), "jhmdb_annotation.txt: cannot be read"), (("sailvos", "--raw", "x"), "x: no such folder")])
def test_mistakes_with_curate_from(curate_from_published, tmp_path, argv, told):
    status, _, err = curate_from_published(*argv)
    assert status == 2 and told in err and [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("argv, told", [(("davis", "x", "y"), "'davis' is no kind of corpus; known: refytvos"), (("mevis", "x"), "OUT is missing"), (("jhmdb", "x", "y", "--split", "val"), "no lists of splits"),
                                        (("jhmdb", "x", "y"), "jhmdb_annotation.txt: cannot be read")])
def test_mistakes_on_the_command_line(fsrvos, tmp_path, monkeypatch, argv, told):
    monkeypatch.chdir(tmp_path)
    status, _, err = fsrvos(*argv)
    assert status == 2 and told in err and not list(tmp_path.iterdir())


# ---- and then

@pytest.mark.parametrize("kind", ["refytvos", "mevis", "refdavis", "a2d", "jhmdb", "refcoco"])
def test_an_imported_corpus_is_curated(make, tmp_path, kind):
    "What curation keeps of it has its frames and masks, wherever these lie."
    corpus = convert(kind, make(kind), tmp_path / "out", progress=False)
    curate(corpus, CurationRules(classes=None, single_category=False, min_track_frames=1, min_videos=1, max_videos=None), tmp_path / "curated")
    curated = Corpus.load(tmp_path / "curated")
    assert curated.check(images=True) == [] and curated.videos.keys() == corpus.videos.keys()
    for video in curated.videos.values():
        frames = list(video.frames)
        assert (curated.read_object_ids(video.id, frames) == corpus.read_object_ids(video.id, frames)).all()
        assert (curated.read_frames(video.id, frames) == corpus.read_frames(video.id, frames)).all()


class AnySize(ToyModel):
    "The toy model, its masks as large as the frames ask."
    def decode(self, query_levels, *others, **named):
        out = super().decode(query_levels, *others, **named)
        size = [-(-side // 4) for side in query_levels[0].shape[-2:]]
        out.pred_masks = torch.nn.functional.interpolate(out.pred_masks.flatten(0, 1), size).unflatten(0, out.pred_masks.shape[:2])
        return out

    def encode_frames(self, frames): return [frames]


class Knows:
    "Answers with the truth."
    def __init__(self, corpus): self.corpus = corpus
    def encode_support(self, source, support): return source.masks(support["video"], support["frames"], [support["object_id"]]).any()
    def predict(self, state, source, video_id, frames, text):
        assert state
        object_ids = next(e.object_ids for e in self.corpus.videos[video_id].expressions if e.text == text)
        return Prediction(self.corpus.read_masks(video_id, frames, object_ids).any(0), 1.0)


@pytest.mark.parametrize("kind, name", [("refytvos", "dog"), ("mevis", "object"), ("refdavis", "object"), ("a2d", "bird"), ("jhmdb", "person"), ("refcoco", "person")])
def test_an_imported_corpus_is_trained_and_scored_on(make, tmp_path, kind, name):
    "Two steps of training on its episodes; and whoever knows the truth is scored 1."
    root = make(kind)
    if kind == "refdavis":
        (root / "DAVIS/davis_semantics.json").unlink()
    corpus = convert(kind, root, tmp_path / "out", progress=False)
    if kind == "refcoco":  # only its second image shows people alone: a dog in the first is made one
        rewrite(tmp_path / "out/train/meta.json", lambda c: [o.update(category=name) for v in c["videos"].values() for o in v["objects"].values()])
        corpus = Corpus.load(tmp_path / "out")
    source = PixelSource(corpus, lambda text: {"input_ids": [len(word) % 3 for word in text.split()]})
    episodes = EpisodeDataset(corpus, [name], source=source, frames=1, shots=1, episodes_per_class=2)
    assert {episodes.episode(i).query.video != episodes.episode(i).support.video for i in range(2)} == {True}
    settings = TrainSettings(epochs=1, episodes_per_class=2, batch_size=1, lr=0.01, checkpoint_every=0)
    result = train(AnySize(), episodes, settings, tmp_path / "model")
    assert result.final.is_dir()
    manifest = support_manifest(corpus, [name], runs=1, shots=1, seed=0, max_queries=None)
    records = evaluate(Knows(corpus), corpus, source, manifest, progress=False).records
    assert records and all(record["J"] == record["F"] == 1 for record in records)
