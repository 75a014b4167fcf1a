"""Multi-scale deformable sampling: this project's kernels against the plain PyTorch version and against transformers' own, in turns in one process.

python benchmarks/deformable_sampling.py    writes benchmarks/deformable_sampling.json beside itself (with a GPU: deformable_sampling.cuda.json).
"""
import os

import torch
from timing import in_turns, machine, ratio, write
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


def transformers_sampling(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> Tensor:
    "transformers' plain function; like ours it samples where float32 says only if the values are in float32."
    sizes = torch.tensor(shapes, device=value.device)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    return MultiScaleDeformableAttention()(value, sizes, shapes, starts, locations.to(value.dtype), weights, im2col_step=64)


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


def compare(shapes, *sizes, dtype: torch.dtype = torch.float32, device: str = "cpu", turns: int = 7) -> dict:
    "Forward alone, without a graph, and forward and backward."
    tensors = inputs(shapes, *sizes, dtype=dtype, device=device)
    ways = {PLAIN: sample_levels, PUBLIC: transformers_sampling, **kernels(device)}
    detached = [x.detach() for x in tensors]
    forward = in_turns({f"{name} forward": lambda s=sample: s(detached[0], shapes, *detached[1:]) for name, sample in ways.items()}, turns)
    whole = in_turns({f"{name} forward and backward": lambda s=sample: both(s, shapes, tensors) for name, sample in ways.items()}, turns)
    row, reference = {**forward, **whole}, both(sample_levels, shapes, [x.detach().float().requires_grad_() for x in tensors])
    for name in kernels(device):
        for part, times in (("forward", forward), ("forward and backward", whole)):
            row |= {f"ratio {name} to {other}, {part}": ratio(times, f"{other} {part}", f"{name} {part}") for other in (PLAIN, PUBLIC)}
        row |= {f"{name}: {part}": value for part, value in differences(both(ways[name], shapes, tensors), reference).items()}
    row |= {f"{PUBLIC}: {part}": value for part, value in differences(both(transformers_sampling, shapes, tensors), reference).items()}
    return row


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not kernels(device):
        raise SystemExit("there is no kernel to compare: the warning above says why")
    half = CASES if device == "cuda" else dict(list(CASES.items())[:1])    # on a CPU a turn of the references takes a minute at the paper's size
    report = {"machine": machine("transformers", *(["triton"] if device == "cuda" else [])),
              "cases": {name: compare(*case, device=device) for name, case in CASES.items()}
                       | {f"{name}, bfloat16": compare(*case, dtype=torch.bfloat16, device=device) for name, case in half.items()}}
    print(write(__file__, report))
    for name, row in report["cases"].items():
        print(name, {k: v for k, v in row.items() if not isinstance(v, dict)})


if __name__ == "__main__":
    main()
