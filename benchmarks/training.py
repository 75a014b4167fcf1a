"""Training steps of `cma_plus` at size cpu: the plain path (`plain.py`) against ours, float32 against bfloat16 autocast, fused AdamW against one loop over tensors, the
encoder compiled or not, in turns; and the share of the time of `train` that is spent waiting for data.

python benchmarks/training.py    renders and encodes a small corpus of its own, writes benchmarks/training.json beside itself (on a GPU machine training.cuda.json).
"""
import csv
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from plain import plainly
from timing import in_turns, machine, ratio, write

from fsrvos.data.corpus import Corpus
from fsrvos.data.episodes import EpisodeDataset
from fsrvos.data.synthesis import SynthesisSettings, synthesize
from fsrvos.models.encoders import keep_features
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.study import load_params, method_config, training_config, training_parts
from fsrvos.training.loop import TrainSettings, batch_stream, forward, train
from fsrvos.training.losses import Criterion

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
METHOD, CLASSES, STEPS = "cma_plus", 6, 20
WAYS = {  # plain path?, autocast?, which AdamW
    "plain, float32": (True, False, {"fused": True}),
    "ours, float32": (False, False, {"fused": True}),
    "ours, bfloat16": (False, True, {"fused": True}),
    "ours, bfloat16, AdamW foreach": (False, True, {"foreach": True}),
}
COMPILED = "ours, bfloat16, encoder compiled"  # by torch.compile: the part whose shapes are always the same (the whole has others for each length of a sentence, and compiles anew for each)


def small_study(folder: Path, classes: int = CLASSES, steps: int = STEPS) -> tuple[EpisodeDataset, FSRVOSConfig, TrainSettings]:
    "A few clips of the embedded corpus, encoded; the configuration and settings of `params.yaml`, for about `steps` steps."
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    only = SynthesisSettings(classes=classes, clips_per_class=(4, 4), person_clips=0, mixed_per_class=(0, 0), short_per_class=(0, 0), rare_classes=0, pretrain_classes=0, shifted_clips=0)
    synthesize(folder / "embedded", only, workers=1, progress=False)
    corpus = Corpus.load(folder / "embedded/raw")
    source = keep_features(folder / "features", corpus, **params["features"])
    settings, episodes, _ = training_parts(training_config(params, METHOD))
    settings |= {"epochs": 1, "episodes_per_class": -(-steps * settings["batch_size"] // classes), "log_every": 1}
    names = sorted({v.category for v in corpus.videos.values()})
    dataset = EpisodeDataset(corpus, names, source=source, episodes_per_class=settings["episodes_per_class"], **episodes)
    return dataset, FSRVOSConfig.from_preset(params["model"]["preset"], **method_config(params, METHOD)), TrainSettings(**settings)


def stepper(config: FSRVOSConfig, settings: TrainSettings, batches: list, plain: bool, amp: bool, adamw: dict, compiled: bool = False) -> Callable[[], float]:
    "A function that makes one training step with the next of `batches` and returns the loss; each starts from the same weights."
    torch.manual_seed(0)
    model, judge, turn = FSRVOSModel(config).to(DEVICE).train(), Criterion(config), itertools.cycle(batches)
    if compiled:
        model.encoder.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, **adamw)

    def step() -> float:
        batch = next(turn)
        with plainly() if plain else nullcontext(), torch.autocast(DEVICE, torch.bfloat16, enabled=amp):
            output = forward(model, batch)
        total = judge.total(judge(output, batch.targets))
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        return float(total.detach())
    return step


def waiting(dataset: EpisodeDataset, config: FSRVOSConfig, settings: TrainSettings, out: Path) -> dict:
    "`train` as the study runs it: share of the time of all steps in which it waits for data, and seconds a step."
    torch.manual_seed(0)
    result = train(FSRVOSModel(config), dataset, settings, out, device=DEVICE)
    rows = list(csv.DictReader(result.history.open()))[1:]   # the first step reads masks and features from the disk
    return {"the loop, share of time spent waiting for data": round(sum(float(r["waiting"]) for r in rows) / len(rows), 4), "the loop, seconds a step": round(result.seconds / result.steps, 3), "the loop, steps": result.steps}


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    with tempfile.TemporaryDirectory() as folder:
        dataset, config, settings = small_study(Path(folder))
        batches = [batch.to(DEVICE) for batch in itertools.islice(batch_stream(dataset, settings, 0), 4)]
        firsts = {way: stepper(config, settings, batches, *options)() for way, options in WAYS.items()}
        steps = {way: stepper(config, settings, batches, *options) for way, options in WAYS.items()}
        steps[COMPILED] = stepper(config, settings, batches, *WAYS["ours, bfloat16"], compiled=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "compiled")  # or what an earlier run compiled would be found
        begun = time.perf_counter()
        firsts[COMPILED] = steps[COMPILED]()
        compiling = time.perf_counter() - begun
        times = in_turns(steps, STEPS)
        loop = waiting(dataset, config, settings, Path(folder) / "train")
    row = {way: time | {"steps_a_second": round(1e3 / time["median_ms"], 2)} for way, time in times.items()}
    row |= {"ratio ours": ratio(times, "plain, float32", "ours, float32"), "ratio bfloat16": ratio(times, "ours, float32", "ours, bfloat16"),
            "ratio plain against what the study runs": ratio(times, "plain, float32", "ours, bfloat16"),
            "ratio fused AdamW": ratio(times, "ours, bfloat16, AdamW foreach", "ours, bfloat16"), "ratio encoder compiled": ratio(times, "ours, bfloat16", COMPILED),
            "the first step with the encoder compiled, seconds": round(compiling, 1), "loss of the first step": {way: round(loss, 6) for way, loss in firsts.items()},
            "loss of the first step, largest difference": abs(firsts["plain, float32"] - firsts["ours, float32"])}
    sizes = f"{METHOD}, batch of {settings.batch_size}, {dataset.n_frames} frames and {dataset.shots} shots of 128x192, from features"
    cases = {sizes: row | loop}
    print(json.dumps(cases))
    write(__file__, {"machine": machine("transformers"), "cases": cases})


if __name__ == "__main__":
    main()
