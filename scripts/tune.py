"""What a method makes of other settings, on training classes of fold 1 alone: the record from which params.yaml has its rates.

    python scripts/tune.py rates METHOD SEED FACTOR...    the rates of pretraining and training that all methods share in params.yaml, times each factor -> reports/tuning.csv
    python scripts/tune.py fine-tuning METHOD RATE...   fine-tuning on supports with each rate, 5 to 80 steps -> reports/fine_tuning.csv

Rates: the method is pretrained as in the study, trained on two thirds of fold 1's training classes and asked about the others (every third by name), three support draws of 160 questions. Fine-tuning: the
pretrained model, which has seen none of these classes, on the supports of three of them at a time, four times, then 60 questions about other videos of these three. A row that is there already is not made again; a training
that was cut off goes on where it was. Needs what `dvc repro features` makes, fine-tuning the pretrained model, too."""
import argparse
import csv
import json
import random
import shutil
from itertools import product
from pathlib import Path

import torch

from fsrvos.data.corpus import Corpus
from fsrvos.data.episodes import EpisodeDataset, support_manifest
from fsrvos.evaluation.protocol import ModelPredictor, evaluate, run_means
from fsrvos.models.baselines import load_trained, new_model
from fsrvos.models.encoders import open_source
from fsrvos.study import architecture, load_params, method_config, params_hash, pretraining_of, training_config, training_parts
from fsrvos.training.fine_tune import FineTuning, fine_tune, support_batch
from fsrvos.training.loop import TrainSettings, train

FOLD, DRAWS, QUESTIONS = "1", 3, 160
GROUPS, STEPS, GROUP_QUESTIONS = 4, (0, 5, 10, 20, 40, 80), 60   # 0: as it is
PRETRAINED = {"pretrain": "data/pretrained", "pretrain_compared": "data/compared/pretrained"}


class Record:
    "Rows of a CSV file, one short line each, so that a second process beside this one can add its own."

    def __init__(self, path: str, keys: tuple[str, ...], values: tuple[str, ...]):
        self.path, self.keys, self.columns = Path(path), keys, (*keys, *values)

    def has(self, *key: str) -> bool:
        return self.path.exists() and key in {tuple(row[k] for k in self.keys) for row in csv.DictReader(self.path.open())}

    def add(self, *row: object) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([self.columns, row] if new else [row])
        print(dict(zip(self.columns, row)), flush=True)


RATES = Record("reports/tuning.csv", ("method", "factor", "seed"), ("pretrain_lr", "train_lr", "J", "F", "JF", "draws", "seconds"))
FINE_TUNING = Record("reports/fine_tuning.csv", ("method", "lr", "steps"), ("JF", "groups"))


def training_classes() -> list[str]:
    return sorted(json.loads(Path("data/curated/folds.json").read_text())[FOLD]["train"])


def split(classes: list[str]) -> tuple[list[str], list[str]]:
    "The classes that are trained on, and those that are asked about."
    return [name for i, name in enumerate(classes) if i % 3], classes[::3]


def features(params: dict, corpus: Corpus):
    return open_source("data/features", corpus, **params["features"])


def scores(params: dict, model: torch.nn.Module, corpus: Corpus, manifest: dict):
    "J, F, J&F in percent of every support draw: float `[draws, 3]`."
    answers = evaluate(ModelPredictor(model, chunk=params["evaluate"]["chunk"]), corpus, features(params, corpus), manifest, bound_th=params["evaluate"]["bound_th"], progress=False)
    return 100 * run_means(answers.main)


def scratch(method: str, factor: float, seed: int) -> Path:
    return Path("data/checkpoints/tune") / f"{method}-{factor:g}-{seed}"


