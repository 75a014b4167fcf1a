"""Multi-scale deformable sampling: this project's kernels against the plain PyTorch version and against transformers' own, in turns in one process.

python benchmarks/deformable_sampling.py    writes benchmarks/deformable_sampling.json beside itself (with a GPU: deformable_sampling.cuda.json).
"""
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from timing import exact_float32, in_turns, machine, ratio, write
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from fsrvos.kernels.deformable import cpu_kernel
from fsrvos.kernels.deformable_triton import cuda_kernel
from fsrvos.models.deformable import sample_levels

CASES = {  # shapes of the levels, batch, heads, channels a head
    "size cpu, a training step's 12 frames of 128x192": ([(16, 24), (8, 12), (4, 6)], 12, 4, 24),
    "paper's size, 5 frames of 360x640": ([(45, 80), (23, 40), (12, 20), (6, 10)], 5, 8, 32),
}
POINTS, PLAIN, PUBLIC = 4, "plain", "transformers"
PARTS = ("output", "gradient of values", "gradient of locations", "gradient of weights")


def inputs(shapes: list, batch: int, heads: int, channels: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    "As in the encoder: a query a pixel, which looks around itself; values in `dtype`, locations and weights in float32, as under autocast."
    torch.manual_seed(0)
    pixels, levels = sum(h * w for h, w in shapes), len(shapes)
    centres = torch.cat([torch.stack(torch.meshgrid((torch.arange(w) + .5) / w, (torch.arange(h) + .5) / h, indexing="xy"), -1).view(-1, 2) for h, w in shapes])
    locations = centres[None, :, None, None, None] + .05 * torch.randn(batch, pixels, heads, levels, POINTS, 2)
    weights = torch.rand(batch, pixels, heads, levels * POINTS).softmax(-1).view(batch, pixels, heads, levels, POINTS)
    value = torch.randn(batch, pixels, heads, channels).to(dtype)
    return tuple(x.to(device).requires_grad_() for x in (value, locations, weights))


def transformers_sampling(shapes: list, device: str) -> Callable[..., Tensor]:
    "transformers' plain function for levels of these shapes, which it wants as tensors, too; like ours it samples where float32 says only if the values are in float32."
    sizes, module = torch.tensor(shapes, device=device), MultiScaleDeformableAttention()
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))

    def sample(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> Tensor:
        return module(value, sizes, shapes, starts, locations.to(value.dtype), weights, im2col_step=64)
    return sample


def kernels(device: str) -> dict:
    "{name: this project's kernel} for a device, without those that cannot be built there."
    found = {"cpu": ("C++", cpu_kernel), "cuda": ("Triton", cuda_kernel)}[device]
    kernel = found[1]()
    return {found[0]: kernel} if kernel else {}


def both(sample, shapes, tensors) -> tuple[Tensor, ...]:
    "The output and its gradients by values, locations and weights."
    out = sample(tensors[0], shapes, *tensors[1:])
    return out, *torch.autograd.grad(out, tensors, torch.ones_like(out))


def differences(results: tuple, reference: tuple) -> dict[str, float]:
    """Largest differences, as shares of the reference's largest number. The derivative by a location jumps where a sample crosses a pixel's centre: a rounding there may choose
    either side, so for it the share of numbers that differ is told, too."""
    apart = [(a.detach().float() - b.detach().float()).abs() / b.detach().float().abs().max() for a, b in zip(results, reference)]
    return {**{f"{part}, largest difference": float(x.max()) for part, x in zip(PARTS, apart)},
            "gradient of locations, share that differs by more than 1e-5": float((apart[2] > 1e-5).float().mean())}


def compare(shapes, *sizes, dtype: torch.dtype = torch.float32, device: str = "cpu", turns: int = 7, references: tuple[str, ...] = (PLAIN, PUBLIC)) -> dict:
    "Forward alone, without a graph, and forward and backward."
    tensors = inputs(shapes, *sizes, dtype=dtype, device=device)
    own, others = kernels(device), {PLAIN: sample_levels, PUBLIC: transformers_sampling(shapes, device)}
    ways = {name: others[name] for name in references} | own
    detached = [x.detach() for x in tensors]
    forward = in_turns({f"{name} forward": lambda s=sample: s(detached[0], shapes, *detached[1:]) for name, sample in ways.items()}, turns, device=device)
    whole = in_turns({f"{name} forward and backward": lambda s=sample: both(s, shapes, tensors) for name, sample in ways.items()}, turns, device=device)
    row, exact = {**forward, **whole}, both(sample_levels, shapes, [x.detach().float().requires_grad_() for x in tensors])
    for name in own:
        for part, times in (("forward", forward), ("forward and backward", whole)):
            row |= {f"ratio {name} to {other}, {part}": ratio(times, f"{other} {part}", f"{name} {part}") for other in references}
    for name in (way for way in ways if way != PLAIN):
        row |= {f"{name}: {part}": value for part, value in differences(both(ways[name], shapes, tensors), exact).items()}
    return row


@contextmanager
def threads(number: int) -> Iterator[None]:
    "So many threads inside, afterwards as many as before."
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_two_threads(turns: int = 3) -> dict[str, dict]:
    "The paper's size against the plain version, which PyTorch runs on two threads, too; on the CPU, where there are two cores."
    if (os.cpu_count() or 1) < 2:
        return {}
    name = list(CASES)[-1]
    with threads(2):
        return {f"{name}, 2 threads": compare(*CASES[name], turns=turns, references=(PLAIN,))}


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not kernels(device):
        raise SystemExit("there is no kernel to compare: the warning above says why")
    exact_float32()
    half = CASES if device == "cuda" else dict(list(CASES.items())[:1])    # on a CPU a turn of the references takes a minute at the paper's size
    report = {"machine": machine("transformers", *(["triton"] if device == "cuda" else []), device=device),
              "cases": {name: compare(*case, device=device) for name, case in CASES.items()}
                       | {f"{name}, bfloat16": compare(*case, dtype=torch.bfloat16, device=device) for name, case in half.items()}
                       | (on_two_threads() if device == "cpu" else {})}
    print(write(__file__, report))
    for name, row in report["cases"].items():
        print(name, {k: v for k, v in row.items() if not isinstance(v, dict)})


if __name__ == "__main__":
    main()
