"""Matching and losses: equal to the published criterion (golden files), and to a slow literal transcription of it."""
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fsrvos.training.losses import Criterion, LossSettings, metric_loss
from fsrvos.training.matching import gather_targets, match, matching_cost, sample_masks, stack_layers

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS = dict(ce=2.0, bbox=5.0, giou=2.0, mask=2.0, dice=5.0)


# ---------------------------------------------------------------- golden files

def golden(name):
    return dict(np.load(GOLDEN / name))


def golden_target(data, prefix):
    return {name: torch.from_numpy(data[f"{prefix}_{name}"]) for name in ("masks", "boxes", "valid", "labels")}


def golden_output(data, n_aux):
    def layer(prefix):
        return {f"pred_{n}": torch.from_numpy(data[f"{prefix}pred_{n}"]) for n in ("logits", "boxes", "masks")}
    return SimpleNamespace(**layer(""), aux_outputs=[layer(f"aux{i}_") for i in range(n_aux)], dense_logits=None)


def case(name):
    if name == "synthetic":
        data = golden("loss_synthetic_b1.npz")
        return data, golden_output(data, 1), golden_target(data, "target0")
    data = golden("cma_case1_loss.npz")
    return data, golden_output(golden("cma_case1_outputs.npz"), 3), golden_target(data, "target")


@pytest.mark.parametrize("name", ["synthetic", "case1"])
def test_losses_equal_the_published_ones(name):
    data, output, target = case(name)
    criterion = Criterion(SimpleNamespace(published=True))
    losses = criterion(output, [target])
    expected = {key.removeprefix("loss/"): float(value) for key, value in data.items() if key.startswith("loss/")}
    assert set(losses) == set(expected)
    for key, value in expected.items():
        assert float(losses[key]) == pytest.approx(value, rel=1e-4), key
    assert float(criterion.total(losses)) == pytest.approx(float(data["total_weighted"]), rel=1e-4)


@pytest.mark.parametrize("name", ["synthetic", "case1"])
def test_matcher_equals_the_published_one(name):
    data, output, target = case(name)
    layers = stack_layers(output)
    targets = gather_targets([target], layers.masks.shape[-2:])
    cost = matching_cost(layers, targets, WEIGHTS, published=True)[..., 0]
    assert torch.allclose(cost, torch.from_numpy(data["matcher_cost"]), rtol=1e-4, atol=1e-4)
    matches = match(layers, targets, WEIGHTS, published=True)
    assert matches.query.tolist() == data["matcher_query_index"][:, 0].tolist()


# ---------------------------------------------------------------- literal transcription, loop by loop

def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slow_focal(logit, target):
    p = sigmoid(logit)
    return np.where(target > 0, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p ** 2 * np.log(1 - p))


def slow_giou(a, b):
    a, b = [(c[0] - c[2] / 2, c[1] - c[3] / 2, c[0] + c[2] / 2, c[1] + c[3] / 2) for c in (a, b)]
    area = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    union = sum(area) - overlap
    return overlap / union - (hull - union) / hull


def slow_sample(masks):
    """[T, H, W] padded to a multiple of 32, every fourth pixel from the third on."""
    T, H, W = masks.shape
    padded = np.zeros((T, math.ceil(H / 32) * 32, math.ceil(W / 32) * 32))
    padded[:, :H, :W] = masks
    return padded[:, 2::4, 2::4]


