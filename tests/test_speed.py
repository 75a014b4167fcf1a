"What is fast gives the same: the plain path, the inference path and the model agree, and the benchmarks' parts run."
import copy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fsrvos.apps.demo import draw_clip
from fsrvos.apps.segment import Segmenter
from fsrvos.models.deformable import DeformableAttention
from fsrvos.models.encoders import as_pyramid
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.models.inference import Inference, folded
from fsrvos.models.sequence_matching import SequenceMatchingConfig, SequenceMatchingModel

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # they import each other as scripts do
import growth  # noqa: E402
import inference as benchmark  # noqa: E402
import plain  # noqa: E402
import training  # noqa: E402

OURS = dict(similarity_prior=True, support_frames="all", referring_head="look", support_metric=8)


@pytest.fixture(scope="module")
def models():
    "Tiny models with random weights, the paper's structure, ours, and for several objects; they share the packaged encoders."
    torch.manual_seed(0)
    found = {"paper": FSRVOSModel(FSRVOSConfig.from_preset("tiny", word_scales=4, size=64, mask_size=64)), "ours": FSRVOSModel(FSRVOSConfig.from_preset("tiny", **OURS))}
    found["several"] = SequenceMatchingModel(SequenceMatchingConfig(**{**found["ours"].config.to_dict(), "queries": 6}))
    for model in found.values():
        model.eval()._encoders = found["paper"].encoders()
    return found


def largest_difference(a, b) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in ("pred_masks", "pred_logits", "pred_boxes"))


@pytest.mark.parametrize("kind", ["paper", "ours", "several"])
def test_plain_and_ours_agree_with_the_model(models, kind):
    model, inputs = models[kind], benchmark.noise((48, 72), 2, 3, 2)
    with torch.no_grad():
        expected = [model(frames, *inputs["words"], *inputs["support"], *inputs["support_words"]) for frames in inputs["chunks"]]
    ours = list(benchmark.answer_ours(model, **inputs))
    assert ours.pop(0) is None and len(ours) == 2
    for a, b, c in zip(expected, plain.answer_plainly(model, **inputs), ours, strict=True):
        assert largest_difference(a, b) < 1e-3 and largest_difference(a, c) < 1e-3


def test_every_part_of_the_plain_path_is_replaced(models, monkeypatch):
    calls, model, inputs = Counter(), models["paper"], benchmark.noise((48, 72), 2, 3, 2)

    def counted(name, function):
        def call(*args, **options):
            calls[name] += 1
            return function(*args, **options)
        return call
    monkeypatch.setattr(model, "encode_frames", counted("encode_frames", model.encode_frames))
    with torch.no_grad(), plain.plainly({name: counted(name, function) for name, function in plain.PARTS.items()}):
        for frames in inputs["chunks"]:
            model(frames, *inputs["words"], *inputs["support"], *inputs["support_words"])
    c, chunks = model.config, 2
    blocks, layers = 2 * c.word_scales, c.encoder_layers + c.decoder_layers
    assert calls["encode_frames"] == 2 * chunks, "the support is encoded for every chunk"
    assert calls["fsrvos.models.fusion.attend"] == chunks * (2 * c.levels + blocks + c.decoder_layers), "eq. 1 of both sides, the pyramid, the decoder"
    assert calls["fsrvos.models.affinity.attend"] == chunks * 2 * c.levels, "eq. 2 and 3"
    assert calls["fsrvos.models.deformable.sampler"] == chunks * layers
    assert calls["fsrvos.models.mask_decoder.DynamicMaskHead._convolve"] == chunks * c.decoder_layers, "the head of every layer on its own"
    assert calls["fsrvos.models.deformable.DeformableAttention._near_points"] == chunks * c.encoder_layers and calls["fsrvos.models.deformable.short_softmax"] == chunks * layers
    assert calls["fsrvos.models.fsrvos.support_transform"] == chunks * min(c.levels, 3)
    before = sum(calls.values())
    with torch.no_grad():
        model(inputs["chunks"][0], *inputs["words"], *inputs["support"], *inputs["support_words"])
    assert sum(calls.values()) == before + 2, "outside of it nothing is replaced (but what this test counts itself)"


