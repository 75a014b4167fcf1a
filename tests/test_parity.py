"""Number for number the published model: its outputs, intermediates, names and weights, from the reference files of the published implementation."""
import argparse
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel, select
from fsrvos.models.published import (LoadReport, PublishedWeightError, attach_empty_encoders, export_published_weights, load_published_weights,
                                     our_name, published_name, read_checkpoint)

GOLDEN = Path(__file__).parent / "golden"


def recipe(name: str, shape: list[int]) -> torch.Tensor:
    "The deterministic weight of that published name."
    name = name.removeprefix("transformer.decoder.") if name.startswith("transformer.decoder.bbox_embed.") else name
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    special = ("tgt_embed.weight", "query_embed.weight", "refpoint_embed.weight", "transformer.level_embed")
    gain = {"controller.layers.2.weight": .375, "pixel_decoder.mask_features.weight": 3.}.get(name, 1.)
    if name.startswith("text_encoder.encoder."):
        gain = 1.5 if ".attention.self.query." in name or ".attention.self.key." in name else .5
    if name.startswith(("support_qkv.", "query_qkv.")):
        gain = 1.5
    rules = ((name.endswith("running_var"), lambda: 1 + .1 * abs(z)), (name.endswith("running_mean"), lambda: .1 * z), (name.endswith("bias"), lambda: .02 * z),
             (len(shape) == 1, lambda: 1 + .05 * z), (name in special, lambda: z), (name.startswith("text_encoder.embeddings."), lambda: .02 * z),
             (True, lambda: gain * z / np.sqrt(np.prod(shape[1:]))))
    return torch.from_numpy(next(value() for holds, value in rules if holds).astype(np.float32))


@pytest.fixture(scope="module")
def manifest():
    return json.loads((GOLDEN / "official_state_dict.json").read_text())


@pytest.fixture(scope="module")
def weights(manifest):
    return {name: recipe(name, shape) for name, (shape, _) in manifest.items()}


@pytest.fixture(scope="module")
def model(weights):
    model = FSRVOSModel(FSRVOSConfig.from_preset("paper-resnet50", published=True)).eval()
    report = load_published_weights(model, weights)
    assert report == LoadReport(tuple(weights), (), ()), "a strict load leaves nothing over"
    return model


@pytest.fixture(scope="module")
def inputs():
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "case1_inputs.npz").items()}


@pytest.fixture(scope="module")
def run(model, inputs):
    "(output, what passed through named parts)."
    kept, hooks = {}, []

    def keep(name, part):
        hooks.append(part.register_forward_hook(lambda _, args, out: kept.setdefault(name, []).append((args, out))))
    for name in ("resizer", "fusion_module", "affinity", "encoder", "decoder", "pixel_decoder", "controller"):
        keep(name, getattr(model, name))
    for i, part in enumerate(model.input_proj):
        keep(f"proj{i}", part)
    batched = {k: v[None] for k, v in inputs.items() if k in ("query_frames", "support_frames", "support_masks")}
    with torch.no_grad():
        output = model(batched["query_frames"], inputs["query_input_ids"], inputs["query_attention_mask"], batched["support_frames"],
                       batched["support_masks"], inputs["support_input_ids"], inputs["support_attention_mask"], query_sizes=inputs["query_size"][None])
    for hook in hooks:
        hook.remove()
    return output, kept


def test_the_recipe_is_right(weights):
    sums = json.loads((GOLDEN / "weight_checksums.json").read_text())
    assert sums.keys() == weights.keys()
    for name, value in weights.items():
        flat = value.double().flatten()
        assert np.allclose([flat.sum(), flat.abs().sum(), flat[0], flat[-1]], sums[name], rtol=1e-6, atol=1e-6), name


TOLERANCE = dict(pred_logits=2e-5, pred_boxes=1e-5, pred_masks=2e-4, reference_points=1e-5)


def test_outputs_of_every_layer(run):
    output, golden = run[0], np.load(GOLDEN / "cma_case1_outputs.npz")
    layers = [("", output)] + [(f"aux{i}_", layer) for i, layer in enumerate(output.aux_outputs)]
    compared = 0
    for prefix, layer in layers:
        for key, tolerance in TOLERANCE.items():
            if prefix + key in golden and key in layer:
                difference = (layer[key] - torch.from_numpy(golden[prefix + key])).abs().max()
                assert difference <= tolerance, (prefix + key, float(difference))
                compared += 1
    assert compared == 4 + 3 * 3


def test_the_evaluation_of_the_published_script(run, inputs):
    golden = np.load(GOLDEN / "cma_case1_outputs.npz")
    masks, scores, query = select(run[0], tuple(inputs["query_size"].tolist()))
    wanted = np.unpackbits(golden["test_mask_bits"])[:masks.numel()].reshape(masks.shape[1:]).astype(bool)
    assert (masks[0].numpy() == wanted).mean() > .9999
    assert torch.allclose(scores[0], run[0].pred_logits.sigmoid().mean(1).max(), atol=1e-6) and query.shape == (1,)


