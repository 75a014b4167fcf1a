"What the tests of models with one mask a frame share: episodes of the tiny corpus, the fit of one batch, an evaluation."
import torch

from fsrvos.data.episodes import EpisodeDataset, PixelSource, collate
from fsrvos.evaluation.protocol import ModelPredictor, make_query
from fsrvos.models.baselines import new_model
from fsrvos.training.losses import Criterion
from fsrvos.training.loop import forward


def tiny_batch(corpus, source, episodes=2):
    "Episodes of the tiny corpus, from `source`: a feature store, or pixels and token ids."
    dataset = EpisodeDataset(corpus, sorted(corpus.videos_by_class), source=source, frames=3, shots=2, episodes_per_class=2)
    return collate([dataset[i] for i in range(episodes)])


def pixel_source(corpus, model):
    "Pixels as the model's vision encoder wants them, and token ids of its text encoder."
    vision, text = model.encoders()
    return PixelSource(corpus, text.tokenizer, mean=vision.mean, std=vision.std)


def referred_masks(batch):
    "The masks of the objects that are meant, [B, T, h, w] bool at stride 4."
    return torch.stack([t["masks"][t["referred"].bool()].amax(0) for t in batch.targets])[..., 2::4, 2::4] > 0


def fit(architecture, batch, steps, amp=False, rate=3e-3):
    "Train a tiny model on one batch: -> (first loss, last loss, least IoU of the batch's clips)."
    torch.manual_seed(0)
    model = new_model(architecture, "tiny").train()
    criterion, optimiser = Criterion(model.config), torch.optim.AdamW(model.parameters(), rate)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            output = forward(model, batch)
        loss = criterion.total(criterion(output, batch.targets))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    with torch.no_grad():
        drawn = forward(model.eval(), batch).pred_masks[:, :, 0] > 0
    true = referred_masks(batch)
    iou = (drawn & true).sum((1, 2, 3)) / (drawn | true).sum((1, 2, 3))
    return losses[0], losses[-1], iou.min().item()


def predict(model, corpus, store, **options):
    "The evaluation's answers for every single-object sentence of the last video, supported by the first."
    first, last = (corpus.videos[v] for v in (min(corpus.videos), max(corpus.videos)))
    support = dict(video=first.id, frames=list(first.frames[:2]), object_id=1, expression=first.expressions[0].text)
    predictor = ModelPredictor(model, **options)
    queries = [make_query(corpus, last.id, e.id) for e in last.expressions if len(e.object_ids) == 1]
    return predictor.predict_batch([predictor.encode_support(store, support)] * len(queries), store, queries), queries