@pytest.mark.parametrize("kind", ["paper", "ours", "several"])
def test_gradients_of_the_plain_path(models, kind):
    torch.manual_seed(0)
    model, (b, t, k) = copy.deepcopy(models[kind]), (2, 2, 2)
    for module in model.modules():  # a new model samples pixels' very centres, where the derivative by the place jumps and a rounding chooses the side
        if isinstance(module, DeformableAttention):
            module.sampling_offsets.bias.data += .2 + .3 * torch.rand_like(module.sampling_offsets.bias)
    levels = lambda n: [torch.randn(b, n, c, -(-48 // s), -(-72 // s)) for c, s in zip(model.config.vision_channels, (4, 8, 16, 32))]
    query, support, words, mask = levels(t), levels(k), torch.randn(b, 5, 384), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    gradients = []
    for parts in ({}, plain.PARTS):
        model.zero_grad()
        with plain.plainly(parts):
            output = model.decode(query, words, mask, support, torch.ones(b, k, 48, 72), words, mask)
        (output.pred_masks.square().mean() + output.pred_logits.sum()).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 50
    for ours, plainly in zip(*gradients, strict=True):
        assert (ours - plainly).norm() < .01 * ours.norm() + 1e-4


def test_a_folded_resnet_is_the_same_function():
    from transformers import ResNetBackbone, ResNetConfig
    torch.manual_seed(0)
    body = ResNetBackbone(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], out_indices=[1, 2, 3, 4])).eval()
    for norm in (m for m in body.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.bias):
            tensor.data.normal_(0, .1)
        norm.running_var.data.uniform_(.5, 2)
    frames, before = torch.randn(2, 3, 37, 50), [x.clone() for x in body.state_dict().values()]
    fast = folded(body)
    with torch.no_grad():
        for a, b in zip(*(as_pyramid(list(f(frames).feature_maps), (37, 50)) for f in (body, fast)), strict=True):
            assert torch.allclose(a, b, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, body.state_dict().values())), "the encoder itself stays as it is"


def test_a_support_is_read_at_any_size_of_the_query(models):
    model, inference = models["paper"], Inference(models["paper"])
    small, large = benchmark.noise((48, 72), 1, 2, 3), benchmark.noise((80, 96), 1, 2, 3)
    encode = lambda words: (model.encode_text(*words), words[1].bool())
    with torch.no_grad():
        state = inference.support(model.encode_frames(small["support"][0]), small["support"][1], *encode(small["support_words"]))
        for clip in (small, large, small):
            found = inference.decode(inference.clip(inference.encode_frames(clip["chunks"][0]), *encode(clip["words"])), state)
            assert largest_difference(found, model(clip["chunks"][0], *clip["words"], *small["support"], *small["support_words"])) < 1e-3
    assert len(state.keys) == 2 * model.config.levels, "keys and values of each size are kept"


# ---- the segmenter

@pytest.fixture(scope="module")
def clips():
    return draw_clip("hedgehog", 0, "support"), draw_clip("hedgehog", 0, "query", objects=2)


def shown(model, clips) -> Segmenter:
    return Segmenter(model, short=48, longest=72, chunk=4, overlap=1).support(clips[0].frames[:3], clips[0].ids[:3] == 1, "the hedgehog")


def test_shared_frames_are_encoded_once(models, clips, monkeypatch):
    segmenter, frames, seen = shown(models["ours"], clips), clips[1].frames[:8], []
    encode = segmenter.inference.encode_frames
    monkeypatch.setattr(segmenter.inference, "encode_frames", lambda x: (seen.append(x.shape[1]), encode(x))[1])
    once = segmenter.segment(frames, "the hedgehog", progress=False)
    assert seen == [4, 3, 1]
    monkeypatch.setattr(segmenter, "_encode_next", lambda frames, before: segmenter._encode(frames))
    again = segmenter.segment(frames, "the hedgehog", progress=False)
    assert np.allclose(once.scores, again.scores, atol=1e-4) and (once.masks == again.masks).mean() > .999


def test_a_model_trained_after_it_was_shown_the_support(clips):
    torch.manual_seed(1)
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", **OURS)).eval()
    segmenter, frames = shown(model, clips), clips[1].frames[:4]
    before = segmenter.segment(frames, "the hedgehog", progress=False)
    with torch.no_grad():
        for parameter in (*model.affinity.parameters(), *model.referring_head.parameters()):
            parameter.add_(.1 * torch.randn_like(parameter))
    after = segmenter.segment(frames, "the hedgehog", progress=False)
    assert after.scores != before.scores and after.scores == shown(model, clips).segment(frames, "the hedgehog", progress=False).scores


# ---- the benchmarks

def test_growth_of_known_laws():
    assert growth.exponent([1, 2, 4], [3, 12, 48]) == 2 and growth.exponent([1, 10], [5, 5]) == 0 and growth.exponent([1, 2], [0, 1]) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory_is_what_a_call_takes():
    assert 60 < growth.peak(lambda: torch.ones(2 ** 24)) < 80