def close(value: torch.Tensor, golden, name: str) -> None:
    "A recorded intermediate, whole or every k-th channel, and its statistics."
    tolerance = dict(rtol=1e-4, atol=1e-4)
    if name in golden:
        torch.testing.assert_close(value, torch.from_numpy(golden[name]).view_as(value), **tolerance)
        return
    assert list(golden[f"{name}__shape"]) == list(value.shape), name
    wide = value.double()
    statistics = [wide.mean(), wide.std(correction=0), wide.min(), wide.max(), wide.norm()]
    assert np.allclose(statistics, golden[f"{name}__stats"], **tolerance), name
    part = next(key for key in golden if key.startswith(f"{name}__ch"))
    axis, step = (int(x) for x in part.removeprefix(f"{name}__ch").split("_step"))
    index = torch.arange(0, value.shape[axis], step)
    torch.testing.assert_close(value.index_select(axis, index), torch.from_numpy(golden[part]), **tolerance)


def test_intermediates(run, model, inputs):
    output, kept = run
    golden = dict(np.load(GOLDEN / "cma_case1_intermediates.npz"))
    with torch.no_grad():
        for prefix, frames in (("q", inputs["query_frames"]), ("s", inputs["support_frames"])):
            for level, feature in enumerate(model.encode_frames(frames[None])):
                close(feature[0], golden, f"{prefix}_backbone_l{level}")
    for (args, words), prefix in zip(kept["resizer"], "qs"):
        close(words, golden, f"{prefix}_words")
    for level in range(4):
        for (_, projected), prefix in zip(kept[f"proj{level}"], "qs"):
            close(projected, golden, f"{prefix}_proj_l{level}")
        close(kept["affinity"][level][1][0], golden, f"cma_src_l{level}")
    close(kept["decoder"][0][1][0], golden, "hs")
    close(kept["pixel_decoder"][0][1][0], golden, "mask_features")
    for layer, kernels in enumerate(kept["controller"][0][1].roll(-1, 0)):  # all layers at once, that of the last one first
        close(kernels, golden, f"mask_head_params_layer{layer}")


# ---------------------------------------------------------------- weights

def test_the_model_has_as_many_parameters_as_the_published_one(model, manifest):
    "Buffers and the second names of the box heads apart."
    counted = {n: shape for n, (shape, _) in manifest.items() if not n.startswith("transformer.decoder.bbox_embed.") and "running_" not in n}
    parts = (model, *model.encoders())
    assert sum(int(np.prod(shape)) for shape in counted.values()) == sum(p.numel() for part in parts for p in part.parameters())


def test_every_name_goes_and_comes_back(manifest):
    model = FSRVOSModel(FSRVOSConfig.from_preset("paper-resnet50", published=True))
    for name in model.state_dict():
        assert our_name(published_name(name)) == name and published_name(name) in manifest


def test_export_gives_the_published_weights_bit_for_bit(model, weights):
    exported = export_published_weights(model)
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], value) for name, value in weights.items())


