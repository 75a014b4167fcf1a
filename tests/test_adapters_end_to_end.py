"Every published corpus in miniature: imported and curated by the command line, one step of training from pixels, an evaluation, and what its own benchmark asks."
import csv
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fsrvos.apps.cli import main
from fsrvos.data.corpus import Corpus, write_frame, write_masks
from fsrvos.data.curation import MINI_REF_SAILVOS_CLASSES
from fsrvos.data.episodes import EpisodeDataset, support_manifest
from fsrvos.data.expressions import Annotations
from fsrvos.evaluation.protocol import Evaluation, ModelPredictor, evaluate
from fsrvos.evaluation.submissions import refytvos_split, submission_problems
from fsrvos.models.encoders import open_source, training_source
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.study import read_yaml
from fsrvos.training.loop import TrainSettings, train
from tests import miniatures
from tests.test_adapters import make_jhmdb

ROOT = Path(__file__).parents[1]
ENCODERS = {"vision": "efficientnet-lite0", "text": "minilm-l6"}


@dataclass(frozen=True)
class Case:
    "A corpus in miniature: how it is written, and what of it must be there after curation."
    kind: str
    write: Callable[[Path], Path]  # into a new folder -> what `--raw` names
    kept: dict[str, dict[str, int]]  # class -> video -> annotated frames
    options: tuple[str, ...] = ()


def of_mini(*classes: str) -> dict[str, dict[str, int]]:
    return {name: {f"{name}-b": 3, f"{name}-ß": 3} for name in classes}


PAIR = ("dog", "mouse")
CASES = {
    "refytvos": Case("refytvos", miniatures.refytvos, {"dog": {"0a1b": 3, "ß2": 3}, "earless_seal": {"c-3": 3, "d [4]": 3}}),
    "Mini-Ref-YouTube-VOS": Case("refytvos", miniatures.mini("Mini-Ref-YouTube-VOS", PAIR, "JPEGImages", ".jpg", "meta.json"), of_mini(*PAIR)),
    "mini-ref-youtube-vos": Case("refytvos", miniatures.mini("mini-ref-youtube-vos", PAIR, "JPEGImages", ".jpg", "train.json"), of_mini(*PAIR)),
    "Mini-Ref-SAIL-VOS": Case("refytvos", miniatures.mini("Mini-Ref-SAIL-VOS", MINI_REF_SAILVOS_CLASSES, "Images", ".bmp", "train.json"), of_mini(*MINI_REF_SAILVOS_CLASSES)),
    "mini-ref-sail-vos": Case("refytvos", miniatures.mini("mini-ref-sail-vos", MINI_REF_SAILVOS_CLASSES, "JPEGImages", ".jpg", "meta.json"), of_mini(*MINI_REF_SAILVOS_CLASSES)),
    "sailvos": Case("sailvos", miniatures.sailvos, {"dog": {"dog_5": 2, "dog_6": 3}, "car": {"car_3": 3, "cår_4": 3}, "person": {"abigail_1": 3, "zoë_2": 3}}),
    "mevis": Case("mevis", miniatures.mevis, {"object": {"v1": 2, "v2": 2, "vidéo": 3}}),
    "refdavis": Case("refdavis", miniatures.refdavis, {"dog": {"dog-c": 4, "dog-ä": 4}, "person": {"man-a": 4, "man-b": 4}}, ("--split", "train")),
    "a2d": Case("a2d", miniatures.a2d, {"adult": {"adult_1": 3, "adult_2": 3}, "dog": {"dög_1": 3, "dog_2": 3}}, ("--split", "train")),
    "jhmdb": Case("jhmdb", make_jhmdb, {"person": {"man_[1]_über": 3, "one": 1}}),
    "refcoco": Case("refcoco", miniatures.refcoco, {"dog": {f"COCO_train2014_{n:012d}": 1 for n in (101, 102)}, "person": {f"COCO_train2014_{n:012d}": 1 for n in (12, 100)}}),
}


# ---- the steps

def fsrvos(*argv) -> None:
    "Run the command line in this process; it must end well."
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    assert not end.value.code


