"Every rule of curation, folds, the written mini corpus."
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fsrvos.data.corpus import Corpus, Expression, ObjectTrack, Video
from fsrvos.data.curation import (MINI_REF_SAILVOS_CLASSES, MINI_REF_YTVOS_CLASSES, CurationError, CurationRules, apply_rules, capped_videos,
                                  continuous_targets, curate, enough_videos, fold_classes, listed_classes, long_tracks, single_category,
                                  validation_split)

# the test classes of the four folds, as they follow from the numbers in §4 of the paper
TEST_CLASSES = {
    1: "hat raccoon crocodile hedgehog elephant shark cat bear fox sedan rabbit parrot",
    2: "plant squirrel penguin lion mouse giraffe dolphin zebra turtle sheep duck lizard",
    3: "hand bus motorbike earless_seal snail tiger cow airplane deer fish snake giant_panda",
    4: "horse boat truck whale camel frog dog leopard train bird monkey person",
}


def make_video(video_id, categories=("cat",), visible=None, sentences=None, frames=8):
    names = tuple(f"{t:05d}" for t in range(frames))
    tracks = {i: ObjectTrack(i, category, tuple(names[t] for t in (visible or {}).get(i, range(frames))))
              for i, category in enumerate(categories, start=1)}
    sentences = sentences or [(i,) for i in tracks]
    return Video(video_id, names, tracks, tuple(Expression(str(n), "a sentence", ids) for n, ids in enumerate(sentences)), Path("."), ".jpg")


def ids(videos):
    return [video.id for video in videos]


@pytest.mark.parametrize("fold", TEST_CLASSES)
def test_folds_of_the_paper(fold):
    train, test = fold_classes(MINI_REF_YTVOS_CLASSES, fold)
    assert test == TEST_CLASSES[fold].split()
    assert len(train) == 36 and sorted(train + test) == sorted(MINI_REF_YTVOS_CLASSES)
    assert train == [name for name in MINI_REF_YTVOS_CLASSES if name not in test]


def test_folds_by_the_formula():
    for fold in (1, 2, 3, 4):
        assert fold_classes(MINI_REF_YTVOS_CLASSES, fold)[1] == [c for i, c in enumerate(MINI_REF_YTVOS_CLASSES, 1) if (i - 1) % 4 == fold - 1]
    tested = [c for fold in (1, 2, 3, 4) for c in fold_classes(MINI_REF_YTVOS_CLASSES, fold)[1]]
    assert sorted(tested) == sorted(MINI_REF_YTVOS_CLASSES)
    assert fold_classes("abcde", 2, n_folds=3) == (["a", "c", "d"], ["b", "e"])
    assert MINI_REF_SAILVOS_CLASSES == ("dog", "car", "person")


@pytest.mark.parametrize("fold", [0, 5, -1])
def test_no_such_fold(fold):
    with pytest.raises(ValueError, match="folds 1 to 4"):
        fold_classes(MINI_REF_YTVOS_CLASSES, fold)


def test_validation_split():
    train, test = fold_classes(MINI_REF_YTVOS_CLASSES, 3)
    fit, held_out = validation_split(train, 3)
    assert len(held_out) == 6 and not set(fit) & set(held_out) and not set(held_out) & set(test) and set(fit) | set(held_out) == set(train)
    assert validation_split(train, 3) == (fit, held_out)
    assert validation_split(train[::-1], 3)[1] == held_out[::-1]  # which classes does not depend on the order
    for other in (validation_split(train, 3, seed=1), validation_split(train, 4)):
        assert other[1] != held_out
    with pytest.raises(ValueError, match="hold out at least one"):
        validation_split(train, 3, n=36)


def test_single_category():
    kept, dropped = single_category([make_video("a"), make_video("b", ("cat", "dog")), make_video("c", ("dog", "dog"))])
    assert ids(kept) == ["a", "c"] and dropped == {"b": "several categories: cat, dog"}