def test_a_file_as_the_published_training_saves_it(weights, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": weights, "epoch": 3, "args": argparse.Namespace(lr=1e-4)}, path)
    assert read_checkpoint(path).keys() == weights.keys()


def test_what_is_missing_or_left_over_is_an_error_and_changes_nothing(weights):
    model = FSRVOSModel(FSRVOSConfig.from_preset("paper-resnet50", published=True))
    attach_empty_encoders(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    less = {k: v for k, v in weights.items() if k != "conv_q.bias"} | {"conv_q.scale": torch.ones(1)}
    with pytest.raises(PublishedWeightError, match=r"1 missing, such as affinity\.conv_q\.bias; 1 unexpected, such as conv_q\.scale"):
        load_published_weights(model, less)
    with pytest.raises(PublishedWeightError, match=r"of another shape or value, such as tgt_embed.weight is \[7, 256\], the model wants \[5, 256\]"):
        load_published_weights(model, weights | {"tgt_embed.weight": torch.zeros(7, 256)})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    report = load_published_weights(model, less, allow=[r"affinity\.conv_q\.bias", r"conv_q\..*"])
    assert report.missing == ("affinity.conv_q.bias",) and report.unexpected == ("conv_q.scale",)


def test_pretraining_weights_leave_the_class_heads(weights):
    model = FSRVOSModel(FSRVOSConfig.from_preset("paper-resnet50", published=True))
    before = model.class_embed[0].weight.clone()
    load_published_weights(model, weights, drop_class_heads=True)
    assert torch.equal(model.class_embed[0].weight, before) and torch.equal(model.tgt_embed.weight, weights["tgt_embed.weight"])


class Harmful:
    def __reduce__(self):
        return (print, ("harm done",))


def test_a_file_that_holds_code_is_refused(tmp_path, capsys):
    path = tmp_path / "harmful.pth"
    torch.save({"model": {"a": torch.ones(1)}, "extra": Harmful()}, path)
    with pytest.raises(PublishedWeightError, match="holds more than weights|no readable checkpoint"):
        read_checkpoint(path)
    assert "harm done" not in capsys.readouterr().out


# ---------------------------------------------------------------- beyond the golden case: a literal transcription

def small_model(**options):
    "The paper's structure at a size that loops can follow; every weight random, so that nothing hides behind a start at zero."
    torch.manual_seed(0)
    model = FSRVOSModel(FSRVOSConfig(vision_channels=(8, 12, 16, 20), text_size=24, size=32, heads=4, points=2, ffn=48, levels=4, encoder_layers=1, decoder_layers=2,
                                     queries=3, mask_size=32, mask_channels=4, word_scales=4, coordinate_scale=1 / 32, **options)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * (value.shape[-1] ** -.5 if value.dim() > 1 else .2) + (name.endswith("weight") and value.dim() == 1))
    return model


def clip_inputs(frames=3, shots=2, size=(64, 96), support_size=(64, 96), words=(4, 3), seed=0):
    "Random levels, words and masks of one clip and its support."
    rng = torch.Generator().manual_seed(seed)
    levels = lambda n, s: [torch.randn(n, c, -(-s[0] // stride), -(-s[1] // stride), generator=rng) for c, stride in zip((8, 12, 16, 20), (4, 8, 16, 32))]
    masks = torch.zeros(shots, *support_size)
    masks[:, 12:44, 20:60] = 1
    return dict(query=levels(frames, size), words=torch.randn(words[0], 24, generator=rng), mask=torch.ones(words[0], dtype=torch.bool),
                support=levels(shots, support_size), masks=masks, support_words=torch.randn(words[1], 24, generator=rng), support_mask=torch.ones(words[1], dtype=torch.bool),
                padding=torch.zeros(frames, *size, dtype=torch.bool), size=size, sentence=torch.randn(24, generator=rng))


def ours(model, *clips):
    "The model on clips of one size: one batch."
    stack = lambda key: torch.stack([c[key] for c in clips])
    levels = lambda key: [torch.stack(level) for level in zip(*(c[key] for c in clips))]
    padding = stack("padding")
    with torch.no_grad():
        out = model.decode(levels("query"), stack("words"), stack("mask"), levels("support"), stack("masks"), stack("support_words"), stack("support_mask"),
                           padding if padding.any() else None, torch.tensor([c["size"] for c in clips]), sentence=stack("sentence"))
    return [*out.aux_outputs, dict(out)]


def compare(model, clip):
    from tests.literal import Literal
    wanted = Literal({published_name(n): v.detach() for n, v in model.state_dict().items()}, model.config).forward(**clip)
    for got, want in zip(ours(model, clip), wanted, strict=True):
        for key in ("pred_logits", "pred_boxes", "pred_masks"):
            torch.testing.assert_close(got[key][0], want[key], atol=1e-4 * max(1., float(want[key].abs().max())), rtol=1e-3)  # float32 noise
    torch.testing.assert_close(ours(model, clip)[-1]["reference_points"][0], wanted[-1]["reference_points"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("anchor_queries", [True, False])
@pytest.mark.parametrize("affinity", ["none", "self", "self+cross"])
def test_literally(affinity, anchor_queries, published):
    compare(small_model(affinity=affinity, anchor_queries=anchor_queries, published=published), clip_inputs())


def padded(clip, right, bottom):
    "The query clip, put into the upper left corner of larger frames."
    h, w = clip["size"]
    clip = dict(clip, padding=F.pad(clip["padding"].float(), (0, right, 0, bottom), value=1.) > .5)
    clip["query"] = [F.pad(x, (0, -(-(w + right) // s) - x.shape[-1], 0, -(-(h + bottom) // s) - x.shape[-2])) for x, s in zip(clip["query"], (4, 8, 16, 32))]
    return clip


@pytest.mark.parametrize("case", [
    clip_inputs(frames=1, shots=5), clip_inputs(frames=4, shots=1), clip_inputs(size=(52, 75), support_size=(96, 64)), padded(clip_inputs(size=(48, 72)), 24, 16),
    dict(clip_inputs(words=(5, 4)), mask=torch.tensor([True] * 3 + [False] * 2), support_mask=torch.tensor([True] * 2 + [False] * 2))],
    ids=["one frame, five shots", "more frames than shots", "unequal sizes", "padded frames", "padded words"])
@pytest.mark.parametrize("affinity", ["self", "self+cross"])
def test_literally_in_other_shapes(affinity, case):
    compare(small_model(affinity=affinity, published=True), case)


@pytest.mark.parametrize("affinity", ["none", "self", "self+cross"])
def test_a_batch_of_two_is_two_batches_of_one(affinity):
    model, clips = small_model(affinity=affinity), [clip_inputs(seed=s) for s in (1, 2)]
    both = ours(model, *clips)
    for i, clip in enumerate(clips):
        for got, want in zip(both, ours(model, clip), strict=True):
            for key in ("pred_logits", "pred_boxes", "pred_masks"):
                torch.testing.assert_close(got[key][i], want[key][0], atol=1e-4 * max(1., float(want[key].abs().max())), rtol=1e-3)  # float32 noise
