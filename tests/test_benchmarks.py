"Benchmarks of others: measured as they measure, and archives that their servers take."
import io
import itertools
import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsrvos.data.adapters import convert
from fsrvos.data.corpus import CorpusError, write_frame
from fsrvos.data.ref_davis import refdavis_to_corpus
from fsrvos.evaluation.benchmarks import (DAVIS_SETS, PRECISIONS, BenchmarkError, Sample, answers, corpus_queries, davis_scores, davis_summary, evaluate_davis, jhmdb_frames, one_object_a_pixel,
                                          sentence_measures, sentence_samples)
from fsrvos.evaluation.metrics import contour_accuracy, region_similarity
from fsrvos.evaluation.protocol import Prediction, decode_masks, encode_masks
from fsrvos.evaluation.submissions import SubmissionError, mevis_split, refytvos_split, submission_problems, write_submission
from tests.test_adapters import make_a2d, make_jhmdb, make_refdavis

NO_SUPPORT = dict.fromkeys(("person", "dog", "car", "bear", "adult", "bird", "object", "cat", "bus", "fish", "hat"))


class Knows:
    "Answers with the truth, or with what `spoil` makes of it."
    def __init__(self, corpus, spoil=lambda masks, query: masks): self.corpus, self.spoil, self.asked = corpus, spoil, []

    def predict_batch(self, states, source, queries):
        self.asked.append([(q.video, q.expression_id) for q in queries])
        masks = [self.corpus.read_masks(q.video, list(q.frames), list(q.object_ids)).any(0) for q in queries]
        return [Prediction(self.spoil(m, q), 1.0) for m, q in zip(masks, queries)]


# ---- questions

def test_questions_in_videos_of_several_classes(tmp_path):
    corpus = refdavis_to_corpus(make_refdavis(tmp_path / "raw"), tmp_path / "out", split="val", progress=False)
    asked = {(q.video, q.expression_id): q for q in corpus_queries(corpus)}
    man, dog = asked["été-jump", "annot1_first_frame_1"], asked["été-jump", "annot1_first_frame_2"]
    assert (man.class_name, dog.class_name) == ("person", "dog") and man.distractors == 0 and man.size == (20, 36) and man.frames == ("00000", "00003", "00010")


def test_a_video_is_asked_about_once_and_each_answer_looked_at(tiny_corpus):
    corpus = tiny_corpus(videos_per_class=1)
    method = Knows(corpus)
    assert [q for q, _ in answers(method, None, corpus_queries(corpus), NO_SUPPORT, progress=False)] == sorted(corpus_queries(corpus), key=lambda q: q.video)
    assert [len({video for video, _ in call}) for call in method.asked] == [1] * 5
    for spoil in (lambda m, q: m[:-1], lambda m, q: m.astype(float), lambda m, q: m[:, ::2]):
        with pytest.raises(BenchmarkError, match="bus_0/0: the answer is .* wanted is bool"):
            list(answers(Knows(corpus, spoil), None, corpus_queries(corpus), NO_SUPPORT, progress=False))
    with pytest.raises(BenchmarkError, match="no support for 2 class.*'bus', 'fish'"):
        next(answers(method, None, corpus_queries(corpus), {"cat": None, "dog": None, "hat": None}))


# ---- Ref-DAVIS17

@pytest.fixture
def davis(tmp_path):
    "The validation split in miniature; the man in the car has sentences too."
    root = make_refdavis(tmp_path / "raw")
    for path in (root / "davis_text_annotations").iterdir():
        path.write_bytes(path.read_bytes() + b'classic-car 2 "the driver"\n')
    return refdavis_to_corpus(root, tmp_path / "out", split="val", progress=False)


def test_davis_of_one_who_knows(davis):
    records = evaluate_davis(Knows(davis), davis, None, NO_SUPPORT, progress=False)
    assert len(records) == 4 * 4 and {r["set"] for r in records} == set(DAVIS_SETS)
    summary = davis_summary(records)
    assert summary["JF"] == summary["own_JF"] == 1 and summary["objects"] == 4 and list(summary["sets"]) == list(DAVIS_SETS)


