"""How time and memory of an answer grow with the frames of a chunk, the support, the resolution, the number of sentences and the length of the video: `fsrvos.models.inference`, and
the plain path (`plain.py`) asked the same, on the demo model.

Ours knows the support before it is asked, as in a long video; what the support itself costs is the case of the shots, where it is shown anew for every answer. A clip is encoded once for all
sentences about it. The plain path encodes clip and support for every answer.

python benchmarks/growth.py    writes benchmarks/growth.json beside itself (on a GPU machine growth.cuda.json).
"""
import math
import os
from collections.abc import Callable

import numpy as np
import torch
from inference import DEVICE, EncoderError, answer_plainly, encoded, make_model, noise, show
from timing import exact_float32, in_turns, machine, peak, write

from fsrvos.models.inference import Inference

BASE = {"frames": 10, "shots": 5, "height": 128, "sentences": 1, "chunks": 1}
POINTS = {  # what grows (the first word), through which values, and through how many of them for the plain path, too
    "frames": ((2, 5, 10, 20), 4),
    "shots, the support shown for every answer": ((1, 3, 5, 10), 4),
    "height": ((64, 96, 128, 192), 4),      # of frames 3 : 2; pixels grow with its square
    "sentences": ((1, 2, 4), 3),
    "chunks": ((1, 2, 4, 8), 3),
}


def exponent(sizes: list[float], values: list[float]) -> float | None:
    "Slope of the straight line through the logarithms; None where something is not positive."
    return round(float(np.polyfit([math.log(x) for x in sizes], [math.log(x) for x in values], 1)[0]), 2) if min(values) > 0 else None


def asked(model, *, frames: int, shots: int, height: int, sentences: int, chunks: int, shown: bool = True) -> dict[str, Callable[[], None]]:
    "{way: a function that answers so many sentences about every chunk of a clip}; shown: ours was shown the support before."
    inputs, inference = noise((height, height * 3 // 2), chunks, frames, shots), Inference(model)
    (ids, mask), support = inputs.pop("words"), {name: inputs[name] for name in ("support", "support_words")}
    words = [(ids.roll(i), mask) for i in range(sentences)]
    known = show(inference, **support) if shown else None

    @torch.no_grad()
    def ours() -> None:
        state = known if shown else show(inference, **support)
        said = [encoded(model, *w) for w in words]
        for chunk in inputs["chunks"]:
            levels = inference.encode_frames(chunk)
            for w in said:
                inference.decode(inference.clip(levels, *w), state)

    def plain() -> None:
        for w in words:
            for _ in answer_plainly(model, words=w, **inputs):
                pass
    return {"ours": ours, "plain": plain}


def grow(model, name: str, values: tuple, plain: int, turns: int = 3) -> dict:
    "Time and memory for each value of `name`, of the plain path for the first `plain` of them, all else as in `BASE`, and the exponents: (time, memory) ~ value ** exponent."
    row, grows = {}, name.split(",")[0]
    for i, value in enumerate(values):
        calls = asked(model, **{**BASE, grows: value}, shown=grows != "shots")
        calls = {way: call for way, call in calls.items() if way == "ours" or i < plain}
        times = in_turns(calls, turns, device=DEVICE)
        row[str(value)] = {way: times[way] | {"peak_mb": round(peak(call, DEVICE), 1)} for way, call in calls.items()}
    return row | exponents(row, DEVICE)


def exponents(row: dict[str, dict], device: str) -> dict[str, float | None]:
    "Of the processor's time, on a GPU of the wall's, and of memory, for each way through the values where it was asked."
    found = {}
    for way in dict.fromkeys(way for ways in row.values() for way in ways):
        values = [value for value, ways in row.items() if way in ways]
        for what, key in (("time", "cpu_median_ms" if device == "cpu" else "median_ms"), ("memory", "peak_mb")):
            found[f"exponent of {what}, {way}"] = exponent([float(v) for v in values], [row[v][way][key] for v in values])
    return found


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    exact_float32()
    try:
        model, cases = make_model("fsrvos-demo"), {}
    except (ImportError, EncoderError) as error:
        print(f"left out: {str(error).splitlines()[0]}")
        return
    for name, point in POINTS.items():
        cases[name] = grow(model, name, *point)
        print(name, {key: value for key, value in cases[name].items() if key.startswith("exponent")}, flush=True)
    write(__file__, {"machine": machine("transformers", device=DEVICE), "model": "fsrvos-demo", "all else": BASE, "cases": cases})


if __name__ == "__main__":
    main()
