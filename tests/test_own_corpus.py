"A corpus of other classes, sizes and counts than the rendered one goes through the pipeline; of the checkout only params.yaml is changed."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from fsrvos.data.corpus import Corpus, Expression, ObjectTrack, Video, check_corpus, write_frame, write_masks, write_metas
from tests.tiny import make_tiny_corpus

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((40, 72), (56, 64))     # of the frames of a class's videos in turn: neither the rendered corpus's nor multiples of 32
VIDEOS = {"bateau_à_voile": 3, "kite": 2, "teapot": 3, "zeppelin": 2}


def write_own_corpus(root: Path) -> Corpus:
    "Ten videos of four classes of one or two discs, in two sizes, one video of two classes, one class with a single video; no kinds of sentences, frames numbered with gaps."
    videos = [_write_video(root, f"{name}-{n}", (name,) * (1 + n % 2), 5 + n, SIZES[n % 2]) for name, count in VIDEOS.items() for n in range(count)]
    videos += [_write_video(root, "both", ("kite", "teapot"), 6, SIZES[0]), _write_video(root, "lonely", ("dodo",), 6, SIZES[0])]
    write_metas(root, videos)
    return Corpus.load(root)


def _write_video(root: Path, name: str, categories: tuple[str, ...], count: int, size: tuple[int, int]) -> Video:
    frames = tuple(f"{7 * t:05d}" for t in range(count))
    y, x = np.mgrid[:size[0], :size[1]]
    for t, frame in enumerate(frames):
        ids = np.zeros(size, np.uint8)
        for i in range(len(categories)):
            ids[(y - 10 - 20 * i) ** 2 + (x - 14 - 5 * t) ** 2 < 60] = i + 1
        write_masks(root / "train/Annotations" / name / f"{frame}.png", ids)
        write_frame(root / "train/JPEGImages" / name / f"{frame}.jpg", np.array([(90, 110, 90), (220, 60, 40), (40, 60, 220)], np.uint8)[ids])
    tracks = {i + 1: ObjectTrack(i + 1, category, frames) for i, category in enumerate(categories)}
    said = tuple(Expression(str(n), text, (i,)) for n, (i, text) in enumerate((i, text) for i in tracks for text in (f'the "{("upper", "lower")[i - 1]}" one', ("the red thing", "the blue thing")[i - 1])))
    return Video(name, frames, tracks, said, root / "train/JPEGImages" / name, ".jpg")


def own_params() -> dict:
    "The study's parameters with what a corpus of ten videos changes, and as little training as there can be."
    from fsrvos.study import read_yaml
    params = read_yaml(ROOT / "params.yaml")
    params["curation"] |= {"classes": None, "min_track_frames": 3, "min_videos": 2, "max_videos": None, "n_folds": 2}
    params["corpora"] |= {"raw": "data/films", "synthesis": "none"}
    params["cells"], params["training_free_cells"], params["multi_cells"] = {"cma_plus-1": "cma_plus"}, ["prototype-1"], {}
    params["compared_cells"], params["transfer_cells"] = {}, ["cma_plus-1"]
    params["model"]["preset"] = "tiny"
    params["pretrain"] |= {"methods": ["cma_plus"], "episodes_per_class": 1, "batch_size": 2}
    params["train"] |= {"epochs": 1, "episodes_per_class": 1, "batch_size": 2}
    params["evaluate"] |= {"runs": 2, "max_queries": None}
    return params


def from_pixels(params: dict) -> dict:
    "The same as size `paper` does it: no feature is kept, training augments frames in processes of its own, everything else resizes them first."
    params["features"] |= {"short": 48, "longest": 64, "keep": False}
    params["train"] |= {"augment": True, "num_workers": 1}
    params["cells"], params["pretrain"]["methods"], params["transfer_cells"] = {"cma-1": "cma"}, ["cma"], ["cma-1"]
    return params


@pytest.fixture
def checkout(tmp_path, request):
    "What a stage needs of the checkout, in a repository of its own, with a pretraining corpus and the own one."
    for name in ("fsrvos", "kernels", "nbs/pipeline"): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    for name in ("dvc.yaml", "data.dvc", ".dvcignore"): shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "fsrvos/kernels").symlink_to("../kernels")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(request.param(own_params()), sort_keys=False))
    make_tiny_corpus(tmp_path / "data/embedded/pretrain", classes=("cat", "dog"), videos_per_class=2)
    write_own_corpus(tmp_path / "data/films")
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done


@pytest.mark.smoke
@pytest.mark.parametrize("checkout, cell", [(lambda params: params, "cma_plus-1"), (from_pixels, "cma-1")], indirect=["checkout"], ids=["features", "pixels"])
def test_an_own_corpus_runs_through_the_pipeline(checkout, cell):
    assert check_corpus(checkout / "data/films", images=True) == []
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "commit", "-q", "-f", "data.dvc"]): run(checkout, *command)
    run(checkout, "dvc", "repro", "report")
    folds = json.loads((checkout / "data/curated/folds.json").read_text())
    assert sorted(folds["1"]["train"] + folds["1"]["test"]) == sorted(VIDEOS) and len(folds) == 2
    curation = json.loads((checkout / "reports/curation.json").read_text())
    assert curation["videos_after"] == VIDEOS and "class dodo" in str(curation["steps"]) and "several categories: kite, teapot" in str(curation["steps"])
    for name, swaps in ((cell, {"right", "no_support", "wrong_support", "wrong_words"}), ("prototype-1", set())):   # `evaluate.swapped` names the method of the cell alone
        result = json.loads((checkout / f"results/evaluate/{name}.json").read_text())
        assert set(result["queries"]["class"]) == set(folds["1"]["test"]) and set(result["summary"]["per_swap"]) == swaps
    table = json.loads((checkout / "reports/table1.json").read_text())
    assert {(row["method"], row["fold"], row["runs"]) for row in table} == {(cell[:-2], 1, 2), ("prototype", 1, 2)}
    assert cell[:-2] in (checkout / "reports/table1.md").read_text()
    assert (checkout / "reports/qualitative_cma_plus-1.png").exists() == (cell == "cma_plus-1"), "pictures are of the methods that evaluate.pictures names"
    assert any((checkout / "data/features").iterdir()) == (cell == "cma_plus-1"), "features are kept, or they are not"
    assert re.findall("Running stage '(.*)'", run(checkout, "dvc", "repro", "report").stdout) == ["code"], "the rest is up to date"
