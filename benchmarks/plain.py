"""The plain path: our model as the published code computes it, for others to be compared with.

Inside of `plainly()` attention is a matrix, deformable sampling is PyTorch's `grid_sample`, and the mask head gets the mask features and relative coordinates once for each query, through grouped
convolutions, layer by layer; keys that do not count are masked; points and softmax have an axis each for head, level and point. `answer_plainly` asks a model so, chunk by chunk, with the heads of every decoder layer, and with the support encoded anew for every chunk. The parameters are the model's own.
"""
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from fsrvos.models.deformable import DeformableAttention, sample_levels
from fsrvos.models.fsrvos import FSRVOSModel, FSRVOSOutput
from fsrvos.models.mask_decoder import DynamicMaskHead


def attend_plainly(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    "softmax(q kᵀ / √d) v as matrices; arguments as of `fsrvos.models.fusion.attend`."
    scores = q @ k.mT / q.shape[-1] ** .5
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


def sampler_plainly(device: torch.device):
    "In place of `fsrvos.models.deformable.sampler`."
    return sample_levels


def draw_plainly(head: DynamicMaskHead, features: Tensor, kernels: Tensor, centres: Tensor) -> Tensor:
    "In place of `DynamicMaskHead._convolve`: features [F, C, h, w], kernels [F, N, parameters], centres [F, N, 2] -> logits [F, N, h, w]."
    (f, n, _), (h, w) = kernels.shape, features.shape[-2:]
    y, x = (4 * torch.arange(s, device=features.device, dtype=torch.float32) + 2 for s in (h, w))
    relative = (centres[..., None, None] - torch.stack((x.expand(h, w), y[:, None].expand(h, w)))) * head.coordinate_scale   # [F, N, 2, h, w]
    x = torch.cat((features[:, None].repeat(1, n, 1, 1, 1), relative), 2).view(1, -1, h, w)
    parts = kernels.split([o * i for o, i in head.shapes] + [o for o, _ in head.shapes], -1)
    for layer, (o, i) in enumerate(head.shapes):
        x = F.relu(x) if layer else x
        x = F.conv2d(x, parts[layer].reshape(f * n * o, i, 1, 1), parts[len(head.shapes) + layer].flatten(), groups=f * n)
    return x.view(f, n, h, w)


def draw_layers_plainly(model: FSRVOSModel, hidden: Tensor, ends: Tensor, mask_features: Tensor, query_sizes: Tensor | None) -> Tensor:
    "In place of `FSRVOSModel._draw`: the head once for every decoder layer."
    return torch.cat([DRAW(model, *layer, mask_features, query_sizes) for layer in zip(hidden.split(1), ends.split(1))])


def softmax_plainly(logits: Tensor) -> Tensor:
    "In place of `fsrvos.models.deformable.short_softmax`."
    return logits.softmax(-1, dtype=torch.float32)


def points_plainly(attention: DeformableAttention, offsets: Tensor, points: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    "In place of `DeformableAttention._near_points`."
    scale = points.new_tensor([(w, h) for h, w in shapes])[:, None]
    split = (attention.heads, attention.levels, attention.points, 2)
    return points[:, :, None, :, None] + offsets.unflatten(-1, split) / scale


def all_keys(k: Tensor, v: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    "In place of `fsrvos.models.affinity.kept_keys` and of `fsrvos.models.fusion.in_sixteens`."
    return k, v, keep


def transform_plainly(x: Tensor) -> Tensor:
    "In place of `fsrvos.models.affinity.support_transform`: a branch for each sign, as published."
    branch = lambda v: 1 / torch.log(1 / (v.clamp(min=0) + 1e-5) + 1) ** 1.3
    return branch(x) - branch(-x)


DRAW = FSRVOSModel._draw
PARTS = {  # what is replaced, and by what
    "fsrvos.models.fusion.attend": attend_plainly,
    "fsrvos.models.affinity.attend": attend_plainly,
    "fsrvos.models.deformable.sampler": sampler_plainly,
    "fsrvos.models.mask_decoder.DynamicMaskHead._convolve": draw_plainly,
    "fsrvos.models.fsrvos.FSRVOSModel._draw": draw_layers_plainly,
    "fsrvos.models.deformable.short_softmax": softmax_plainly,
    "fsrvos.models.deformable.DeformableAttention._near_points": points_plainly,
    "fsrvos.models.affinity.kept_keys": all_keys,
    "fsrvos.models.fusion.in_sixteens": all_keys,
    "fsrvos.models.fsrvos.support_transform": transform_plainly,
}


@contextmanager
def plainly(parts: dict = PARTS) -> Iterator[None]:
    "Every `FSRVOSModel` computes the plain way inside."
    with ExitStack() as replaced:
        for name, function in parts.items():
            replaced.enter_context(patch(name, function))
        yield


def answer_plainly(model: FSRVOSModel, chunks: list[Tensor], words: tuple[Tensor, Tensor], support: tuple[Tensor, Tensor], support_words: tuple[Tensor, Tensor]) -> Iterator[FSRVOSOutput]:
    "Chunks of normalised frames [1, T, 3, H, W], token ids and attention mask [1, L], support frames [1, K, 3, H, W] and masks [1, K, H, W] -> the output for each chunk."
    with torch.no_grad(), plainly():
        for frames in chunks:
            yield model(frames, *words, *support, *support_words)
