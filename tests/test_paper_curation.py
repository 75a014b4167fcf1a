"The papers' curation: counts beside counts, SAIL-VOS's targets, the published layout, checksums, and a corpus of the real one's size."
import hashlib
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsrvos.data.corpus import Corpus, CorpusError, Expression, ObjectTrack, Video, write_frame, write_masks, write_metas
from fsrvos.data.curation import CurationError, CurationRules, apply_rules
from fsrvos.data.paper_curation import (MINI_REF_SAILVOS, MINI_REF_YTVOS, apply_sailvos_rules, closest_cap, curate_as_published, curate_from, several_instances, with_targets)
from fsrvos.data.sail_vos import sailvos_to_corpus
from tests.test_adapters import make_jhmdb, make_sailvos, make_ytvos
from tests.test_curation import make_video

RULES = CurationRules(classes=("cat", "dog", "bus"), min_videos=2, max_videos=3)


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# ---- the report

def test_counts_stand_beside_the_papers(tiny_corpus, tmp_path):
    result = curate_as_published(tiny_corpus(), RULES, tmp_path / "out", MINI_REF_YTVOS, progress=False)
    head, _, *rows = result.table().splitlines()
    assert rows[0] == "| (raw corpus) | 20 | 3471 | 5 | – | 140 | 12913 | 0 |" and rows[1].startswith("| one category a video | 20 | 2387 | 5 | –") and rows[-1] == "| at most 3 videos a class | 9 | 1668 | 3 | 48 | 63 | – | 3 |"
    assert all("–" in row for row in rows[2:-1]) and head.count("paper") == 3
    written = json.loads((tmp_path / "out/curation.json").read_text())
    assert written["paper"]["steps"][0] == {"videos": 3471, "classes": None, "expressions": 12913} and len(written["paper"]["steps"]) == len(written["steps"]) == len(rows)
    assert "At most 3 videos a class leave 9; the paper has 1668, to which a cap of 4 comes closest (12)" in result.note() and written["paper"]["closest_cap"] == [4, 12]


def test_the_published_counts():
    assert MINI_REF_YTVOS.steps["(raw corpus)"].videos == 3471 and MINI_REF_YTVOS.steps["one category a video"].videos == 2387
    assert MINI_REF_YTVOS.result[:2] == (1668, 48) and MINI_REF_SAILVOS.result[:2] == (68, 3)


@pytest.mark.parametrize("counts, videos, expected", [({"a": 10, "b": 5}, 10, (5, 10)), ({"a": 10, "b": 5}, 100, (10, 15)), ({"a": 10, "b": 5}, 0, (1, 2)), ({"a": 7}, 4, (4, 4))])
def test_the_closest_cap(counts, videos, expected):
    assert closest_cap(counts, videos) == expected


# ---- the published layout

def test_the_layout_is_the_published_one_and_its_frames_are_links(tiny_corpus, tmp_path):
    corpus, out = tiny_corpus(), tmp_path / "deep/out"
    curate_as_published(corpus, RULES, out, MINI_REF_YTVOS, progress=False)
    assert {path.name for path in out.iterdir()} == {"train", "meta_expressions", "folds.json", "fs_rvmos.json", "curation.json", "manifest.sha256"}
    mini = Corpus.load(out)
    assert mini.check(images=True) == [] and len(mini.videos) == 9 and not (out / "corpus.json").exists()
    kept, _ = apply_rules(corpus, RULES)
    for video in kept:
        mine = mini.videos[video.id]
        assert mine == replace(video, folder=out / "train/JPEGImages" / video.id) and mine.folder.is_symlink() and (out / "train/Annotations" / video.id).is_symlink()
        assert (mini.read_object_ids(video.id, video.frames) == corpus.read_object_ids(video.id, video.frames)).all()
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_frames_that_no_list_names_are_not_linked(tiny_corpus, tmp_path):
    corpus = tiny_corpus()
    write_frame(corpus.root / "train/JPEGImages/cat_0/99999.jpg", np.zeros((32, 48, 3), np.uint8))
    curate_as_published(Corpus.load(corpus.root), replace(RULES, max_videos=None), tmp_path / "out", MINI_REF_YTVOS, progress=False)
    images = tmp_path / "out/train/JPEGImages"
    assert not (images / "cat_0").is_symlink() and {p.stem for p in (images / "cat_0").iterdir()} == set(corpus.videos["cat_0"].frames) and (images / "cat_1").is_symlink()