def slow_dice(p, y):
    return (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def slow_cost(layer, clip, target, m, published):
    """Costs of all queries for object m: list of N floats."""
    logits, boxes, masks = [layer[k][clip].detach().double().numpy() for k in ("pred_logits", "pred_boxes", "pred_masks")]
    T, N = logits.shape[:2]
    counted = [t for t in range(T) if published or target["valid"][m, t]]
    h, w = masks.shape[-2:]
    y = slow_sample(target["masks"][m].numpy())[:, :h, :w]
    costs = []
    for n in range(N):
        ce = sum(slow_focal(logits[t, n, 0], 1) - slow_focal(logits[t, n, 0], 0) for t in counted) / max(len(counted), 1)
        l1 = sum(np.abs(boxes[t, n] - target["boxes"][m, t].numpy()).sum() for t in counted) / max(len(counted), 1)
        giou = sum(-slow_giou(boxes[t, n], target["boxes"][m, t].double().numpy()) for t in counted) / max(len(counted), 1)
        focal = slow_focal(masks[:, n], y).mean()
        costs.append(2 * ce + 5 * l1 + 2 * giou + 2 * focal - 5 * slow_dice(sigmoid(masks[:, n]), y))
    return costs


def slow_losses(layer, targets, settings):
    """The five losses of one layer as a dict, with brute-force assignment over all permutations."""
    total = dict(ce=0.0, bbox=0.0, giou=0.0, mask=0.0, dice=0.0)
    frames_referred = frames_matched = 0.0
    for clip, target in enumerate(targets):
        logits, boxes, masks = [layer[k][clip].detach().double().numpy()
                                for k in ("pred_logits", "pred_boxes", "pred_masks")]
        T, N, h, w = masks.shape
        referred, valid = target["referred"].bool().tolist(), target["valid"].bool().numpy()
        wanted = [m for m in range(len(referred)) if settings.match_all_objects or referred[m]]
        cost = {m: slow_cost(layer, clip, target, m, settings.published) for m in wanted}
        best = min(itertools.permutations(range(N), len(wanted)), key=lambda q: sum(cost[m][n] for m, n in zip(wanted, q)))
        score = np.zeros((T, N))
        for m, n in zip(wanted, best):
            weight = 1.0 if referred[m] else 0.5
            frames_matched += weight * valid[m].sum()
            y = slow_sample(target["masks"][m].numpy())[:, :h, :w]
            for t in range(T):
                if valid[m, t] and referred[m]:
                    score[t, n] = 1
                if valid[m, t] or settings.published:
                    box = target["boxes"][m, t].double().numpy()
                    total["bbox"] += weight * np.abs(boxes[t, n] - box).sum()
                    total["giou"] += weight * (1 - slow_giou(boxes[t, n], box))
            total["mask"] += weight * slow_focal(masks[:, n], y).mean()
            total["dice"] += weight * (1 - slow_dice(sigmoid(masks[:, n]), y))
        for m, n in itertools.product(range(len(referred)), range(N)):
            if settings.soft_positive_iou is not None and referred[m]:
                y, drawn = slow_sample(target["masks"][m].numpy())[:, :h, :w] > 0, masks[:, n] > 0
                if (y & drawn).sum() / max((y | drawn).sum(), 1) > settings.soft_positive_iou:
                    score[valid[m], n] = 1
        frames_referred += sum(valid[m].sum() for m in range(len(referred)) if referred[m])
        total["ce"] += slow_focal(logits[..., 0], score).sum()
    return {k: v / max(frames_referred if k == "ce" else frames_matched, 1) for k, v in total.items()}


def random_target(rng, M, T, H, W, referred):
    masks, boxes = torch.zeros(M, T, H, W), torch.zeros(M, T, 4)
    for m, t in itertools.product(range(M), range(T)):
        if rng.random() < 0.25 and t > 0:
            continue  # not visible in this frame
        y0, x0 = rng.integers(0, H - 8), rng.integers(0, W - 8)
        y1, x1 = rng.integers(y0 + 4, H), rng.integers(x0 + 4, W)
        masks[m, t, y0:y1 + 1, x0:x1 + 1] = 1
        boxes[m, t] = torch.tensor([(x0 + x1) / 2 / W, (y0 + y1) / 2 / H, (x1 - x0) / W, (y1 - y0) / H])
    return dict(masks=masks, boxes=boxes, valid=masks.flatten(2).any(-1), referred=torch.tensor(referred))


def random_layer(rng, B, T, N, H, W):
    h, w = math.ceil(H / 4), math.ceil(W / 4)
    blobs = torch.from_numpy(rng.normal(size=(B, T, N, h, w)) * 2)
    return dict(pred_logits=torch.from_numpy(rng.normal(size=(B, T, N, 1)) * 2),
                pred_boxes=torch.from_numpy(rng.uniform(0.1, 0.6, size=(B, T, N, 4))), pred_masks=blobs)


REFERRED = {"one": [[True]], "two clips": [[True], [True]], "one of three": [[False, True, False]],
            "mixed batch": [[True, False], [True], [False, True, True]]}


@pytest.mark.parametrize("name", REFERRED)
@pytest.mark.parametrize("T, size", [(1, (32, 48)), (3, (37, 50)), (4, (30, 61))])
@pytest.mark.parametrize("config", [dict(published=True), dict(), dict(match_all_objects=True, soft_positive_iou=0.25)])
def test_equals_slow_transcription(name, T, size, config):
    rng = np.random.default_rng([T, len(name)])
    referred = REFERRED[name]
    targets = [random_target(rng, len(r), T, *size, r) for r in referred]
    final, *aux = [random_layer(rng, len(referred), T, 5, *size) for _ in range(3)]
    # one query draws something like the first object, so that soft positives occur
    for clip, target in enumerate(targets):
        h, w = final["pred_masks"].shape[-2:]
        final["pred_masks"][clip, :, 3] = 2.0 * torch.from_numpy(slow_sample(target["masks"][-1].numpy())[:, :h, :w]) - 1
    losses = Criterion(SimpleNamespace(**config))(SimpleNamespace(**final, aux_outputs=aux), targets)
    for suffix, layer in zip(["", "_0", "_1"], [final, *aux]):
        expected = slow_losses(layer, targets, LossSettings(**config))
        for key, value in expected.items():
            assert float(losses[f"loss_{key}{suffix}"]) == pytest.approx(value, rel=1e-4, abs=1e-6), (key, suffix)


def test_cost_equals_slow_transcription():
    rng = np.random.default_rng(0)
    targets = [random_target(rng, 2, 4, 40, 70, [True, True]), random_target(rng, 1, 4, 40, 70, [True])]
    final = random_layer(rng, 2, 4, 5, 40, 70)
    layers = stack_layers(SimpleNamespace(**final, aux_outputs=[]))
    gathered = gather_targets(targets, layers.masks.shape[-2:])
    for published in (False, True):
        cost = matching_cost(layers, gathered, WEIGHTS, published=published)[0]
        for clip, target in enumerate(targets):
            for m in range(len(target["masks"])):
                assert np.allclose(cost[clip, :, m], slow_cost(final, clip, target, m, published), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- particulars

def one_clip(H=32, W=48, T=3):
    rng = np.random.default_rng(5)
    target = random_target(rng, 1, T, H, W, [True])
    return random_layer(rng, 1, T, 5, H, W), target


def test_single_object_needs_no_object_axis():
    layer, target = one_clip()
    output, flat = SimpleNamespace(**layer, aux_outputs=[]), {k: v[0] for k, v in target.items() if k != "referred"}
    a, b = Criterion(SimpleNamespace())(output, [target]), Criterion(SimpleNamespace())(output, [flat])
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_batch_is_the_frame_weighted_mean_of_its_clips():
    rng = np.random.default_rng(1)
    targets = [random_target(rng, 1, 3, 32, 48, [True]) for _ in range(2)]
    both = random_layer(rng, 2, 3, 5, 32, 48)
    criterion = Criterion(SimpleNamespace())
    frames = [int(t["valid"].sum()) for t in targets]
    alone = [criterion(SimpleNamespace(**{k: v[i:i + 1] for k, v in both.items()}, aux_outputs=[]), [targets[i]])
             for i in range(2)]
    together = criterion(SimpleNamespace(**both, aux_outputs=[]), targets)
    for key, value in together.items():
        mean = sum(n * float(losses[key]) for n, losses in zip(frames, alone)) / sum(frames)
        assert float(value) == pytest.approx(mean, rel=1e-5), key


def test_an_object_that_is_never_visible_gives_finite_losses_and_gradients():
    layer, target = one_clip()
    target = target | dict(masks=target["masks"] * 0, boxes=target["boxes"] * 0, valid=target["valid"] & False)
    for published in (False, True):
        leaves = {k: v.float().requires_grad_() for k, v in layer.items()}
        criterion = Criterion(SimpleNamespace(published=published))
        losses = criterion(SimpleNamespace(**leaves, aux_outputs=[]), [target])
        criterion.total(losses).backward()
        assert all(torch.isfinite(v) for v in losses.values())
        assert all(torch.isfinite(v.grad).all() for v in leaves.values())


def test_boxes_of_no_size_give_finite_gradients():
    layer, target = one_clip()
    boxes = torch.zeros(1, 3, 5, 4, requires_grad=True)
    criterion = Criterion(SimpleNamespace(published=True))
    losses = criterion(SimpleNamespace(**layer | dict(pred_boxes=boxes), aux_outputs=[]),
                       [target | dict(boxes=target["boxes"] * 0)])
    criterion.total(losses).backward()
    assert torch.isfinite(boxes.grad).all()


def test_half_precision_outputs_are_computed_in_float32():
    layer, target = one_clip()
    half = {k: v.bfloat16() for k, v in layer.items()}
    exact = {k: v.float() for k, v in half.items()}
    a, b = (Criterion(SimpleNamespace())(SimpleNamespace(**x, aux_outputs=[]), [target]) for x in (half, exact))
    assert all(v.dtype == torch.float32 and torch.equal(v, b[k]) for k, v in a.items())


def test_dense_loss_is_entropy_and_dice_against_the_union_of_the_referred():
    rng = np.random.default_rng(2)
    target = random_target(rng, 3, 2, 30, 50, [True, False, True])
    layer = random_layer(rng, 1, 2, 5, 30, 50)
    logits = torch.from_numpy(rng.normal(size=(1, 2, 8, 13)))
    criterion = Criterion(SimpleNamespace(dense_weight=3.0, query_loss_scale=0.0))
    losses = criterion(SimpleNamespace(**layer, aux_outputs=[], dense_logits=logits), [target])
    y = np.maximum(*(slow_sample(target["masks"][m].numpy())[:, :8, :13] for m in (0, 2)))
    p = sigmoid(logits[0].numpy())
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean() + 1 - slow_dice(p, y)
    assert float(losses["loss_dense"]) == pytest.approx(expected, rel=1e-5)
    assert float(criterion.total(losses)) == pytest.approx(3 * expected, rel=1e-5)


def test_more_objects_than_queries_serve_the_referred_first():
    rng = np.random.default_rng(3)
    target = random_target(rng, 6, 2, 32, 48, [False] * 5 + [True])
    layers = stack_layers(SimpleNamespace(**random_layer(rng, 1, 2, 3, 32, 48), aux_outputs=[]))
    matches = match(layers, gather_targets([target], (8, 12)), WEIGHTS, all_objects=True)
    assert len(matches.object) == 3 and 5 in matches.object.tolist()


@pytest.mark.parametrize("size", [(1, 1), (33, 64), (34, 66), (36, 97)])
def test_sampling_equals_padding_to_32_first(size):
    masks = torch.rand(2, *size).round()
    h, w = math.ceil(size[0] / 4), math.ceil(size[1] / 4)
    assert torch.equal(sample_masks(masks, (h, w)), torch.from_numpy(slow_sample(masks.numpy())[:, :h, :w]).float())


def test_bad_input_is_told_in_one_line():
    layer, target = one_clip()
    output, criterion = SimpleNamespace(**layer, aux_outputs=[]), Criterion(SimpleNamespace())
    with pytest.raises(ValueError, match=r"targets\[0\].*disagree"):
        criterion(output, [target | dict(boxes=target["boxes"][:, :2])])
    with pytest.raises(ValueError, match="do not fit"):
        criterion(output, [target | dict(masks=torch.zeros(1, 3, 64, 64))])
    with pytest.raises(ValueError, match="loss_weights must name exactly"):
        Criterion(SimpleNamespace(loss_weights=dict(ce=1.0)))


# ---------------------------------------------------------------- metric of objects

def slow_metric_loss(maps, support, targets, classes, temperature):
    "Pair by pair, with loops and no masks of tensors."
    def unit(vector): return vector / vector.norm()
    def mean_under(clip, weights):  # weights [T, H, W]
        pooled = torch.nn.functional.adaptive_avg_pool2d(weights, maps.shape[-2:])
        return unit((maps[clip] * pooled[:, None]).sum((0, 2, 3)))
    shown = [c for c in range(len(maps)) if support[c].abs().sum() > 0]
    objects = {(c, m): mean_under(c, targets.masks[c, m]) for c in shown for m in range(targets.masks.shape[1])
               if targets.present[c, m] and targets.masks[c, m].sum() > 0}
    rest = [mean_under(c, 1 - targets.masks[c].sum(0)) for c in range(len(maps))]
    losses = []
    for (c, m), vector in objects.items():
        def score(a, b): return float(a @ b) / temperature
        supports = [score(vector, support[k]) for k in shown if k == c or classes[k] != classes[c]]
        others = [score(support[c], v) for (k, _), v in objects.items() if classes[k] != classes[c]]
        own, background = score(vector, support[c]), [score(support[c], v) for v in rest]
        total = lambda scores: math.log(sum(math.exp(s) for s in scores))
        losses.append(total(supports) - own + total([own, *others, *background]) - own)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("codes, absent", [([1, 2, 3], None), ([1, 1, 3], None), ([1, 2, 3], 1)])
def test_metric_loss_pair_by_pair(codes, absent):
    "Three clips with up to two objects; two clips of one class; a support that shows nothing."
    torch.manual_seed(2)
    masks = torch.zeros(3, 2, 2, 16, 24)
    for clip in range(3):
        masks[clip, 0, :, 2:8, 4 * clip:4 * clip + 9] = 1
    masks[0, 1, :, 10:15, 12:20] = 1
    boxes = torch.zeros(3, 2, 2, 4)
    targets = gather_targets([dict(masks=masks[c].repeat_interleave(4, -1).repeat_interleave(4, -2)[:2 if c == 0 else 1], boxes=boxes[c, :2 if c == 0 else 1],
                                   valid=torch.ones(2 if c == 0 else 1, 2)) for c in range(3)], (16, 24))
    maps, support = torch.randn(3, 2, 5, 4, 6, requires_grad=True), torch.nn.functional.normalize(torch.randn(3, 5), dim=-1)
    if absent is not None:
        support[absent] = 0
    value = metric_loss(maps, support, targets, torch.tensor(codes), 0.2)
    assert value.item() == pytest.approx(slow_metric_loss(maps.detach(), support, targets, codes, 0.2), rel=1e-4)
    value.backward()
    assert torch.isfinite(maps.grad).all() and maps.grad.abs().sum() > 0


def test_metric_loss_without_any_object_is_zero():
    target = dict(masks=torch.zeros(1, 2, 32, 48), boxes=torch.zeros(1, 2, 4), valid=torch.zeros(1, 2))
    maps = torch.randn(1, 2, 5, 4, 6, requires_grad=True)
    value = metric_loss(maps, torch.ones(1, 5), gather_targets([target], (8, 12)), torch.tensor([4]))
    value.backward()
    assert value == 0 and torch.isfinite(maps.grad).all()
