"""J and F of masks counted on one bit a pixel, in C++: built when first asked for, and optional.

The NumPy version that it must equal is in `fsrvos.evaluation.metrics`.
"""
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from .build import loaded, wanted


@lru_cache(maxsize=None)
def _kernel():
    "The operator `(prediction, truth, halves) -> counts`, or None (with one warning) where it cannot be built."
    return torch.ops.fsrvos.contour_counts if loaded(Path(__file__).with_name("contour.cpp"), "J and F", "NumPy counts") else None


def contour_counts():
    """The function `(prediction, truth, halves)` for masks bool `[T, H, W]` -> int64 `[T, 6]`: pixels of both masks (a shared one counts twice), shared pixels; outline pixels of prediction and truth;
    those within the disk of the other's outline. halves: how far the disk reaches to each side in its middle row and in those at distances 1, 2, ... None where NumPy is to count."""
    kernel = _kernel() if wanted() else None
    if kernel is None:
        return None
    return lambda prediction, truth, halves: kernel(_tensor(prediction), _tensor(truth), halves).numpy()


def _tensor(mask: np.ndarray) -> torch.Tensor:
    "The mask as a tensor; a copy where it must not be written to, as PyTorch would warn."
    return torch.from_numpy(mask if mask.flags.writeable else mask.copy())