def test_checksums_of_every_file(tiny_corpus, tmp_path):
    corpus = tiny_corpus()
    curate_as_published(corpus, RULES, tmp_path / "out", MINI_REF_YTVOS, progress=False)
    lines = dict(reversed(line.split("  ", 1)) for line in (tmp_path / "out/manifest.sha256").read_text().splitlines())
    assert len(lines) == 9 * 6 * 2 + 5 and lines["folds.json"] == hashlib.sha256((tmp_path / "out/folds.json").read_bytes()).hexdigest()
    check = lambda: subprocess.run(["sha256sum", "--check", "--quiet", "manifest.sha256"], cwd=tmp_path / "out", capture_output=True, text=True)
    assert check().returncode == 0
    name = next(name for name in lines if "Annotations" in name)
    Path(tmp_path / "out" / name).resolve().write_bytes(b"x")
    assert check().returncode == 1 and f"{name}: FAILED" in check().stdout


def test_the_same_bytes_twice_and_an_interrupted_run_leaves_the_old_one(tiny_corpus, tmp_path, monkeypatch):
    corpus = tiny_corpus()
    content = lambda: {name: (tmp_path / "out" / name).read_bytes() for name in files_of(tmp_path / "out") if (tmp_path / "out" / name).is_file()}
    curate_as_published(corpus, RULES, tmp_path / "out", MINI_REF_YTVOS, progress=False)
    first = content()
    curate_as_published(corpus, RULES, tmp_path / "out", MINI_REF_YTVOS, progress=False)
    assert content() == first
    monkeypatch.setattr("fsrvos.data.paper_curation.write_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        curate_as_published(corpus, replace(RULES, max_videos=2), tmp_path / "out", MINI_REF_YTVOS, progress=False)
    assert content() == first and sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "out"]


