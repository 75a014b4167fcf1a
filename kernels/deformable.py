"""Multi-scale deformable sampling in C++ for the CPU: built when first asked for, kept in PyTorch's extension cache, and optional.

The plain PyTorch version that it must equal is `fsrvos.models.deformable.sample_levels`.
"""
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .build import loaded


@lru_cache(maxsize=None)
def cpu_kernel():
    "The function `(value, shapes, locations, weights) -> [B, Q, heads·D]`, or None (with one warning) where it cannot be built."
    if not loaded(Path(__file__).with_name("deformable.cpp"), "deformable attention", "PyTorch's own operations take its place, and a training step takes a quarter longer"):
        return None
    torch.library.register_fake("fsrvos::sample_levels", _fake)
    torch.library.register_fake("fsrvos::sample_levels_backward", _fake_backward)
    torch.library.register_autograd("fsrvos::sample_levels", _backward, setup_context=_remember)
    return sample


def sample(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    "As `sample_levels`: float16 is computed in float32, bfloat16 is read as it is and summed in float32; out comes what value times weight would be."
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    read = value if value.dtype in (exact, torch.bfloat16) else value.to(exact)
    out = torch.ops.fsrvos.sample_levels(read, torch.tensor(shapes), locations.to(exact), weights.to(exact))
    return out.to(torch.promote_types(value.dtype, weights.dtype))


def _fake(value, shapes, locations, weights):
    return locations.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


def _fake_backward(grad, value, shapes, locations, weights):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (value, locations, weights))


def _remember(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    value, shapes, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.fsrvos.sample_levels_backward(grad, value, shapes, locations, weights)
    return grad_value, None, grad_locations, grad_weights
