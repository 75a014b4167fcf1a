"""The plain path: our model as the published code computes it, for others to be compared with.

Inside of `plainly()` attention is a matrix, deformable sampling is PyTorch's `grid_sample`, and the mask head gets the mask features and relative coordinates once for each query, through grouped
convolutions. `answer_plainly` asks a model so, chunk by chunk, with the heads of every decoder layer, and with the support encoded anew for every chunk. The parameters are the model's own.
"""
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from fsrvos.models.deformable import sample_levels
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


PARTS = {  # what is replaced, and by what
    "fsrvos.models.fusion.attend": attend_plainly,
    "fsrvos.models.affinity.attend": attend_plainly,
    "fsrvos.models.deformable.sampler": sampler_plainly,
    "fsrvos.models.mask_decoder.DynamicMaskHead._convolve": draw_plainly,
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
