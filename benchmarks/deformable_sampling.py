"""The C++ kernel of deformable attention against the plain PyTorch version, in turns in one process: medians, spread, ratio.

python benchmarks/deformable_sampling.py    writes benchmarks/deformable_sampling.json beside itself.
"""
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch

from fsrvos.kernels.deformable import cpu_kernel
from fsrvos.models.deformable import sample_levels

CASES = {  # shapes of the levels, batch, heads, channels a head
    "size cpu, a training step's 12 frames of 128x192": ([(16, 24), (8, 12), (4, 6)], 12, 4, 24),
    "paper's size, 5 frames of 360x640": ([(45, 80), (23, 40), (12, 20), (6, 10)], 5, 8, 32),
}
POINTS, TURNS = 4, 9


def inputs(shapes, batch, heads, channels):
    torch.manual_seed(0)
    pixels, levels = sum(h * w for h, w in shapes), len(shapes)
    centres = torch.cat([torch.stack(torch.meshgrid((torch.arange(w) + .5) / w, (torch.arange(h) + .5) / h, indexing="xy"), -1).view(-1, 2) for h, w in shapes])
    locations = centres[None, :, None, None, None] + .05 * torch.randn(batch, pixels, heads, levels, POINTS, 2)
    weights = torch.rand(batch, pixels, heads, levels * POINTS).softmax(-1).view(batch, pixels, heads, levels, POINTS)
    return [x.requires_grad_() for x in (torch.randn(batch, pixels, heads, channels), locations, weights)]


def timed(sample, shapes, tensors, way):
    begun = time.perf_counter()
    out = sample(tensors[0], shapes, *tensors[1:])
    middle = time.perf_counter()
    grads = torch.autograd.grad(out, tensors, way)
    return middle - begun, time.perf_counter() - begun, (out.detach(), *grads)


def compare(shapes, *sizes):
    tensors = inputs(shapes, *sizes)
    way = torch.randn(sizes[0], tensors[1].shape[1], sizes[1] * sizes[2])
    samplers = {"plain": sample_levels, "kernel": cpu_kernel()}
    seconds = {(name, part): [] for name in samplers for part in ("forward", "both")}
    for turn in range(TURNS + 1):
        results = {}
        for name, sample in samplers.items():
            forward, both, results[name] = timed(sample, shapes, tensors, way)
            if turn:  # the first turn warms up
                seconds[name, "forward"].append(forward)
                seconds[name, "both"].append(both)
    row = {f"{name} {part}": dict(median_ms=round(1e3 * statistics.median(s), 2), least_ms=round(1e3 * min(s), 2), most_ms=round(1e3 * max(s), 2))
           for (name, part), s in seconds.items()}
    for part in ("forward", "both"):
        row[f"ratio {part}"] = round(statistics.median(seconds["plain", part]) / statistics.median(seconds["kernel", part]), 2)
    for name, plain, kernel in zip(("output", "gradient of values", "gradient of locations", "gradient of weights"), results["plain"], results["kernel"]):
        difference = (plain - kernel).abs() / plain.abs().max()
        row[f"{name}, largest difference"] = float(difference.max())
    # the derivative by a location jumps where a sample crosses a pixel's centre: a rounding there may choose either side
    difference = (results["plain"][2] - results["kernel"][2]).abs() / results["plain"][2].abs().max()
    row["gradient of locations, share that differs by more than 1e-5"] = float((difference > 1e-5).float().mean())
    return row


if __name__ == "__main__":
    if cpu_kernel() is None:
        raise SystemExit("there is no kernel to compare: the warning above says why")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    report = {"machine": {"processor": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__},
              "cases": {name: compare(*case) for name, case in CASES.items()}}
    out = Path(__file__).with_suffix(".json")
    scratch = out.with_suffix(".tmp")
    scratch.write_text(json.dumps(report, indent=1) + "\n")
    scratch.replace(out)
    for name, row in report["cases"].items():
        print(name, {k: v for k, v in row.items() if not isinstance(v, dict)})
