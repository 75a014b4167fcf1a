"The compared models without support, in the study's own training and evaluation: features, pixels and token ids, the criterion, the predictor."
import pytest
import torch

from fsrvos.data.episodes import EpisodeDataset, PixelSource, collate, support_manifest
from fsrvos.evaluation.protocol import ModelPredictor, evaluate
from fsrvos.models.baselines import new_model
from fsrvos.training.losses import Criterion
from fsrvos.training.loop import forward

NAMES = ("referformer", "mttr")


def episodes(corpus, source, **options):
    return EpisodeDataset(corpus, sorted(corpus.videos_by_class), source=source, **{"frames": 3, "shots": 2, "episodes_per_class": 2} | options)


@pytest.fixture(params=NAMES)
def model(request):
    torch.manual_seed(0)
    return new_model(request.param, "tiny")


def iou_at_stride_4(model, batch):
    "Of the sequence with the best mean score, in the loss's grid: [B]."
    with torch.no_grad():
        output = forward(model.eval(), batch)
    best = output.pred_logits.sigmoid().mean(1).squeeze(-1).argmax(1)
    drawn = output.pred_masks[torch.arange(len(best)), :, best] > 0
    true = torch.stack([t["masks"][t["referred"]].amax(0)[..., 2::4, 2::4] for t in batch.targets]) > 0
    return (drawn & true).flatten(1).sum(1) / (drawn | true).flatten(1).sum(1)


def test_it_learns_an_episode_by_heart(tiny, model):
    corpus, store = tiny
    batch = collate([episodes(corpus, store)[3]])
    criterion, optimizer = Criterion(model.config), torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(45):
        model.train()
        optimizer.zero_grad()
        losses.append(criterion.total(criterion(forward(model, batch), batch.targets)))
        losses[-1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] < losses[0] / 4
    assert iou_at_stride_4(model, batch).min() > .8


def test_a_batch_of_several_objects_gives_every_parameter_a_finite_gradient_in_bfloat16_too(tiny, model):
    corpus, store = tiny
    batch = collate([episodes(corpus, store)[i] for i in range(3)])
    assert max(len(t["masks"]) for t in batch.targets) > 1
    criterion = Criterion(model.config)
    for low in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = forward(model.train(), batch)
        total = criterion.total(criterion(output, batch.targets))
        total.backward()
        assert torch.isfinite(total) and len(output.aux_outputs) == model.config.decoder_layers - 1
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_pixels_and_token_ids_give_what_features_and_words_give(tiny, model):
    corpus, store = tiny
    vision, text = model.encoders()
    pixels = PixelSource(corpus, text.tokenizer, mean=vision.mean, std=vision.std)
    encoded, raw = (collate([episodes(corpus, source)[i] for i in range(2)]) for source in (store, pixels))
    with torch.no_grad():
        a, b = forward(model.eval(), encoded), forward(model, raw)
    assert a.pred_masks.shape == b.pred_masks.shape == (2, 3, model.config.queries, 8, 12)
    torch.testing.assert_close(a.pred_logits, b.pred_logits, atol=.05, rtol=.05)  # the store keeps half precision


def test_evaluation_answers_each_sentence_whatever_the_support(tiny, model):
    corpus, store = tiny
    manifest = support_manifest(corpus, ["cat", "dog"], runs=1, shots=2, max_queries=6)
    assert ModelPredictor(model).inference is None, "which is for our own models, not for what shares their parts"
    found = evaluate(ModelPredictor(model, clips=3), corpus, store, manifest, progress=False)
    for name, entry in manifest["runs"][0]["support"].items():  # the same queries, other frames of the support
        entry["frames"] = entry["frames"][::-1]
    again = evaluate(ModelPredictor(model, clips=3), corpus, store, manifest, progress=False)
    assert len(found.records) == 6 and found.records == again.records
