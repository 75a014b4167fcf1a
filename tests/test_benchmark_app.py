"A model on the benchmarks of others: where supports come from, archives and numbers from the command line."
from functools import partial
import json
import zipfile

import numpy as np
import pytest

from fsrvos.apps.benchmark import SegmenterPredictor, SupportError, Supports, class_of, draw_supports, measure_on, read_task, write_archive
from fsrvos.data.corpus import write_frame, write_masks
from fsrvos.evaluation.protocol import Query
from fsrvos.evaluation.submissions import submission_problems
from tests.test_adapters import make_a2d, make_jhmdb
from tests.test_benchmarks import make_mevis_valid, make_refytvos_valid


class Found:
    def __init__(self, masks, scores): self.masks, self.scores = masks, scores


class Segments:
    "In a Segmenter's place: answers with two halves of whatever is brighter than its support's mean, none for a sentence that says none."
    level, shown = None, ()

    def support(self, frames, masks, expression):
        self.level, self.shown = float(frames[masks].mean()), (*self.shown, expression)
        return self

    def segment(self, video, expression, progress=True):
        bright = (video.mean(3) > self.level - 1)
        left = np.arange(video.shape[2]) < video.shape[2] // 2
        return Found(np.stack([bright & left, bright & ~left]), [.4, .7]) if "none" not in expression else Found(np.zeros((0, *video.shape[:3]), bool), [])


def question(text, name="", video="v"):
    return Query(video, "0", text, ("00000",), (20, 36), (), name)


# ---- supports

def test_a_support_for_every_class_that_has_one(tiny_corpus):
    train = tiny_corpus(classes=("cat", "dog", "bus"), videos_per_class=3)
    drawn = draw_supports(train, shots=2)
    assert set(drawn) == {"cat", "dog", "bus"} and draw_supports(train, shots=2) == drawn
    for name, support in drawn.items():
        track = train.videos[support["video"]].objects[support["object_id"]]
        assert track.category == name and len(support["frames"]) == 2 and set(support["frames"]) <= set(track.frames)
    assert any(draw_supports(train, shots=2, seed=s) != drawn for s in range(1, 4))
    never = [support["video"] for support in drawn.values()]
    assert not {s["video"] for s in draw_supports(train, never=never).values()} & set(never)
    assert set(draw_supports(train, never=[v for v in train.videos if v.startswith("dog")])) == {"cat", "bus"}


@pytest.mark.parametrize("text, expected", [("a Dog.", "dog"), ("two dogs and a cat", "dog"), ("foxes in the snow", "fox"), ("an earless seal", "earless_seal"), ("hotdog", ""), ("it moves", ""),
                                            ("a seal", "seal"), ("the man's cat", "cat")])
def test_the_class_that_a_sentence_names(text, expected):
    assert class_of(text, ["cat", "dog", "fox", "seal", "earless_seal"]) == expected


def test_questions_get_the_support_of_their_class(tiny_corpus):
    train = tiny_corpus(classes=("cat", "dog"), videos_per_class=1)
    predictor, given = SegmenterPredictor(Segments()), (np.full((1, 8, 8, 3), 9, np.uint8), np.ones((1, 8, 8), bool), "a thing")
    asked = [question("a dog"), question("it"), question("the dog", "whale"), question("it", "cat")]
    assert [q.class_name for q in Supports.of(predictor, train, given).named(asked)] == ["dog", "", "", "cat"]
    with pytest.raises(SupportError, match=r"2 of 4 sentences have no support: v/0 'it'; v/0 'the dog' \(a whale\)\. Give --train"):
        Supports.of(predictor, train, None).named(asked)
    supports = Supports.of(predictor, train, given)
    assert {name: state.shown for name, state in supports.states.items()} == {"": ("a thing",), **{c: (supports.drawn[c]["expression"],) for c in ("cat", "dog")}}
    assert predictor.segmenter.shown == ()  # every state is its own


# ---- archives and numbers

def test_an_archive_of_all_that_is_found(tiny_corpus, tmp_path):
    "Objects count together; where nothing is found the mask is empty."
    root = make_mevis_valid(tmp_path / "raw")
    for t, frame in enumerate(("00000", "00001")):
        pixels = np.zeros((20, 36, 3), np.uint8)
        pixels[3:9, 4 + t:30] = 250
        write_frame(root / f"JPEGImages/v1/{frame}.jpg", pixels)
    (root / "meta_expressions.json").write_text((root / "meta_expressions.json").read_text().replace('"one"', '"none"'))
    task, predictor = read_task("mevis", root, tmp_path), SegmenterPredictor(Segments())
    given = (np.full((1, 8, 8, 3), 150, np.uint8), np.ones((1, 8, 8), bool), "a thing")
    path = write_archive(predictor, task.asked, Supports.of(predictor, None, given), tmp_path / "out.zip", progress=False)
    assert submission_problems(path, task.asked, progress=False) == []
    from PIL import Image
    with zipfile.ZipFile(path) as archive:
        both, nothing = (np.asarray(Image.open(archive.open(f"v1/{key}/00001.png"))) > 0 for key in "01")
    expected = np.zeros((20, 36), bool)
    expected[3:9, 5:30] = True
    assert (both ^ expected).mean() < .02 and not nothing.any()