def test_davis_averages_objects_then_sets(davis):
    "One annotator's sentences about one object fail in one frame of three: objects of long and short videos count the same, so do the sets."
    def spoil(masks, query):
        wrong = query.video == "été-jump" and query.expression_id == "annot2_full_video_1"
        return masks & (np.arange(len(masks)) > 0)[:, None, None] if wrong else masks
    summary = davis_summary(evaluate_davis(Knows(davis, spoil), davis, None, NO_SUPPORT, progress=False))
    assert summary["sets"]["annot2_full_video"]["J"] == pytest.approx((2 / 3 + 3) / 4) and summary["sets"]["annot1_full_video"]["J"] == 1
    assert summary["J"] == pytest.approx((3 + (2 / 3 + 3) / 4) / 4) and summary["JF"] == pytest.approx((summary["J"] + summary["F"]) / 2)


def test_davis_names_objects_nobody_speaks_of(tmp_path):
    corpus = refdavis_to_corpus(make_refdavis(tmp_path / "raw"), tmp_path / "out", split="val", progress=False)
    with pytest.raises(BenchmarkError, match="4 object.*annot1_first_frame: classic-car object 2"):
        evaluate_davis(Knows(corpus), corpus, None, NO_SUPPORT, progress=False)


def test_davis_pairs_as_the_best_permutation_does():
    rng = np.random.default_rng(0)
    found, truth = rng.random((2, 3, 4, 12, 16)) > .6
    scores = davis_scores(found, truth)
    j = np.array([[region_similarity(f, t).mean() for f in found] for t in truth])
    f = np.array([[contour_accuracy(x, t).mean() for x in found] for t in truth])
    best = max(itertools.permutations(range(3)), key=lambda p: sum(j[i, k] + f[i, k] for i, k in enumerate(p)))
    assert scores.J.tolist() == [j[i, k] for i, k in enumerate(best)] and scores.F.tolist() == [f[i, k] for i, k in enumerate(best)]
    assert scores.own_J.tolist() == [j[i, i] for i in range(3)] and (scores.J + scores.F).sum() >= (scores.own_J + scores.own_F).sum()


def test_a_pixel_belongs_to_one_object():
    everywhere, left = np.ones((1, 2, 4), bool), np.zeros((1, 2, 4), bool)
    left[..., :2] = True
    ids = lambda a, b: one_object_a_pixel({3: Prediction(everywhere, a), 5: Prediction(left, b)})[0, 0].tolist()
    assert ids(.2, .9) == [5, 5, 3, 3] and ids(.9, .2) == [3] * 4 and ids(.5, .5) == [3] * 4


# ---- A2D- and JHMDB-Sentences

def random_samples(count, seed):
    "Squares that are answered more or less well, with scores that say little about how well."
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        truth, answer = np.zeros((2, 1, 24, 32), bool)
        top, left = rng.integers(0, 10, 2)
        truth[0, top:top + 10, left:left + 12] = True
        down, right = rng.integers(0, 4, 2)
        answer[0, top + down:top + down + 10, left + right:left + right + 12] = True
        made.append(Sample(encode_masks(answer)[0], encode_masks(truth)[0], float(rng.random())))
    return made


def plain_average_precision(iou, score, threshold):
    "Average precision of one answer an image: precision, made monotone from the right, at 101 recalls."
    right = (iou >= threshold)[np.argsort(-score, kind="stable")]
    recall, precision = right.cumsum() / len(right), right.cumsum() / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return np.mean([precision[np.searchsorted(recall, level)] if level <= recall[-1] else 0 for level in np.linspace(0, 1, 101)])


