"""A toy model and dataset for the training loop: milliseconds a step, the signatures of the real ones."""
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

from fsrvos.data.episodes import Clip, Episode, Sample


EPISODE = Episode(0, *(Clip(video, ("00000",), "the toy", "0", (1,), "toy", "class", True) for video in ("query", "support")))


class ToyEpisodes(Dataset):
    """Episode i is a pure function of (epoch, i): a rectangle in one of three places, the words say which."""

    def __init__(self, n=12, sizes=((32, 48),), pixels=False):
        self.n, self.sizes, self.pixels, self.epoch = n, sizes, pixels, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(1000 * self.epoch + i)
        height, width = self.sizes[i % len(self.sizes)]
        place = int(torch.randint(3, (), generator=generator))
        masks = torch.zeros(1, 2, height, width, dtype=torch.bool)
        masks[..., 8:24, place * width // 3:(place + 1) * width // 3] = True
        features = [torch.rand(2, 3, height, width, generator=generator)] if self.pixels else \
            [torch.rand(2, 3, -(-height // 4), -(-width // 4), generator=generator)]
        words = torch.tensor([place, 0]) if self.pixels else torch.eye(3)[[place]]
        return Sample(EPISODE, features, words, masks, torch.tensor([True]), features, masks[0].float(), words)


class ToyModel(nn.Module):
    """Each of N queries draws learned masks that the words select; dropout, so that random state matters."""

    def __init__(self, seed=0, queries=2, size=(8, 12)):
        super().__init__()
        torch.manual_seed(seed)
        self.config = SimpleNamespace(queries=queries, anchor_queries=True)
        self.queries, self.size, self.calls = queries, size, []
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.masks, self.rest = nn.Linear(3, queries * size[0] * size[1]), nn.Linear(3, queries * 5)
        self.dropout = nn.Dropout(0.2)

    def encode_frames(self, frames):
        return [frames[..., 2::4, 2::4]]

    def encode_text(self, ids, mask):
        return torch.nn.functional.one_hot(ids, 3).float() * mask.unsqueeze(-1)

    def decode(self, query_levels, words, word_mask, support_levels, support_masks, support_words, support_word_mask,
               query_padding=None, query_sizes=None, **others):
        self.calls.append(dict(words=words, query_levels=query_levels, query_padding=query_padding, query_sizes=query_sizes, **others))
        batch, frames = query_levels[0].shape[:2]
        words = self.dropout(self.frozen(words[:, 0]) * 0 + words[:, 0])
        rest = self.rest(words).view(batch, 1, self.queries, 5).expand(-1, frames, -1, -1)
        masks = self.masks(words).view(batch, 1, self.queries, *self.size).expand(-1, frames, -1, -1, -1)
        return SimpleNamespace(pred_logits=rest[..., :1], pred_boxes=rest[..., 1:].sigmoid(), pred_masks=masks, aux_outputs=[])

    def save_pretrained(self, path):
        Path(path).mkdir(parents=True)
        save_file(self.state_dict(), Path(path) / "model.safetensors")
