"""Multi-scale deformable sampling in Triton for the GPU: compiled and tuned when first used, and optional. Its programs are in `deformable_programs.py`.

The plain PyTorch version that it must equal is `fsrvos.models.deformable.sample_levels`. With TRITON_INTERPRET=1 in the environment (before anything imports triton) the same
programs run on a CPU, slowly: the tests do so.
"""
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor

MANY_ROWS = 1 << 14  # the decoder's few queries and the encoder's many pixels are tuned apart


@lru_cache(maxsize=None)
def cuda_kernel() -> Callable | None:
    "The function `(value, shapes, locations, weights) -> [B, Q, heads·D]`, or None (with one warning) where Triton is not there or cannot compile."
    try:
        _try_out()
    except Exception as error:  # no Triton, no C compiler for its launcher, a GPU too old: whatever it is, the reference does
        reason = (str(error).strip().splitlines() or [""])[0]
        warnings.warn(f"no Triton kernel for deformable attention ({type(error).__name__}: {reason}); PyTorch's own operations take its place, slower and with more memory", stacklevel=2)
        return None
    return sample


def _try_out() -> None:
    "One launch of one sample, untuned, where the programs will run."
    from fsrvos.kernels import deformable_programs as programs
    device = "cpu" if programs.knobs.runtime.interpret else "cuda"
    value, locations, weights = (torch.ones(*size, device=device) for size in ((1, 1, 1, 1), (1, 1, 1, 1, 1, 2), (1, 1, 1, 1, 1)))
    _launch(programs.forward.fn, value, [1, 1], locations, value, locations, weights, torch.empty(1, 1, 1, device=device), ROWS=1)


def sample(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """As `sample_levels`, whatever precision each tensor has: sums are in float32 (float64 where the values are), locations keep their precision, and out comes what
    value times weight would be. The gradient of the values is summed in no fixed order, as that of PyTorch's own `grid_sample` is on a GPU."""
    return sample_levels(value, [side for shape in shapes for side in shape], locations, weights)


@lru_cache(maxsize=64)
def _on(device: torch.device, sizes: tuple[int, ...]) -> Tensor:
    "Heights and widths where the programs read them; kept, because a copy to the GPU waits for it."
    return torch.tensor(sizes, dtype=torch.int32, device=device)


def _launch(program, value: Tensor, sizes: list[int], locations: Tensor, *arguments: Tensor, **constants) -> None:
    "Run `program` on `arguments` for all rows of `locations` [B, Q, heads, levels, P, 2]; sizes: height and width of level after level."
    import triton
    import triton.language as tl
    (batch, pixels, heads, channels), (_, queries, _, levels, points, _) = value.shape, locations.shape
    rows = batch * queries * heads
    if not rows:
        return
    with torch.cuda.device(value.device) if value.is_cuda else nullcontext():
        program[lambda meta: (triton.cdiv(rows, meta["ROWS"]),)](
            *arguments, _on(value.device, tuple(sizes)), rows, queries, pixels, HEADS=heads, CHANNELS=channels, LEVELS=levels, POINTS=points, MANY=rows >= MANY_ROWS,
            EXACT=tl.float64 if value.dtype == torch.float64 else tl.float32, LANES=triton.next_power_of_2(channels),
            enable_fp_fusion=True, **constants)


def _check(value: Tensor, sizes: list[int], locations: Tensor) -> None:
    held = sum(map(math.prod, zip(sizes[::2], sizes[1::2])))
    if held != value.shape[1]:  # the programs would read beyond it
        raise RuntimeError(f"the levels hold {held} pixels, value has {value.shape[1]}")
    if 2 * locations.shape[3] != len(sizes):
        raise RuntimeError(f"there are {len(sizes) // 2} levels, locations has {locations.shape[3]}")


@torch.library.custom_op("fsrvos::sample_levels_triton", mutates_args=())
def sample_levels(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    from fsrvos.kernels.deformable_programs import forward
    _check(value, sizes, locations)
    value, locations, weights = (x.contiguous() for x in (value, locations, weights))
    out = _fake(value, sizes, locations, weights)
    _launch(forward, value, sizes, locations, value, locations, weights, out)
    return out


@torch.library.custom_op("fsrvos::sample_levels_triton_backward", mutates_args=())
def sample_levels_backward(grad: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from fsrvos.kernels.deformable_programs import backward
    grad, value, locations, weights = (x.contiguous() for x in (grad, value, locations, weights))
    grad_value = torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    _launch(backward, value, sizes, locations, grad, value, locations, weights, grad_value, grad_locations, grad_weights)
    return grad_value.to(value.dtype), grad_locations, grad_weights


@sample_levels.register_fake
def _fake(value, sizes, locations, weights):
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3], dtype=torch.promote_types(value.dtype, weights.dtype))


@sample_levels_backward.register_fake
def _fake_backward(grad, value, sizes, locations, weights):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (value, locations, weights))


def _remember(ctx, inputs, output):
    value, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx, grad):
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = sample_levels_backward(grad, value, ctx.sizes, locations, weights)
    return grad_value, None, grad_locations, grad_weights


sample_levels.register_autograd(_backward, setup_context=_remember)