def trained(model: torch.nn.Module, params: dict, method: str, stage: str, factor: float, seed: int, corpus: Corpus, classes: list[str]):
    "Train as the stage does, with another rate; the rate, and what `train` returns."
    settings, episodes, _ = training_parts(training_config(params, method, stage))
    settings = TrainSettings(**{**settings, "lr": params[stage]["lr"] * factor}, seed=seed)
    dataset = EpisodeDataset(corpus, classes, source=features(params, corpus), episodes_per_class=settings.episodes_per_class, seed=settings.seed, **episodes)
    identity = {"params": params_hash({"method": params["methods"][method], "stage": params[stage], "factor": factor})}
    return settings.lr, train(model, dataset, settings, scratch(method, factor, seed) / stage, identity=identity)


def rate(params: dict, method: str, factor: float, seed: int) -> None:
    "Pretrain, train and ask: one row."
    rendered, curated = Corpus.load(params["corpora"]["pretrain"]), Corpus.load("data/curated")
    torch.manual_seed(seed)
    model = new_model(architecture(params, method), params["model"]["preset"], **{k: params["features"][k] for k in ("vision", "text")}, **method_config(params, method))
    model.encoders()  # as the stage does: their weights' hash goes into the configuration
    pretrain_lr, first = trained(model, params, method, "pretrain", factor, seed, rendered, [name for name, videos in rendered.videos_by_class.items() if len(videos) > 1])
    taught, asked = split(training_classes())
    train_lr, second = trained(load_trained(first.final), params, method, "train", factor, seed, curated, taught)
    manifest = support_manifest(curated, asked, runs=DRAWS, shots=params["evaluate"]["shots"], seed=params["seed"], max_queries=QUESTIONS)
    draws = scores(params, load_trained(second.final), curated, manifest)
    RATES.add(method, f"{factor:g}", seed, f"{pretrain_lr:g}", f"{train_lr:g}", *(f"{v:.2f}" for v in draws.mean(0)), " ".join(f"{v:.1f}" for v in draws[:, 2]), round(first.seconds + second.seconds))
    shutil.rmtree(scratch(method, factor, seed))


def group_manifests(params: dict, corpus: Corpus) -> list[dict]:
    "Three classes each, drawn once."
    classes = training_classes()
    random.Random(params["seed"]).shuffle(classes)
    return [support_manifest(corpus, sorted(classes[3 * i:3 * i + 3]), runs=1, shots=params["transfer"]["shots"], seed=params["seed"], max_queries=GROUP_QUESTIONS) for i in range(GROUPS)]


def fine_tuning(params: dict, method: str, lr: float, steps: int) -> None:
    "One row; without steps the model as it is."
    curated, found = Corpus.load("data/curated"), []
    for manifest in group_manifests(params, curated):
        model = load_trained(Path(PRETRAINED[pretraining_of(params, method)]) / method)
        if steps: fine_tune(model, support_batch(features(params, curated), manifest["runs"][0]["support"]), FineTuning(steps=steps, lr=lr, seed=params["seed"]))
        found.append(scores(params, model, curated, manifest)[0, 2])
    FINE_TUNING.add(method, f"{lr:g}" if steps else "", steps, f"{sum(found) / GROUPS:.2f}", " ".join(f"{v:.1f}" for v in found))


def main(arguments: list[str] | None = None) -> None:
    params, parser = load_params(), argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    for what in ("rates", "fine-tuning"):
        kind = kinds.add_parser(what)
        kind.add_argument("method", choices=params["methods"])
        if what == "rates":
            kind.add_argument("seed", type=int)
        kind.add_argument("numbers", type=float, nargs="+")
    asked = parser.parse_args(arguments)
    if asked.what == "rates":
        for factor in asked.numbers:
            if not RATES.has(asked.method, f"{factor:g}", str(asked.seed)):
                rate(params, asked.method, factor, asked.seed)
    else:
        for lr, steps in product(asked.numbers, STEPS):
            if not FINE_TUNING.has(asked.method, f"{lr:g}" if steps else "", str(steps)):
                fine_tuning(params, asked.method, lr, steps)


if __name__ == "__main__":
    main()