def write_params(path: Path) -> None:
    "The study's parameters with the thresholds of a miniature."
    params = read_yaml(ROOT / "params.yaml")
    params["curation"] |= {"classes": None, "min_track_frames": 1, "min_videos": 2, "max_videos": None, "n_folds": 2}
    for section in ("cells", "compared_cells", "multi_cells"):
        params[section] = {}
    params["training_free_cells"], params["transfer_cells"] = [], []
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def annotated(corpus: Corpus, folder: Path) -> Corpus:
    "The corpus with a sentence about every target, written by one annotator and accepted by another, as for SAIL-VOS, which has none."
    work = Annotations(corpus, folder / "log.jsonl")
    for target in work.to_write("writer"):
        entry = work.write("writer", target, f"the \"{corpus.videos[target.video].objects[target.object_id].category}\" on the left")
        work.accept("reader", entry)
    return work.export(folder / "annotated")


def curated(case: Case, folder: Path) -> tuple[Corpus, list[str], list[str]]:
    "Written, imported and curated: the corpus, the training classes of a fold, and test classes of a fold (of another one where there is but one class)."
    raw = case.write(folder / "raw")
    fsrvos("curate", "--from", case.kind, "--raw", raw, "--out", folder / "curated", *case.options)
    corpus, folds = Corpus.load(folder / "curated"), json.loads((folder / "curated/folds.json").read_text())
    if not any(video.expressions for video in corpus.videos.values()):
        corpus = annotated(corpus, folder)
    return corpus, *(next(fold[side] for fold in folds.values() if fold[side]) for side in ("train", "test"))


def trained(corpus: Corpus, classes: list[str], out: Path) -> Path:
    "One step of training from pixels, an episode of every class in its batch: the folder of the model, which that step has changed."
    source = training_source(None, corpus, **ENCODERS, keep=False)
    episodes = EpisodeDataset(corpus, classes, source=source, frames=2, shots=2, episodes_per_class=1)
    torch.manual_seed(0)
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", affinity="self+cross", **ENCODERS))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    result = train(model, episodes, TrainSettings(episodes_per_class=1, batch_size=len(classes), warmup_steps=0, ema=0.0), out)
    with open(result.history) as file:
        rows = list(csv.DictReader(file))
    assert result.steps == len(rows) == 1 and all(math.isfinite(float(value)) for value in rows[0].values())
    after = load_file(result.final / "model.safetensors")
    assert before.keys() <= after.keys() and all(value.isfinite().all() for value in after.values()) and any(not before[name].equal(after[name]) for name in before)
    return result.final


def check_evaluation(corpus: Corpus, classes: list[str], model: Path, kept: dict[str, dict[str, int]], out: Path) -> None:
    "Every sentence about one object of every video but the support's is answered, over all frames of its video; the results are read back as they were."
    manifest = support_manifest(corpus, classes, runs=1, shots=2, seed=0)
    source = open_source(None, corpus, **ENCODERS, keep=False)
    result = evaluate(ModelPredictor(FSRVOSModel.from_pretrained(model)), corpus, source, manifest, progress=False)
    supports = {support["video"] for support in manifest["runs"][0]["support"].values()}
    asked = {(video, e.id) for name in classes for video in set(kept[name]) - supports for e in corpus.videos[video].expressions if len(e.object_ids) == 1}
    assert asked and {(r["video"], r["expression_id"]) for r in result.records} == asked
    for record in result.records:
        assert record["frames"] == kept[record["class"]][record["video"]]
        assert all(0 <= record[name] <= 1 for name in ("J", "F", "score", "area_pred")) and 0 < record["area_true"] < 1
    read = Evaluation.from_json(result.to_json(out))
    assert read.manifest == manifest and [(r["video"], r["J"]) for r in read.records] == [(r["video"], pytest.approx(r["J"], abs=1e-4)) for r in result.records]


# ---- what a benchmark asks

def write_support(corpus: Corpus, folder: Path) -> Path:
    "A frame of the corpus as the folder of a support."
    video = next(iter(corpus.videos.values()))
    expression = video.expressions[0]
    shown = video.objects[expression.object_ids[0]].frames[0]
    write_frame(folder / "00.jpg", corpus.read_frames(video.id, [shown])[0])
    write_masks(folder / "00.png", corpus.read_masks(video.id, [shown], expression.object_ids)[0, 0].astype("uint8"))
    (folder / "expression.txt").write_text(expression.text)
    return folder