@pytest.mark.parametrize("seed", range(3))
def test_measures_of_sentences_by_their_definitions(seed):
    samples = random_samples(40, seed)
    pairs = [(decode_masks([s.answer])[0], decode_masks([s.truth])[0]) for s in samples]
    iou, score = np.array([(a & t).sum() / (a | t).sum() for a, t in pairs]), np.array([s.score for s in samples])
    measured = sentence_measures(samples)
    assert measured["overall_iou"] == pytest.approx(sum((a & t).sum() for a, t in pairs) / sum((a | t).sum() for a, t in pairs))
    assert measured["mean_iou"] == pytest.approx(iou.mean()) and [measured[f"P@{k}"] for k in PRECISIONS] == pytest.approx([(iou > k).mean() for k in PRECISIONS])
    assert measured["mAP"] == pytest.approx(np.mean([plain_average_precision(iou, score, k) for k in np.linspace(.5, .95, 10)]))
    assert measured["AP50"] == pytest.approx(plain_average_precision(iou, score, .5)) and 0 < measured["mAP"] < measured["AP50"] < 1


def test_an_empty_answer_is_wrong_and_no_error():
    empty = Sample(encode_masks(np.zeros((1, 8, 8), bool))[0], encode_masks(np.ones((1, 8, 8), bool))[0], .9)
    assert {k: v for k, v in sentence_measures([empty]).items() if k != "samples"} == dict.fromkeys(("overall_iou", "mean_iou", "mAP", "AP50", *(f"P@{k}" for k in PRECISIONS)), 0)


def test_a2d_in_miniature(tmp_path):
    "A sample for each sentence and annotated frame in which its object is seen: the man in two of three frames, the dog in three, a bird in two."
    corpus = convert("a2d", make_a2d(tmp_path / "raw"), tmp_path / "out", progress=False)
    samples = sentence_samples(Knows(corpus), corpus, None, NO_SUPPORT, progress=False)
    assert sentence_measures(samples) == {"samples": 9, **dict.fromkeys(("overall_iou", "mean_iou", "mAP", "AP50", *(f"P@{k}" for k in PRECISIONS)), pytest.approx(1))}


def test_jhmdb_in_the_published_frames(tmp_path):
    corpus = convert("jhmdb", make_jhmdb(tmp_path / "raw"), tmp_path / "out", progress=False)
    assert len(sentence_samples(Knows(corpus), corpus, None, NO_SUPPORT, progress=False)) == 2 + 1
    (tmp_path / "samples.json").write_text(json.dumps([["man_[1]_über", f"jhmdb_sentences/Rename_Images/wave/man_[1]_über/0000{n}.png", "x.mat", 4, "he waves"] for n in (2, 3)]))
    samples = sentence_samples(Knows(corpus), corpus, None, NO_SUPPORT, jhmdb_frames(tmp_path / "samples.json"), progress=False)
    assert len(samples) == 1  # the puppet is not seen in frame 3, and the other video is not listed


# ---- submission archives

def make_refytvos_valid(root):
    "Two videos of `valid`, one of `test`; gaps in frame numbers, a quote, another shape, an id that is no number."
    videos = {"0a": {"frames": ["00000", "00005", "00020"], "expressions": {"0": {"exp": 'a "big" dog'}, "7": {"exp": "le  café\n"}}}, "ß": {"frames": ["00010"], "expressions": {"0": {"exp": "it"}}},
              "zz": {"frames": ["00000"], "expressions": {"0": {"exp": "of the test split"}}}}
    for split, listed in (("valid", videos), ("test", {"zz": videos["zz"]})):
        path = root / f"meta_expressions/{split}/meta_expressions.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"videos": listed}))
    for video, size in (("0a", (20, 36)), ("ß", (40, 24))):
        for frame in (*videos[video]["frames"], "00099"):
            write_frame(root / f"valid/JPEGImages/{video}/{frame}.jpg", np.zeros((*size, 3), np.uint8))
    return root


def make_mevis_valid(root):
    "A split of MeViS without masks: sentences only."
    for frame in ("00000", "00001"):
        write_frame(root / f"JPEGImages/v1/{frame}.jpg", np.zeros((20, 36, 3), np.uint8))
    (root / "meta_expressions.json").write_text(json.dumps({"videos": {"v1": {"frames": ["00000", "00001"], "expressions": {"0": {"exp": "both"}, "1": {"exp": "one"}}}}}))
    return root