def test_out_is_never_something_else(tiny_corpus, tmp_path):
    corpus = tiny_corpus()
    for out in (corpus.root, tmp_path, corpus.root / "train/meta.json"):
        with pytest.raises(CurationError, match="give another"):
            curate_as_published(corpus, RULES, out, MINI_REF_YTVOS, progress=False)
    with pytest.raises(CurationError, match="no video is left"):
        curate_as_published(corpus, CurationRules(classes=("whale",)), tmp_path / "out", MINI_REF_YTVOS, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_several_instances_by_fold(tiny_corpus, tmp_path):
    videos = [make_video("a", ("cat", "cat")), make_video("b", ("cat",)), make_video("c", ("dog", "dog", "dog"))]
    assert several_instances(videos, {"1": {"train": ["dog"], "test": ["cat"]}}) == {"1": {"train": ["c"], "test": ["a"]}}
    curate_as_published(tiny_corpus(), RULES, tmp_path / "out", MINI_REF_YTVOS, progress=False)
    split, folds = (json.loads((tmp_path / f"out/{name}.json").read_text()) for name in ("fs_rvmos", "folds"))
    assert {v.split("_")[0] for v in split["1"]["test"]} == set(folds["1"]["test"]) and len(split["1"]["train"] + split["1"]["test"]) == 9


# ---- SAIL-VOS

SAIL = CurationRules.sailvos(min_track_frames=4)


def test_targets_before_and_after_the_annotation():
    silent = [replace(make_video("a", ("lamp", "dog", "dog", "car"), visible={2: range(3), 3: range(5), 4: range(5)}), expressions=()), replace(make_video("b", ("lamp",)), expressions=())]
    kept, dropped = with_targets(silent, ("dog", "car"))
    assert [set(v.objects) for v in kept] == [{3}] and dropped == {"b": "shows no dog or car"}
    spoken = [replace(silent[0], expressions=(Expression("0", "both", (2, 4)),)), silent[1], replace(silent[0], id="c")]
    kept, dropped = with_targets(spoken, ("dog", "car"))
    assert [(v.id, set(v.objects)) for v in kept] == [("a", {2, 4})] and dropped == dict.fromkeys("bc", "no sentence is about it")


def write_scenes(root, sentences):
    "Three scenes: a person who hides in the middle and is half behind a car, a dog of two frames, a car that no gap hurts."
    tracks = {"street": {1: ("person", (0, 1, 3, 4, 5)), 2: ("car", (3, 4))}, "glimpse": {1: ("dog", (2, 3)), 2: ("lamp", range(6))}, "parking": {1: ("car", (1, 2, 3, 4)), 2: ("lamp", (0, 5))}}
    videos, frames = [], tuple(f"{t:06d}" for t in range(6))
    for name, objects in tracks.items():
        for t, frame in enumerate(frames):
            ids = np.zeros((20, 30), np.uint8)
            for i, (_, seen) in objects.items():
                if t in seen:
                    ids[4:14, 4 + 5 * i:16 + 5 * i] = i
            write_masks(root / "train/Annotations" / name / f"{frame}.png", ids)
            write_frame(root / "train/Images" / name / f"{frame}.bmp", np.zeros((20, 30, 3), np.uint8))
        objects = {i: ObjectTrack(i, category, tuple(frames[t] for t in seen)) for i, (category, seen) in objects.items()}
        videos.append(Video(name, frames, objects, (Expression("0", "the one", (1,)),) if sentences else (), root, ".bmp"))
    write_metas(root, videos)
    return Corpus.load(root)


@pytest.mark.parametrize("sentences", [False, True])
def test_mini_ref_sailvos(tmp_path, sentences):
    corpus = write_scenes(tmp_path / "sail", sentences)
    result = curate_as_published(corpus, SAIL, tmp_path / "out", MINI_REF_SAILVOS, progress=False)
    mini = Corpus.load(tmp_path / "out")
    assert mini.check(images=True) == [] and sorted(mini.videos) == ["parking", "street"]
    street = mini.videos["street"]
    assert street.frames == street.objects[1].frames == ("000000", "000001", "000003", "000004", "000005") and street.category == "person" and street.suffix == ".bmp"
    assert mini.videos["parking"].frames == corpus.videos["parking"].frames  # ends without the target stay
    partly = mini.read_masks("street", ["000003", "000005"], [1]).sum((0, 2, 3))
    assert 0 < partly[0] < partly[1]  # occlusion is kept
    assert {p.name for p in (tmp_path / "out/train").iterdir()} == {"Images", "Annotations", "meta.json"} and {p.stem for p in (tmp_path / "out/train/Images/street").iterdir()} == set(street.frames)
    assert [len(v.expressions) for v in mini.videos.values()] == [int(sentences)] * 2 and result.report.steps[-1].expressions == 2 * sentences == sum(result.report.expressions_after.values())
    assert result.counted(len(result.report.steps) - 1)[:2] == (68, 3) and result.closest_cap is None and result.note() == "" and result.report.videos_before["lamp"] == 2
    assert "stand-in" not in (tmp_path / "out/meta_expressions/train/meta_expressions.json").read_text()


def test_sailvos_as_it_is_imported(tmp_path):
    "From the published folders to the mini corpus: the pedestrian is seen longest."
    corpus = sailvos_to_corpus(make_sailvos(tmp_path / "raw"), tmp_path / "corpus", {"Ped": "person", "Vehicle": "car"}, progress=False)
    curate_as_published(corpus, replace(SAIL, min_track_frames=3), tmp_path / "out", MINI_REF_SAILVOS, progress=False)
    mini = Corpus.load(tmp_path / "out")
    assert {v.category for v in mini.videos.values()} == {"person"} and len(mini.videos) == 2 and mini.check(images=True) == []
    raw = sailvos_to_corpus(tmp_path / "raw", tmp_path / "as named", progress=False)
    with pytest.raises(CurationError, match="no video shows dog or car or person.*Ped.*Give their names here"):
        apply_sailvos_rules(raw, SAIL)


# ---- the real size

def test_the_scale_benchmark_runs(tmp_path):
    "In small: it makes its corpus, curates and checks it both ways in turns, and says what they took; both keep the same videos."
    done = subprocess.run([sys.executable, "benchmarks/curation_scale.py", "--videos", "120", "--turns", "2", "--out", str(tmp_path / "scale.json")], cwd=Path(__file__).parents[1],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "scale.json").read_text())
    curation, check = written["cases"]["curation of 120 videos"], written["cases"]["check of 120 videos"]
    assert written["corpus"]["videos"] == 120 and check["problems"] == check["problems, by hand, with Pillow and NumPy"] == 0
    for case in (curation, check):
        for way in ("by hand, with Pillow and NumPy", "fsrvos"):
            assert 0 < case[way]["least_ms"] < case[way]["most_ms"] and case[way]["peak_mb"] > 0
        assert case["ratio time"] > 0 and case["ratio cpu"] > 0
    kept = list(curation["steps"].values())
    assert curation["videos that only one way keeps"] == 0 and kept == sorted(kept, reverse=True) and len(set(kept)) >= 4  # rules that drop something


