"""How time and memory of an answer grow with the frames of a chunk, the support, the resolution, the number of sentences and the length of the video: `fsrvos.models.inference`, and
the plain path (`plain.py`) where it is asked the same, on the demo model.

python benchmarks/growth.py    writes benchmarks/growth.json beside itself (on a GPU machine growth.cuda.json).
"""
import ctypes
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from inference import DEVICE, answer_ours, answer_plainly, make_model, noise
from timing import in_turns, machine, write

BASE = {"frames": 10, "shots": 5, "height": 128, "sentences": 1, "chunks": 1}
POINTS = {  # what grows, through which values, and whether the plain path is asked, too
    "frames": ((2, 5, 10, 20), True),
    "shots": ((1, 3, 5, 10), True),
    "height": ((64, 96, 128, 192), True),      # of frames 3 : 2; pixels grow with its square
    "sentences": ((1, 2, 4), False),
    "chunks": ((1, 2, 4, 8), False),
}


def peak(call: Callable[[], object]) -> float:
    "MiB by which the process (on a GPU machine: the GPU) holds more at most during the call than before it."
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be taken again, and not seen (glibc)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now (Linux)
    before = _held("VmRSS")
    call()
    return (_held("VmHWM") - before) / 1024


def _held(name: str) -> int:
    "A line of /proc/self/status, in KiB."
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))


def exponent(sizes: list[float], values: list[float]) -> float | None:
    "Slope of the straight line through the logarithms; None where something is not positive."
    return round(float(np.polyfit([math.log(x) for x in sizes], [math.log(x) for x in values], 1)[0]), 2) if min(values) > 0 else None


def asked(model, way: Callable, *, frames: int, shots: int, height: int, sentences: int, chunks: int) -> Callable[[], None]:
    "A function that has `way` answer so many sentences about a clip of so many chunks."
    inputs = noise((height, height * 3 // 2), chunks, frames, shots)

    def call() -> None:
        for _ in range(sentences):
            for _ in way(model, **inputs):
                pass
    return call


def grow(model, name: str, values: tuple, plain: bool, turns: int = 3) -> dict:
    "Time and memory for each value of `name`, all else as in `BASE`, and the exponents: (time, memory) ~ value ** exponent."
    ways, row = {"ours": answer_ours} | ({"plain": answer_plainly} if plain else {}), {}
    for value in values:
        calls = {way: asked(model, function, **{**BASE, name: value}) for way, function in ways.items()}
        times = in_turns(calls, turns)
        row[str(value)] = {way: times[way] | {"peak_mb": round(peak(call), 1)} for way, call in calls.items()}
    for way in ways:
        row[f"exponent of time, {way}"] = exponent(values, [row[str(v)][way]["cpu_median_ms"] for v in values])
        row[f"exponent of memory, {way}"] = exponent(values, [row[str(v)][way]["peak_mb"] for v in values])
    return row


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    model, cases = make_model("fsrvos-demo"), {}
    for name, (values, plain) in POINTS.items():
        cases[name] = grow(model, name, values, plain)
        print(name, {key: value for key, value in cases[name].items() if key.startswith("exponent")}, flush=True)
    write(__file__, {"machine": machine("transformers"), "model": "fsrvos-demo", "all else": BASE, "cases": cases})


if __name__ == "__main__":
    main()