def ask(kind: str, raw: Path, corpus: Corpus, model: Path, out: Path) -> Path:
    "`fsrvos benchmark` with supports from the curated corpus, and from a folder for classes that it has not got."
    given = write_support(corpus, out.parent / "support")
    fsrvos("benchmark", kind, "--raw", raw, "--train", corpus.root, "--support", given, "--shots", 2, "--model", model, "--short", 32, "--longest", 64, "--device", "cpu", "--out", out)
    return out


def archive_for(kind: str, raw: Path, members: set[str]):
    "An archive with just these masks, which its own check finds whole."
    def check(folder: Path, corpus: Corpus, model: Path) -> None:
        path = ask(kind, folder / raw, corpus, model, folder / "answers.zip")
        with zipfile.ZipFile(path) as archive:
            assert set(archive.namelist()) == members
        fsrvos("benchmark", kind, "--raw", folder / raw, "--out", path, "--check")
    return check


def numbers_of(kind: str, counted: dict[str, int], classes: set[str]):
    "Its numbers, all of them shares, of as much as was there to be asked; the supports of these classes are the corpus's."
    def check(folder: Path, corpus: Corpus, model: Path) -> None:
        written = json.loads(ask(kind, folder / "raw", corpus, model, folder / "numbers.json").read_text())
        measures = {name: value for name, value in written["measures"].items() if name != "sets"}
        assert {name: measures.pop(name) for name in counted} == counted and all(0 <= value <= 1 for value in measures.values()) and len(measures) > 3
        assert set(written["settings"]["supports"]) == classes
        if kind == "refdavis":
            assert len(written["measures"]["sets"]) == 4
    return check


VALID = {f"Annotations/0a/{e}/{f}.png" for e in "07" for f in ("00000", "00005", "00020")} | {"Annotations/ß/0/00010.png"}
BENCHMARKS = {
    "refytvos": archive_for("refytvos", "raw", VALID),
    "mevis": archive_for("mevis", "raw/valid", {f"v1/{e}/{f}.png" for e in "01" for f in ("00000", "00001")}),
    "refdavis": numbers_of("refdavis", {"objects": 4}, {"dog", "person"}),  # the validation split: two objects in each of two videos
    "a2d": numbers_of("a2d", {"samples": 2 + 2 * 2}, {"adult", "dog"}),  # the test split: the bird in two frames; two sentences about the dog, seen in two of three
    "jhmdb": numbers_of("jhmdb", {"samples": 2 + 1}, set()),  # all of it: the corpus's own videos are no supports
}


# ---- all of it

@pytest.mark.parametrize("name", CASES)
def test_from_the_published_layout_to_numbers(name, tmp_path, monkeypatch):
    case = CASES[name]
    write_params(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    corpus, train_classes, test_classes = curated(case, tmp_path)
    assert {c: {v: len(corpus.videos[v].frames) for v in videos} for c, videos in corpus.videos_by_class.items()} == case.kept and sum(map(len, case.kept.values())) == len(corpus.videos)
    assert set(train_classes).isdisjoint(test_classes) == (len(case.kept) > 1) and corpus.check(images=True) == []
    model = trained(corpus, train_classes, tmp_path / "run")
    check_evaluation(corpus, test_classes, model, case.kept, tmp_path / "results.json")
    if name in BENCHMARKS:
        BENCHMARKS[name](tmp_path, corpus, model)


def test_the_test_split_without_masks_is_answered(tmp_path, monkeypatch):
    "Of `valid` and `test` an archive is all that can be made; alone, they are refused where masks are needed."
    case = CASES["refytvos"]
    write_params(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    corpus, _, _ = curated(case, tmp_path)
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", **ENCODERS))
    model.encoders()
    model.save_pretrained(tmp_path / "model")
    split, path = refytvos_split(tmp_path / "raw", "test"), ask("refytvos-test", tmp_path / "raw", corpus, tmp_path / "model", tmp_path / "test.zip")
    assert submission_problems(path, split, progress=False) == [] and zipfile.ZipFile(path).namelist() == ["Annotations/zz/0/00000.png"]
