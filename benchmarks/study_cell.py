"""A cell of the study, trained and evaluated as its stages do: the plain path (`plain.py`, float32, the model module by module, J and F by their definition, freed memory given back) against what `make repro` runs.

Side by side in processes of their own, one thread each, as the study runs two items; a few turns, each way starts first in every other one. Both start from the same pretrained weights and see the same episodes,
so that their scores can be compared, too.

The plain path is today's code, which computes the plain way where `plain.py` and the patches below say so; it is not the code that the study ran before anything was made faster. What that code did otherwise (how it read
data, how it planned its stages, any slip since mended) is in neither way.

python benchmarks/study_cell.py [--turns N]    needs data/ as `make repro` leaves it, or is left out; writes benchmarks/study_cell.json beside itself. Some six minutes a turn.
"""
import argparse
import json
import os
import statistics
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


def compare(turns: list[dict[str, dict]]) -> dict[str, dict]:
    "What the ways said of themselves in each turn -> cases."
    cases, first = {}, turns[0]["ours"]
    for part, what in (("training", f"{first['steps']} steps"), ("evaluation", f"{first['queries']} answers"), ("both", "the cell")):
        took = lambda said, i: sum(said[p][i] for p in (("training", "evaluation") if part == "both" else (part,)))
        row = {way: spread([took(turn[way], 0) for turn in turns]) | {"cpu_seconds": round(statistics.median(took(turn[way], 1) for turn in turns), 1)} for way in WAYS}
        cases[f"{METHOD}, fold {FOLD}, {part}: {what}"] = row | {"ratio ours": ratio(row, "plain", "ours")}
    scores = {way: [turn[way]["JF"] for turn in turns] for way in WAYS}
    cases[f"{METHOD}, fold {FOLD}, both: the cell"] |= {f"J&F{name}, {way}": of(scores[way]) for name, of in (("", statistics.median), (", least", min), (", most", max)) for way in WAYS} | {"turns": len(turns)}
    return cases


def side_by_side(order: list[str]) -> dict[str, dict]:
    "Both ways at once, started in this order -> what each said of itself."
    running = {way: subprocess.Popen([sys.executable, __file__, way], cwd=ROOT, env=os.environ | WAYS[way], stdout=subprocess.PIPE, text=True) for way in order}
    said = {way: process.communicate()[0] for way, process in running.items()}
    if failed := [way for way, process in running.items() if process.returncode]:
        raise SystemExit(f"failed: {', '.join(failed)} (what it said is above)")
    return {way: json.loads(text.splitlines()[-1]) for way, text in said.items()}


def main(turns: int) -> None:
    if not (ROOT / "data/pretrained" / METHOD).is_dir():
        print(f"left out: data/pretrained/{METHOD} is not there; run `make repro` first")
        return
    cases = compare([side_by_side(list(WAYS)[::-1 if turn % 2 else 1]) for turn in range(turns)])
    print(json.dumps(cases))
    write(__file__, {"machine": machine("transformers") | {"threads": 1}, "cases": cases})


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in WAYS:
        print(json.dumps(one(sys.argv[1], load_params(), ROOT / "data")))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--turns", type=int, default=2)
        main(**vars(parser.parse_args()))