def test_listed_classes():
    kept, dropped = listed_classes([make_video("a"), make_video("b", ("broom",))], ("cat", "dog"))
    assert ids(kept) == ["a"] and "broom" in dropped["b"]


def test_long_tracks():
    video = make_video("a", ("cat", "cat"), visible={1: range(2)}, sentences=[(1,), (2,), (1, 2)])
    kept, dropped = long_tracks([video, make_video("b", visible={1: range(2)}), make_video("c", visible={1: range(3)})], 3)
    assert ids(kept) == ["a", "c"]
    assert [e.object_ids for e in kept[0].expressions] == [(2,)] and set(kept[0].objects) == {1, 2}
    assert set(dropped) == {"a object 1", "b object 1", "b"}


def test_enough_videos():
    videos = [make_video(f"cat{n}") for n in range(3)] + [make_video(f"dog{n}", ("dog",)) for n in range(2)]
    kept, dropped = enough_videos(videos, 3)
    assert ids(kept) == ["cat0", "cat1", "cat2"] and dropped == {"class dog": "2 videos, fewer than 3"}


def test_capped_videos():
    cats, dogs = [make_video(f"cat{n}") for n in range(9)], [make_video(f"dog{n}", ("dog",)) for n in range(3)]
    kept, dropped = capped_videos(cats + dogs, 4, seed=0)
    assert Counter(video.category for video in kept) == {"cat": 4, "dog": 3} and len(dropped) == 5
    assert capped_videos(dogs + cats[::-1], 4, seed=0)[1] == dropped  # neither order nor other classes matter
    assert capped_videos(cats, 4, seed=0)[1] == dropped
    assert capped_videos(cats, 4, seed=1)[1] != dropped


def test_continuous_targets():
    video = make_video("a", ("dog", "dog"), visible={1: [1, 2, 5, 6], 2: [0, 4]}, sentences=[(1,)])
    kept, dropped = continuous_targets([video])
    assert kept[0].frames == ("00000", "00001", "00002", "00005", "00006", "00007")  # ends stay, the gap of the target goes
    assert set(dropped) == {"a frame 00003", "a frame 00004"}
    assert kept[0].objects[2].frames == ("00000",)  # not a target: its absences do not count
    assert continuous_targets([make_video("b")])[0][0].frames == make_video("b").frames


def test_objects_seen_only_in_deleted_frames_are_gone():
    video = make_video("a", ("dog", "dog"), visible={1: [0, 1, 6, 7], 2: [3]}, sentences=[(1,), (2,)])
    kept, _ = continuous_targets([video])
    assert set(kept[0].objects) == {1} and [e.object_ids for e in kept[0].expressions] == [(1,)]


def test_steps_add_up(tiny_corpus):
    corpus = tiny_corpus(videos_per_class=4)
    rules = CurationRules(classes=("dog", "cat", "bus", "whale"), min_videos=2, max_videos=3)
    videos, report = apply_rules(corpus, rules)
    assert [(step.videos, step.classes) for step in report.steps] == [(20, 5), (20, 5), (12, 3), (12, 3), (12, 3), (9, 3)]
    assert report.steps[-1].expressions == sum(len(video.expressions) for video in videos) == 9 * 7
    assert report.videos_after == {"dog": 3, "cat": 3, "bus": 3} and list(report.videos_after) == ["dog", "cat", "bus"]
    assert "| at most 3 videos a class | 9 | 3 | 63 | 3 |" in report.table()
    assert "| 4 | whale | 0 | 0 | 0 |" in report.class_table()
    assert len(report.figure().axes[0].patches) == 2 * 6


