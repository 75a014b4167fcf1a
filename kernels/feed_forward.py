"""Feed-forward layers in float32 on the matrix tiles of a processor (Intel's AMX), for inference: built when first asked for, and optional.

The plain PyTorch version that it must equal, but for 1e-5 of the largest product, is `linear2(linear1(x).relu())`.
"""
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .build import loaded

COLUMNS = 64    # of a block, as in feed_forward.cpp
CHUNK = 256     # how much of the hidden layer is made and used up at a time, at most
NARROWEST = 256  # numbers in a row: below, splitting them takes more of what their products save


def has_tiles() -> bool:
    "Whether this processor multiplies matrices of bfloat16 in tiles."
    return getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)  # older versions of PyTorch do not tell


@lru_cache(maxsize=None)
def cpu_kernel():
    "The function `(rows [R, C], packed) -> [R, C']`, packed: what `pack` made; None where there are no tiles, and (with one warning) where it cannot be built."
    if not has_tiles() or not loaded(Path(__file__).with_name("feed_forward.cpp"), "feed-forward layers"):
        return None
    torch.library.register_fake("fsrvos::feed_forward", lambda x, packed1, bias1, packed2, bias2: x.new_empty(len(x), len(bias2)))
    return lambda rows, packed: torch.ops.fsrvos.feed_forward(rows, *packed)


def fits(weight: Tensor) -> bool:
    "Whether the kernel is for a first layer of these weights [hidden, C], as they are used here and now."
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.shape[1] >= NARROWEST and weight.shape[1] % 32 == 0 and not torch.is_autocast_enabled("cpu")


def pack(weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    "Two layers [hidden, C], [hidden], [C', hidden], [C'] as the kernel reads them: weights in halves, in blocks of columns, pairs of inputs side by side; the hidden layer filled up with zeros."
    hidden = -(-len(bias1) // COLUMNS) * COLUMNS
    chunk = max(size for size in range(COLUMNS, CHUNK + 1, COLUMNS) if hidden % size == 0)
    more = hidden - len(bias1)
    first = _halves(F.pad(weight1, (0, 0, 0, more))).unflatten(1, (hidden // chunk, chunk // COLUMNS))
    second = _halves(F.pad(weight2, (0, more))).unflatten(2, (hidden // chunk, chunk // 2)).transpose(1, 2)
    return first.contiguous(), F.pad(bias1, (0, more)), second.contiguous(), bias2.contiguous()


def _halves(weight: Tensor) -> Tensor:
    "Weights float32 [outputs, inputs] -> bfloat16 [2, blocks, inputs / 2, COLUMNS, 2], whose two halves add up to them."
    weight = F.pad(weight, (0, 0, 0, -len(weight) % COLUMNS))
    high = weight.bfloat16()
    low = (weight - high.float()).bfloat16()
    return torch.stack((high, low)).unflatten(1, (-1, COLUMNS)).unflatten(3, (-1, 2)).transpose(2, 3)