def test_numbers_of_a2d_and_jhmdb(tmp_path):
    "A2D is asked about its test split; JHMDB in the published frames where their list is there."
    given, predictor = (np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 8, 8), bool), "a thing"), SegmenterPredictor(Segments())  # all is brighter than black
    task = read_task("a2d", make_a2d(tmp_path / "a2d"), tmp_path / "scratch", progress=False)
    assert sorted(task.asked.videos) == ["clip"]
    numbers = measure_on("a2d", task.asked, predictor, Supports.of(predictor, None, given), progress=False)
    assert numbers["samples"] == 2 and numbers["overall_iou"] == pytest.approx(42 / 720) and numbers["P@0.5"] == 0
    root = make_jhmdb(tmp_path / "jhmdb")
    assert read_task("jhmdb", root, tmp_path / "a", progress=False).frames is None
    (root / "jhmdb_sentences_samples_metadata.json").write_text(json.dumps([["one", "x/one/00001.png", "m", 4, "a man runs"]]))
    task = read_task("jhmdb", root, tmp_path / "b", progress=False)
    assert measure_on("jhmdb", task.asked, predictor, Supports.of(predictor, None, given), task.frames, progress=False)["samples"] == 1


# ---- command line

@pytest.fixture
def fsrvos(run_cli):
    return partial(run_cli, "benchmark")


@pytest.fixture
def support(tmp_path):
    ids = np.zeros((20, 36), np.uint8)
    ids[4:12, 5:20] = 1
    write_frame(tmp_path / "support/00.jpg", np.repeat(ids[..., None] * 200, 3, 2))
    write_masks(tmp_path / "support/00.png", ids)
    (tmp_path / "support/expression.txt").write_text("the bright one")
    return tmp_path / "support"


@pytest.fixture
def fake_model(monkeypatch):
    monkeypatch.setattr("fsrvos.apps.segment.Segmenter.from_pretrained", classmethod(lambda cls, path, **options: Segments()))


def test_an_archive_from_the_command_line(fsrvos, fake_model, support, tmp_path):
    root, out = make_refytvos_valid(tmp_path / "raw"), tmp_path / "new/out.zip"
    status, said, err = fsrvos("refytvos", "--raw", root, "--support", support, "--out", out)
    assert (status, said) == (0, f"{out}: 3 sentences about 2 videos\n"), err
    assert fsrvos("refytvos", "--raw", root, "--out", out, "--check")[:2] == (0, f"{out}: whole\n")
    with zipfile.ZipFile(out) as whole, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        for name in whole.namelist()[2:]:
            bad.writestr(name, whole.read(name))
    status, _, err = fsrvos("refytvos", "--raw", root, "--out", tmp_path / "bad.zip", "--check")
    assert status == 2 and err.count("is missing") == 2 and "2 problem(s), listed above" in err.splitlines()[-1]
    assert fsrvos("refytvos", "--raw", root, "--support", support, "--out", out)[2] == f"fsrvos: {out} exists; remove it, or name another file\n"


def test_numbers_from_the_command_line(fsrvos, fake_model, support, tmp_path, tiny_corpus):
    train = tiny_corpus(classes=("person",), videos_per_class=2)
    status, said, err = fsrvos("jhmdb", "--raw", make_jhmdb(tmp_path / "raw"), "--train", train.root, "--shots", 2, "--seed", 3, "--out", tmp_path / "out.json")
    assert status == 0 and "mean_iou" in said and "P@0.5" in said, err
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["benchmark"] == "jhmdb" and written["measures"]["samples"] == 3 and written["settings"]["supports"] == draw_supports(train, 2, 3) and written["settings"]["seed"] == 3


@pytest.mark.parametrize("argv, told", [(("davis", "--raw", "raw"), "'davis' is no benchmark; known: refytvos, refytvos-test, mevis, refdavis, a2d, jhmdb"), (("refytvos", "--raw", "raw"), "no support: give --train"),
                                        (("a2d", "--raw", "raw", "--check"), "a2d has no archive"), (("mevis", "--raw", "raw", "--support", "nowhere"), "nowhere: no such folder"),
                                        (("mevis", "--raw", "raw", "--train", "nowhere"), "nowhere: is not a folder"), (("mevis", "--raw", "raw", "--support", "support", "--model", "nowhere"), "nowhere: no model"),
                                        (("mevis", "--raw", "raw", "--check"), "raw/meta_expressions.json: cannot be read"), (("mevis", "--raw", "raw", "--support", "support", "--device", "tpu"), "--device tpu")])
def test_mistakes_are_told_and_nothing_is_written(fsrvos, support, tmp_path, monkeypatch, argv, told):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, _, err = fsrvos(*argv, "--out", "out.zip")
    assert status == 2 and told in err and "Traceback" not in err and sorted(tmp_path.rglob("*")) == before


def test_sentences_without_a_support_are_told(fsrvos, fake_model, tmp_path, tiny_corpus):
    train = tiny_corpus(classes=("dog", "cat"), videos_per_class=1)
    status, _, err = fsrvos("refytvos", "--raw", make_refytvos_valid(tmp_path / "raw"), "--train", train.root, "--out", tmp_path / "out.zip")
    assert status == 2 and "2 of 3 sentences have no support: 0a/7 'le café'; ß/0 'it'" in err and not (tmp_path / "out.zip").exists()


def test_the_models_that_come_along_answer(fsrvos, support, tmp_path):
    "The real thing, in small: a model for any number of objects on a split of MeViS."
    root = make_mevis_valid(tmp_path / "raw")
    status, _, err = fsrvos("mevis", "--raw", root, "--support", support, "--model", "fsrvos-demo-multi", "--short", 32, "--longest", 64, "--device", "cpu", "--out", tmp_path / "out.zip")
    assert status == 0, err
    assert fsrvos("mevis", "--raw", root, "--out", tmp_path / "out.zip", "--check")[0] == 0
