"""A transformer's feed-forward layers in float32: PyTorch's own, as 1x1 convolutions of oneDNN, and this project's kernel on matrix tiles, in turns in one process.

python benchmarks/feed_forward.py    writes benchmarks/feed_forward.json beside itself; without matrix tiles there is nothing to compare.
"""
import os

import torch
from timing import in_turns, machine, ratio, write
from torch import Tensor, nn

from fsrvos.kernels.feed_forward import cpu_kernel, pack
from fsrvos.models.inference import linear

CASES = {  # rows, width, hidden width
    "paper's size, the encoder's tokens of a frame of 360x640": (4820, 256, 2048),
    "half its width": (4820, 128, 1024),
}
PLAIN, CONVOLUTIONS, TILES = "plain", "1x1 convolutions", "matrix tiles"


def layers(width: int, hidden: int) -> tuple[nn.Linear, nn.Linear]:
    "Random ones, the same every time."
    torch.manual_seed(0)
    return nn.Linear(width, hidden), nn.Linear(hidden, width)


def ways(first: nn.Linear, second: nn.Linear, x: Tensor) -> dict:
    "{way: what computes both layers of rows x}; packing comes before, as once for each chunk of a video."
    packed, kernel = pack(first.weight, first.bias, second.weight, second.bias), cpu_kernel()
    own = lambda: linear(linear(x, first.weight, first.bias).relu_(), second.weight, second.bias)
    return {PLAIN: lambda: second(first(x).relu_()), CONVOLUTIONS: own, TILES: lambda: kernel(x, packed)}


@torch.no_grad()
def compare(rows: int, width: int, hidden: int, turns: int = 9) -> dict:
    "Times, ratios, and how far each way is from float64, as a share of its largest number."
    first, second = layers(width, hidden)
    x = torch.randn(rows, width)
    calls = ways(first, second, x)
    times = in_turns(calls, turns)
    a, b = (w.double() for w in (first.weight, second.weight))
    exact = (x.double() @ a.T + first.bias).relu() @ b.T + second.bias
    apart = {f"output, largest difference, {name}": float((call() - exact).abs().max() / exact.abs().max()) for name, call in calls.items()}
    return times | {f"ratio {TILES} to {other}": ratio(times, other, TILES) for other in (PLAIN, CONVOLUTIONS)} | apart


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    if cpu_kernel() is None:
        print("left out: this processor has no matrix tiles, or the kernel cannot be built")
        return
    report = {"machine": machine(), "cases": {name: compare(*case) for name, case in CASES.items()}}
    print(write(__file__, report))
    for name, row in report["cases"].items():
        print(name, {k: v for k, v in row.items() if not isinstance(v, dict)})


if __name__ == "__main__":
    main()