def test_by_hand_finds_what_ours_finds(tmp_path, monkeypatch):
    "The references of the scale benchmark: the same videos in another corpus with brief tracks and rare classes; broken, missing and misshapen images, and objects that no mask has."
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    scale = importlib.import_module("curation_scale")
    monkeypatch.setattr(scale, "LEAST", 2), monkeypatch.setattr(scale, "MOST", 12)
    scale.make_corpus(tmp_path / "raw", 120)
    kept = scale.curation(tmp_path / "raw", tmp_path / "ours")["steps"]
    assert len(set(kept.values())) == len(kept) - 1, kept                             # all rules but one drop something
    scale.curation_by_hand(tmp_path / "raw", tmp_path / "hand")
    assert scale.videos_of(tmp_path / "hand") == scale.videos_of(tmp_path / "ours") and Corpus.load(tmp_path / "hand").check() == []
    sums = [{line for line in (tmp_path / way / "manifest.sha256").read_text().splitlines() if line.endswith(".png")} for way in ("ours", "hand")]
    assert sums[0] == sums[1] and len(sums[0]) > 1000
    assert scale.check_by_hand(tmp_path / "raw", tmp_path) == scale.check(tmp_path / "raw", tmp_path) == {"problems": 0}
    first, second, third = sorted((tmp_path / "raw/train/Annotations").iterdir())[:3]
    for path in (first / "00005.png", second / "00005.png", *third.iterdir()):
        path.unlink()                                                                # a link to an image of many
    (first / "00005.png").write_bytes(b"no image")
    Image.new("P", (10, 10), 1).save(second / "00005.png")
    for number in range(scale.FRAMES):
        Image.new("P", scale.SIZE[::-1], 9).save(third / f"{5 * number:05d}.png")
    ours, hand = (check(tmp_path / "raw", tmp_path)["problems"] for check in (scale.check, scale.check_by_hand))
    assert ours == hand > 4


def test_the_committed_scale_result_keeps_the_limits():
    written = json.loads((Path(__file__).parents[1] / "benchmarks/curation_scale.json").read_text())
    assert written["corpus"]["videos"] == 3471 and written["corpus"]["expressions"] == 12913
    curation = written["cases"]["curation of 3,471 videos"]
    assert curation["fsrvos"]["median_ms"] < 180_000 and curation["fsrvos"]["peak_mb"] < 2048


# ---- in one run

def test_from_the_published_archives(tmp_path):
    "Ref-YouTube-VOS and SAIL-VOS come out as published; others keep their classes, and their import stays beside them."
    make_ytvos(tmp_path / "ytvos"), make_sailvos(tmp_path / "sail"), make_jhmdb(tmp_path / "jhmdb")
    loose = {"min_videos": 1, "min_track_frames": 1, "max_videos": None}
    ytvos = curate_from("refytvos", tmp_path / "ytvos", tmp_path / "out", loose, progress=False)
    assert ytvos.paper is MINI_REF_YTVOS and set(Corpus.load(tmp_path / "out").videos_by_class) == {"dog"} and not (tmp_path / "out-imported").exists()
    with pytest.raises(CurationError, match="no video shows dog"):  # the game's own names
        curate_from("sailvos", tmp_path / "sail", tmp_path / "sail-out", loose, progress=False)
    report = curate_from("jhmdb", tmp_path / "jhmdb", tmp_path / "jhmdb-out", loose, progress=False)
    assert report.videos_after == {"person": 2} and Corpus.load(tmp_path / "jhmdb-out").check(images=True) == [] and len(Corpus.load(tmp_path / "jhmdb-out-imported").videos) == 2
    with pytest.raises(CurationError, match="jhmdb-out-imported: exists already; to curate it again"):
        curate_from("jhmdb", tmp_path / "jhmdb", tmp_path / "jhmdb-out", loose, progress=False)


def test_mistakes_are_told_before_a_long_import(tmp_path):
    make_jhmdb(tmp_path / "jhmdb")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/something").touch()
    for out, thresholds, told in (("full", {}, "give another folder"), ("out", {"min_videos": 9, "max_videos": 3}, "max_videos"), ("jhmdb", {}, "give another folder")):
        with pytest.raises(CurationError, match=told):
            curate_from("jhmdb", tmp_path / "jhmdb", tmp_path / out, thresholds, progress=False)
    with pytest.raises(CorpusError, match="cannot be read"):
        curate_from("jhmdb", tmp_path / "full", tmp_path / "out", {}, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "jhmdb"]