def test_growth_runs(models, monkeypatch):
    monkeypatch.setitem(growth.BASE, "height", 32)
    row = growth.grow(models["ours"], "sentences", (1, 2, 3), 2, turns=1)
    assert set(row) == {"1", "2", "3", *(f"exponent of {what}, {way}" for what in ("time", "memory") for way in ("ours", "plain"))}
    assert row["2"]["plain"]["median_ms"] > 0 and set(row["3"]) == {"ours"}
    assert {name.split(",")[0] for name in growth.POINTS} == set(growth.BASE)


@pytest.mark.parametrize("shown", [True, False])
def test_what_an_answer_of_ours_computes(models, shown, monkeypatch):
    "A clip once for all sentences; the support, and the folded encoder, before it is asked, or for every answer."
    calls = Counter()
    for name in ("encode_frames", "support", "clip", "decode"):
        original = getattr(Inference, name)
        monkeypatch.setattr(Inference, name, lambda self, *a, name=name, original=original: (calls.update([name]), original(self, *a))[1])
    ways = growth.asked(models["ours"], frames=2, shots=2, height=32, sentences=3, chunks=2, shown=shown)
    before = dict(calls)
    ways["ours"]()
    assert before == ({"encode_frames": 1, "support": 1} if shown else {})
    assert calls == {"encode_frames": 3, "support": 1, "clip": 6, "decode": 6}


def test_a_support_encoded_anew_gives_the_same(models, monkeypatch):
    shown, inputs, original = Counter(), benchmark.noise((48, 72), 2, 3, 2), Inference.support
    monkeypatch.setattr(Inference, "support", lambda self, *a: (shown.update(["support"]), original(self, *a))[1])
    (_, *kept), anew = benchmark.answer_ours(models["ours"], **inputs), list(benchmark.answer_anew(models["ours"], **inputs))
    assert len(anew) == 2 and shown["support"] == 1 + 2
    assert all(largest_difference(a, b) < 1e-6 for a, b in zip(kept, anew, strict=True))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    "(folder, corpus) of two classes."
    folder = tmp_path_factory.mktemp("rendered")
    return folder, training.small_corpus(folder, classes=2)


def test_a_training_step_is_the_same_the_plain_way(rendered):
    dataset, config, settings = training.small_study(*rendered, steps=1)
    assert settings.batch_size * 1 <= len(dataset) and config.referring_head == "look" and dataset.other_sentences == 6
    batches, make = [next(training.batch_stream(dataset, settings, 0))], lambda: FSRVOSModel(config)
    losses = {way: [step() for _ in range(2)] for way, step in ((w, training.stepper(make, settings, batches, *options)) for w, options in training.WAYS.items())}
    ours, plainly, half, foreach = (losses[way] for way in ("ours, float32", "plain, float32", "ours, bfloat16", "ours, bfloat16, AdamW foreach"))
    assert ours == pytest.approx(plainly, rel=1e-3) and half == pytest.approx(ours, rel=.1) and foreach == pytest.approx(half, rel=.02)
    assert ours[1] != ours[0], "the step changed the weights"


def test_augmented_pixels_come_from_workers(rendered):
    dataset, _, settings = training.small_study(*rendered, steps=2, augment=True)
    assert settings.num_workers >= 1 and len(dataset) >= 2 * settings.batch_size and dataset.other_sentences == 0
    batch = training.collate([dataset[0], dataset[1]])
    assert not batch.words.is_floating_point() and batch.query[0].shape[2] == 3 and min(batch.query[0].shape[-2:]) >= 288, "pixels as large as the paper's"


def test_the_loop_says_how_long_it_waits(rendered, tmp_path):
    dataset, config, settings = training.small_study(*rendered, steps=3)
    told = training.waiting(dataset, config, settings, tmp_path / "train", "the loop")
    assert told["the loop, steps"] == len(dataset) // settings.batch_size - 1 >= 2, "all but the first"
    assert 0 <= told["the loop, share of time spent waiting for data"] < 1 and told["the loop, seconds a step"] > 0


def test_steps_at_the_papers_size_are_the_same_the_plain_way():
    small = dict(size=32, ffn=32, heads=4, encoder_layers=1, decoder_layers=1, mask_size=32)
    (name, row), = training.paper_steps(FSRVOSConfig.from_preset("paper-resnet50", **small), frames=2, shots=1, size=(64, 96), turns=1).items()
    assert "2 frames and 1 shots of 64x96" in name and row["loss of the first step, largest difference"] < 1e-3
    assert {way for way in row if isinstance(row[way], dict) and "median_ms" in row[way]} == {"plain, float32", "ours, float32", "ours, bfloat16"}
    assert all(row[way]["peak_mb"] > 0 and row[way]["steps_a_second"] > 0 for way in ("plain, float32", "ours, float32", "ours, bfloat16"))
