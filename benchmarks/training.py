"""Training steps of `cma_plus` at size cpu: the plain path (`plain.py`) against ours, float32 against bfloat16 autocast, fused AdamW against one loop over tensors, the
encoder compiled or not, in turns, and the memory of a step; the share of the time of `train` that is spent waiting for data, from features and from pixels that workers read and
augment. On a GPU also steps at the paper's size, of noise.

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
from timing import exact_float32, in_turns, machine, peak, ratio, write

from fsrvos.data.corpus import Corpus
from fsrvos.data.episodes import ClipAugmentation, EpisodeDataset, collate
from fsrvos.models.encoders import EncoderError, keep_features, training_source
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.models.published import attach_empty_encoders
from fsrvos.study import load_params, method_config, training_config, training_parts
from fsrvos.training.loop import TrainSettings, batch_stream, forward, train
from fsrvos.training.losses import Criterion
from fsrvos.training.recipe import NoiseEpisodes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
METHOD, CLASSES, STEPS = "cma_plus", 6, 20
AUGMENTED_STEPS = 4 if DEVICE == "cpu" else 20         # of frames as large as the paper's
WORKERS = min(max((os.cpu_count() or 2) // 2, 1), 8)   # that augment
WAYS = {  # plain path?, autocast?, which AdamW
    "plain, float32": (True, False, {"fused": True}),
    "ours, float32": (False, False, {"fused": True}),
    "ours, bfloat16": (False, True, {"fused": True}),
    "ours, bfloat16, AdamW foreach": (False, True, {"foreach": True}),
}
COMPILED = "ours, bfloat16, encoder compiled"  # by torch.compile: the part whose shapes are always the same (the whole has others for each length of a sentence, and compiles anew for each)


def small_corpus(folder: Path, classes: int = CLASSES) -> Corpus:
    "A few clips of the embedded corpus. Raises ImportError where the drawings are not installed."
    from fsrvos.data.synthesis import SynthesisSettings, synthesize
    only = SynthesisSettings(classes=classes, clips_per_class=(4, 4), person_clips=0, mixed_per_class=(0, 0), short_per_class=(0, 0), rare_classes=0, pretrain_classes=0, shifted_clips=0)
    synthesize(folder / "embedded", only, workers=1, progress=False)
    return Corpus.load(folder / "embedded/raw")


def small_study(folder: Path, corpus: Corpus, steps: int = STEPS, augment: bool = False) -> tuple[EpisodeDataset, FSRVOSConfig, TrainSettings]:
    """The configuration and settings of `params.yaml` for about `steps` steps on a corpus, from features; augment: from pixels as size `paper` trains, which workers read and augment,
    without further sentences."""
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    settings, episodes, _ = training_parts(training_config(params, METHOD))
    names = sorted({v.category for v in corpus.videos.values()})
    settings |= {"epochs": 1, "episodes_per_class": -(-steps * settings["batch_size"] // len(names)), "log_every": 1}
    if augment:
        source, transform = training_source(folder / "features", corpus, **params["features"] | {"keep": False}, augment=True), ClipAugmentation()
        episodes, settings["num_workers"] = episodes | {"other_sentences": 0}, WORKERS
    else:
        source, transform = keep_features(folder / "features", corpus, **params["features"]), None
    dataset = EpisodeDataset(corpus, names, source=source, episodes_per_class=settings["episodes_per_class"], transform=transform, **episodes)
    return dataset, FSRVOSConfig.from_preset(params["model"]["preset"], **method_config(params, METHOD)), TrainSettings(**settings)


def stepper(make: Callable[[], FSRVOSModel], settings: TrainSettings, batches: list, plain: bool, amp: bool, adamw: dict, compiled: bool = False) -> Callable[[], float]:
    "A function that makes one training step with the next of `batches` and returns the loss; each starts from the same weights."
    torch.manual_seed(0)
    model, turn = make().to(DEVICE).train(), itertools.cycle(batches)
    judge = Criterion(model.config)
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


def first_steps(make_step: Callable[[], Callable[[], float]]) -> tuple[float, float, float]:
    """Loss and seconds of the first step of a new stepper, and the MiB that two steps hold at most: weights, gradients, the optimiser's averages, and what is kept for the way
    back."""
    first = []

    def run() -> None:
        step, begun = make_step(), time.perf_counter()
        first.extend((step(), time.perf_counter() - begun))
        step()
    held = peak(run, DEVICE)
    return *first, held


def compare(steppers: dict[str, Callable[[], Callable[[], float]]], turns: int) -> dict:
    "{way: what makes its stepper} -> time and memory of a step, the first step's loss, and ratios."
    firsts = {way: first_steps(make_step) for way, make_step in steppers.items()}
    times = in_turns({way: make_step() for way, make_step in steppers.items()}, turns, device=DEVICE)
    row = {way: times[way] | {"steps_a_second": round(1e3 / times[way]["median_ms"], 2), "first_step_seconds": round(seconds, 2), "peak_mb": round(held, 1)}
           for way, (_, seconds, held) in firsts.items()}
    return row | {"ratio ours": ratio(times, "plain, float32", "ours, float32"), "ratio bfloat16": ratio(times, "ours, float32", "ours, bfloat16"),
                  "ratio plain against ours in bfloat16": ratio(times, "plain, float32", "ours, bfloat16"),
                  **{f"ratio memory, {way}": ratio(row, "plain, float32", way, "peak_mb") for way in ("ours, float32", "ours, bfloat16")},
                  "loss of the first step": {way: round(loss, 6) for way, (loss, *_) in firsts.items()},
                  "loss of the first step, largest difference": abs(firsts["plain, float32"][0] - firsts["ours, float32"][0])}


def waiting(dataset: EpisodeDataset, config: FSRVOSConfig, settings: TrainSettings, out: Path, name: str) -> dict:
    "`train` as the study runs it: share of the time of all steps but the first in which it waits for data, and seconds a step."
    torch.manual_seed(0)
    result = train(FSRVOSModel(config), dataset, settings, out, device=DEVICE)
    first, *rows = csv.DictReader(result.history.open())   # the first step reads masks and features from the disk, or waits for the workers to start
    seconds = (float(rows[-1]["seconds"]) - float(first["seconds"])) / len(rows)
    return {f"{name}, share of time spent waiting for data": round(sum(float(r["waiting"]) for r in rows) / len(rows), 4), f"{name}, seconds a step": round(seconds, 3),
            f"{name}, steps": len(rows)}


def study_steps(folder: Path) -> dict[str, dict]:
    "The study's own steps, and its loop."
    corpus = small_corpus(folder)
    dataset, config, settings = small_study(folder, corpus)
    batches = [batch.to(DEVICE) for batch in itertools.islice(batch_stream(dataset, settings, 0), 4)]
    make = lambda *options, **more: lambda: stepper(lambda: FSRVOSModel(config), settings, batches, *options, **more)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")  # or what an earlier run compiled would be found
    row = compare({way: make(*options) for way, options in WAYS.items()} | {COMPILED: make(*WAYS["ours, bfloat16"], compiled=True)}, STEPS)
    row |= {"ratio fused AdamW": ratio(row, "ours, bfloat16, AdamW foreach", "ours, bfloat16"), "ratio encoder compiled": ratio(row, "ours, bfloat16", COMPILED)}
    del row[COMPILED]["peak_mb"]  # the compiler's own
    row |= waiting(dataset, config, settings, folder / "train", "the loop")
    row |= waiting(*small_study(folder, corpus, AUGMENTED_STEPS, augment=True), folder / "augmented", f"the loop, augmented pixels, workers: {WORKERS}")
    return {f"{METHOD}, batch of {settings.batch_size}, {dataset.n_frames} frames and {dataset.shots} shots of 128x192, from features": row}


def paper_steps(config: FSRVOSConfig, frames: int = 5, shots: int = 5, size: tuple[int, int] = (360, 640), turns: int = 10) -> dict[str, dict]:
    """Steps of a paper preset: a batch of one episode of noise, frames and sentences encoded in the step. The encoders have random weights; all ways share them, so they are no
    part of a step's memory."""
    first = FSRVOSModel(config)
    attach_empty_encoders(first)
    encoders = first.to(DEVICE).encoders()

    def make() -> FSRVOSModel:
        model = FSRVOSModel(config)
        model._encoders = encoders
        return model
    episodes, settings = NoiseEpisodes(2, frames, shots, size), TrainSettings(lr=1e-4, clip_norm=.1)
    batches = [collate([episodes[i]]).to(DEVICE) for i in range(2)]
    steppers = {way: lambda options=WAYS[way]: stepper(make, settings, batches, *options) for way in ("plain, float32", "ours, float32", "ours, bfloat16")}
    return {f"paper-resnet50, batch of 1, {frames} frames and {shots} shots of {size[0]}x{size[1]}, from pixels": compare(steppers, turns)}


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    exact_float32()
    cases = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            cases |= study_steps(Path(folder))
    except (ImportError, EncoderError) as error:
        print(f"left out: {METHOD} at size cpu: {str(error).splitlines()[0]}", flush=True)
    if DEVICE == "cuda":
        cases |= paper_steps(FSRVOSConfig.from_preset("paper-resnet50"))
    if cases:
        print(json.dumps(cases))
        write(__file__, {"machine": machine("transformers", device=DEVICE), "cases": cases})


if __name__ == "__main__":
    main()