SPLITS = {"refytvos": (make_refytvos_valid, refytvos_split, {f"Annotations/0a/{e}/{f}.png" for e in "07" for f in ("00000", "00005", "00020")} | {"Annotations/ß/0/00010.png"}),
          "mevis": (make_mevis_valid, mevis_split, {f"v1/{e}/{f}.png" for e in "01" for f in ("00000", "00001")})}


@pytest.fixture(params=SPLITS)
def split(request, tmp_path):
    make, read, members = SPLITS[request.param]
    return read(make(tmp_path / "raw")), members


def checkered(query):
    rows, columns = np.indices(query.size)
    return np.stack([(rows // 3 + columns // 4 + t + int(query.expression_id)) % 2 == 0 for t in range(len(query.frames))])


def test_an_archive_in_the_published_layout(split, tmp_path):
    split, members = split
    path = write_submission(tmp_path / "new/out.zip", split, ((q, Prediction(checkered(q), .5)) for q in split.queries()))
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == members and len(archive.namelist()) == len(members)
        query = split.queries()[0]
        for mask, frame in zip(checkered(query), query.frames):
            image = Image.open(archive.open(next(n for n in archive.namelist() if n.endswith(f"{query.video}/{query.expression_id}/{frame}.png"))))
            assert image.mode == "L" and (np.asarray(image) == mask * 255).all()
    assert submission_problems(path, split, progress=False) == [] and [p.name for p in path.parent.iterdir()] == ["out.zip"]


def test_questions_of_a_split_without_masks(tmp_path):
    split = refytvos_split(make_refytvos_valid(tmp_path))
    assert {(q.video, q.expression_id): (q.text, q.size, q.object_ids) for q in split.queries()} == {("0a", "0"): ('a "big" dog', (20, 36), ()), ("0a", "7"): ("le café", (20, 36), ()),
                                                                                                  ("ß", "0"): ("it", (40, 24), ())}
    assert split.read_frames("0a", ["00020", "00000"]).shape == (2, 20, 36, 3)


def png(array, mode=None):
    buffer = io.BytesIO()
    (Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def test_everything_wrong_with_an_archive_at_once(split, tmp_path):
    split, members = split
    whole = write_submission(tmp_path / "whole.zip", split, ((q, Prediction(checkered(q), .5)) for q in split.queries()))
    with zipfile.ZipFile(whole) as archive:
        content = {name: archive.read(name) for name in sorted(archive.namelist())}
    missing, small, grey, *others = content
    shape = np.asarray(Image.open(io.BytesIO(content[grey]))).shape
    del content[missing]
    content[small] = png(np.zeros((3, 3), np.uint8))
    content[grey] = png(np.random.default_rng(0).integers(0, 255, shape, np.uint8))
    told = {f"{missing}: is missing", f"{small}: is 3x3 px", f"{grey}: is not binary", "README.txt: is asked for by no list"}
    content["README.txt"] = b"masks"
    if others:
        content[others[0]] = content[others[0]][:40]
        told.add(f"{others[0]}: cannot be decoded")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("empty folder/", b"")
        for name, data in content.items():
            archive.writestr(name, data)
    problems = submission_problems(tmp_path / "bad.zip", split, progress=False)
    assert len(problems) == len(told) and all(any(words in str(problem) for problem in problems) for words in told) and all(p.mend for p in problems)


def test_masks_of_other_kinds(tmp_path):
    "0 and 1, or a palette, mean the same to a server; colours do not. A mask that is huge is not decoded."
    split = mevis_split(make_mevis_valid(tmp_path / "raw"))
    ones = np.ones((20, 36), np.uint8)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("v1/0/00000.png", png(ones * np.arange(2, dtype=np.uint8).repeat(18)))
        archive.writestr("v1/0/00001.png", png(ones * 255, "P"))
        archive.writestr("v1/1/00000.png", png(np.stack([ones] * 3, 2)))
        archive.writestr("v1/1/00001.png", png(np.zeros((20000, 20000), bool)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("v1/1/00001.png", png(ones))
    problems = [str(p) for p in submission_problems(tmp_path / "a.zip", split, progress=False)]
    assert [any(words in p for p in problems) for words in ("1/00000.png: is in mode RGB", "1/00001.png: cannot be decoded (Image size", "1/00001.png: is there 2 times")] == [True] * 3 and len(problems) == 3
    (tmp_path / "b.zip").write_bytes(b"no archive")
    assert "is no readable archive" in str(submission_problems(tmp_path / "b.zip", split)[0]) and "is no readable archive" in str(submission_problems(tmp_path / "none.zip", split)[0])


def test_nothing_half_is_left(split, tmp_path):
    split, _ = split
    queries = split.queries()
    right = [(q, Prediction(checkered(q), .5)) for q in queries]
    for answered, told in ((right[1:], f"1 of {len(queries)} sentences were not answered: {queries[0].video}/0"), (right[:1] + right, "answered twice"),
                           ([(queries[0], Prediction(checkered(queries[0])[:, 1:], .5))], "wanted is bool")):
        with pytest.raises(SubmissionError, match=told):
            write_submission(tmp_path / "out.zip", split, answered)
    def stopped():
        yield right[0]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        write_submission(tmp_path / "out.zip", split, stopped())
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


BAD_LISTS = [(lambda v: v["0a"].pop("frames"), "videos.0a.frames: is missing"), (lambda v: v["0a"]["expressions"]["0"].update(exp=" "), "videos.0a.expressions"),
             (lambda v: v["ß"].update(frames=["../../x"]), "'../../x' is not a plain name"), (lambda v: v.update({"a/b": v["ß"]}), "'a/b' is not a plain name"),
             (lambda v: v["ß"]["frames"].append("00015"), "ß/00015.jpg: there is no such frame")]


def test_everything_wrong_with_the_lists_at_once(tmp_path):
    root = make_refytvos_valid(tmp_path / "raw")
    path = root / "meta_expressions/valid/meta_expressions.json"
    content = json.loads(path.read_text())
    for damage, told in BAD_LISTS:
        one = json.loads(json.dumps(content))
        damage(one["videos"])
        path.write_text(json.dumps(one))
        with pytest.raises(CorpusError) as error:
            refytvos_split(root)
        assert told in str(error.value)
    for damage, _ in (BAD_LISTS[0], BAD_LISTS[4]):
        damage(content["videos"])
    path.write_text(json.dumps(content))
    with pytest.raises(CorpusError) as error:
        refytvos_split(root)
    assert len(error.value.problems) == 2
    for wrong in ('{"videos": {}}', "[", '{"videos": {"zz": {"frames": ["00000"], "expressions": {"0": {"exp": "x"}}}}}'):
        path.write_text(wrong)
        with pytest.raises(CorpusError, match="meta_expressions.json"):
            refytvos_split(root)
    with pytest.raises(CorpusError, match="cannot be read"):
        mevis_split(tmp_path)


# ---- make bench: this project's own benchmarks

BENCH = Path(__file__).resolve().parents[1] / "scripts/bench.py"


def test_what_a_benchmark_leaves_out_is_not_done(tmp_path, capsys):
    says = {"all": "print('left out: no tiles here')", "fails": "print('left out: this'); raise SystemExit(3)", "part": "print('left out: a, since b'); print('c {}')", "whole": "print('what is left out: x')"}
    for name, does in says.items():
        (tmp_path / f"{name}.py").write_text(f'if __name__ == "__main__":\n    {does}')
    bench = runpy.run_path(str(BENCH))
    assert bench["run_all"](bench["scripts"](tmp_path)) == ["fails"]
    told = [line.split(" after")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["all: left out", "  left out: no tiles here", "fails: FAILED", "  left out: this", "part: done in part", "  left out: a, since b", "whole: done"]


def test_named_benchmarks(capsys):
    named, paths = runpy.run_path(str(BENCH))["named"], [Path(f"{name}.py") for name in ("a", "b", "c")]
    assert [path.stem for path in named(paths, ["c", "a"])] == ["a", "c"] and named(paths, []) == paths
    done = subprocess.run([sys.executable, BENCH, "measures", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "nonsense" in done.stderr and "word_look" in done.stderr and "timing" not in done.stderr