def test_curated_corpus_on_disk(tiny_corpus, tmp_path):
    corpus = tiny_corpus()
    out = tmp_path / "deep/curated"
    report = curate(corpus, CurationRules(classes=("cat", "dog", "fish"), min_videos=1, max_videos=2), out)
    curated = Corpus.load(out)
    assert curated.check(images=True) == [] and len(curated.videos) == 6
    assert all(curated.videos[i] == replace(corpus.videos[i], folder=curated.videos[i].folder) for i in curated.videos)
    assert json.loads((out / "corpus.json").read_text()) == {"frames": "../../corpus"}
    assert json.loads((out / "folds.json").read_text())["2"] == {"train": ["cat", "fish"], "test": ["dog"]}
    written = json.loads((out / "curation.json").read_text())
    assert written["videos_after"] == report.videos_after and written["rules"]["max_videos"] == 2
    assert sorted(p.name for p in out.iterdir()) == ["corpus.json", "curation.json", "folds.json", "meta_expressions", "train"]
    assert [p.name for p in out.parent.iterdir()] == ["curated"]


def test_dropped_classes_keep_the_others_numbers(tiny_corpus, tmp_path):
    curate(tiny_corpus(classes=["cat", "hat"]), CurationRules(min_videos=2), tmp_path / "out")
    folds = json.loads((tmp_path / "out/folds.json").read_text())
    assert folds["1"] == {"train": [], "test": ["hat", "cat"]} and folds["2"]["train"] == ["hat", "cat"]


def test_same_bytes_twice_and_in_place(tiny_corpus, tmp_path):
    corpus, rules = tiny_corpus(), CurationRules(classes=("cat", "dog"), min_videos=1, max_videos=3)

    def content():
        return {path.relative_to(tmp_path / "out"): path.read_bytes() for path in (tmp_path / "out").rglob("*.json")}
    curate(corpus, rules, tmp_path / "out")
    first = content()
    (tmp_path / "out/left over").write_text("")
    curate(corpus, rules, tmp_path / "out")
    assert content() == first and not (tmp_path / "out/left over").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "out"]


def test_curating_twice_points_to_the_frames(tiny_corpus, tmp_path):
    rules = CurationRules(classes=("cat",), min_videos=1, max_videos=None)
    curate(tiny_corpus(), rules, tmp_path / "one")
    curate(Corpus.load(tmp_path / "one"), rules, tmp_path / "two")
    assert json.loads((tmp_path / "two/corpus.json").read_text()) == {"frames": "../corpus"}
    Corpus.load(tmp_path / "two").read_frames("cat_0", ["00000"])


def test_interrupted_curation_leaves_the_old_one(tiny_corpus, tmp_path, monkeypatch):
    corpus, rules = tiny_corpus(), CurationRules(classes=("cat",), min_videos=1)
    curate(corpus, rules, tmp_path / "out")
    before = (tmp_path / "out/curation.json").read_bytes()
    monkeypatch.setattr("fsrvos.data.curation._folds", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        curate(corpus, replace(rules, max_videos=1), tmp_path / "out")
    assert (tmp_path / "out/curation.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "out"]


def test_nothing_left(tiny_corpus, tmp_path):
    with pytest.raises(CurationError, match="no video is left after the rule 'the 1 listed classes'"):
        curate(tiny_corpus(), CurationRules(classes=("whale",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_is_never_something_else(tiny_corpus, tmp_path):
    corpus, rules = tiny_corpus(), CurationRules(classes=("cat",), min_videos=1)
    for out in (corpus.root, tmp_path, corpus.root / "train/meta.json"):
        with pytest.raises(CurationError, match="give another"):
            curate(corpus, rules, out)
    curate(corpus, rules, tmp_path / "out")
    with pytest.raises(CurationError, match="being curated"):
        curate(Corpus.load(tmp_path / "out"), rules, tmp_path / "out")


@pytest.mark.parametrize("changes, words", [({"min_videos": 5, "max_videos": 4}, "max_videos"), ({"min_track_frames": 0}, "min_track_frames"),
                                            ({"classes": ()}, "classes"), ({"classes": ("cat", "cat")}, "classes")])
def test_rules_that_contradict_themselves(changes, words):
    with pytest.raises(CurationError, match=words):
        CurationRules(**changes)


def test_sailvos_rules():
    rules = CurationRules.sailvos(min_track_frames=4)
    assert rules.classes == MINI_REF_SAILVOS_CLASSES and rules.continuous_targets and rules.max_videos is None and rules.min_track_frames == 4
