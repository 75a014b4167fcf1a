"""A cell of the study, trained and evaluated as its stages do: the plain path (`plain.py`, float32, the model module by module, J and F by their definition, freed memory given back) against what `make repro` runs.

Side by side in processes of their own, one thread each, as the study runs two items. Both start from the same pretrained weights and see the same episodes, so that their scores can be compared, too.

python benchmarks/study_cell.py    needs data/ as `make repro` leaves it, or is left out; writes benchmarks/study_cell.json beside itself. A quarter of an hour.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from measures import by_definition
from plain import plainly
from timing import FREED_MEMORY_KEPT, machine, ratio, spread, write

from fsrvos.data.corpus import Corpus
from fsrvos.data.episodes import EpisodeDataset, support_manifest
from fsrvos.evaluation.protocol import Evaluation, ModelPredictor, evaluate
from fsrvos.models.baselines import load_trained
from fsrvos.models.encoders import open_source
from fsrvos.study import load_params, training_config, training_parts
from fsrvos.training.loop import TrainSettings, train

ROOT, METHOD, FOLD = Path(__file__).resolve().parents[1], "cma_plus", 1
WAYS = {"plain": {}, "ours": FREED_MEMORY_KEPT}  # environment


def trained(params: dict, data: Path, corpus: Corpus, source, classes: list[str], out: Path, amp: str) -> tuple[Path, int]:
    "The method trained on these classes from its pretrained weights -> (model, steps)."
    settings, episodes, augment = training_parts(training_config(params, METHOD))
    if augment:
        raise SystemExit(f"params.yaml: {METHOD} is trained on augmented clips, this compares steps from features")
    settings = replace(TrainSettings(**settings, seed=params["seed"]), amp=amp)
    dataset = EpisodeDataset(corpus, classes, source=source, episodes_per_class=settings.episodes_per_class, seed=settings.seed, **episodes)
    result = train(load_trained(data / "pretrained" / METHOD), dataset, settings, out)
    return result.final, result.steps


def scored(params: dict, model: Path, corpus: Corpus, source, classes: list[str]) -> Evaluation:
    "The model asked what the study asks a cell."
    settings = params["evaluate"]
    manifest = support_manifest(corpus, classes, runs=settings["runs"], shots=settings["shots"], seed=params["seed"], max_queries=settings["max_queries"])
    return evaluate(ModelPredictor(load_trained(model), chunk=settings["chunk"]), corpus, source, manifest, bound_th=settings["bound_th"], swaps=tuple(settings["swaps"]), progress=False)


def one(way: str, params: dict, data: Path) -> dict:
    "What each part took, wall and processor seconds, and the scores."
    torch.set_num_threads(1)
    corpus = Corpus.load(data / "curated")
    source, classes = open_source(data / "features", corpus, **params["features"]), json.loads((data / "curated/folds.json").read_text())[str(FOLD)]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as replaced:
        if way == "plain":
            replaced.enter_context(plainly())
            replaced.enter_context(patch("fsrvos.evaluation.protocol._inference", lambda model: None))
            replaced.enter_context(patch("fsrvos.evaluation.protocol.region_and_contour", lambda found, truth, _: by_definition(found, truth).T))
        begun = time.perf_counter(), time.process_time()
        model, steps = trained(params, data, corpus, source, classes["train"], Path(scratch) / "train", "none" if way == "plain" else training_config(params, METHOD)["amp"])
        between = time.perf_counter(), time.process_time()
        found = scored(params, model, corpus, source, classes["test"])
        done = time.perf_counter(), time.process_time()
    score = found.summary()["frame_weighted"]
    return {"training": [b - a for a, b in zip(begun, between)], "evaluation": [b - a for a, b in zip(between, done)], "steps": steps, "queries": len(found.records), "JF": round(100 * score["JF"], 2)}


def compare(seen: dict[str, dict]) -> dict[str, dict]:
    "What the ways said of themselves -> cases."
    cases = {}
    for part, what in (("training", f"{seen['ours']['steps']} steps"), ("evaluation", f"{seen['ours']['queries']} answers"), ("both", "the cell")):
        total = {way: [sum(said[p][i] for p in (("training", "evaluation") if part == "both" else (part,))) for i in (0, 1)] for way, said in seen.items()}
        row = {way: spread([wall]) | {"cpu_seconds": round(cpu, 1)} for way, (wall, cpu) in total.items()}
        cases[f"{METHOD}, fold {FOLD}, {part}: {what}"] = row | {"ratio ours": ratio(row, "plain", "ours")}
    cases[f"{METHOD}, fold {FOLD}, both: the cell"] |= {f"J&F, {way}": said["JF"] for way, said in seen.items()}
    return cases


def main() -> None:
    if not (ROOT / "data/pretrained" / METHOD).is_dir():
        print(f"left out: data/pretrained/{METHOD} is not there; run `make repro` first")
        return
    running = {way: subprocess.Popen([sys.executable, __file__, way], cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True) for way, environment in WAYS.items()}
    said = {way: process.communicate()[0] for way, process in running.items()}
    if failed := [way for way, process in running.items() if process.returncode]:
        raise SystemExit(f"failed: {', '.join(failed)} (what it said is above)")
    cases = compare({way: json.loads(text.splitlines()[-1]) for way, text in said.items()})
    print(json.dumps(cases))
    write(__file__, {"machine": machine("transformers") | {"threads": 1}, "cases": cases})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one(sys.argv[1], load_params(), ROOT / "data")))
    else:
        main()
