"""What runs on a processor also runs where its tensors are somewhere else, checked without a GPU: on PyTorch's device `meta`, which computes shapes alone, no operation may be given
tensors of two devices."""
import contextlib

import pytest
import torch
import torch.fx.experimental._config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.models.inference import Inference
from fsrvos.models.sequence_matching import SequenceMatchingConfig, SequenceMatchingModel

OURS = dict(similarity_prior=True, support_frames="all", referring_head="look", dense_auxiliary=True, support_metric=8)
KINDS = {"paper": {}, "published": dict(published=True, levels=4), "none, sentence queries": dict(affinity="none", anchor_queries=False), "ours": OURS,
         "all scales": dict(word_scales=4, size=64, mask_size=64), "several": OURS}


class OneDevice(TorchDispatchMode):
    "Raises where an operation is given tensors of several devices (single numbers apart, which PyTorch moves by itself). What depends on values, which nothing on `meta` has, is made up."

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        devices = {x.device.type for x in tree_flatten((arguments, options))[0] if isinstance(x, torch.Tensor) and x.dim()}
        if len(devices) > 1:
            raise AssertionError(f"{function} is given tensors on {' and '.join(sorted(devices))}")
        return True if function is torch.ops.aten._local_scalar_dense.default else function(*arguments, **options)


@pytest.fixture
def elsewhere(monkeypatch):
    "The device; there is no autocast on it, and every number that is asked for is not zero."
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *a, **k: contextlib.nullcontext() if device == "meta" else autocast(device, *a, **k))
    with torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True):
        yield torch.device("meta")


def model_of(kind: str):
    torch.manual_seed(0)
    single = FSRVOSModel(FSRVOSConfig.from_preset("tiny", **KINDS[kind]))
    return SequenceMatchingModel(SequenceMatchingConfig(**{**single.config.to_dict(), "queries": 6})) if kind == "several" else single


def inputs_of(config, device, frames=3, shots=2):
    levels = lambda n: [torch.zeros(1, n, c, -(-64 // s), -(-96 // s), device=device) for c, s in zip(config.vision_channels, (4, 8, 16, 32))]
    words, there = torch.zeros(1, 7, 384, device=device), torch.ones(1, 7, dtype=torch.bool, device=device)
    return levels(frames), words, there, levels(shots), torch.zeros(1, shots, 64, 96, device=device), words, there


@pytest.mark.parametrize("kind", KINDS)
def test_inference(kind, elsewhere):
    model = model_of(kind).eval().to(elsewhere)
    query, words, there, *support = inputs_of(model.config, elsewhere)
    inference = Inference(model)
    with torch.no_grad(), OneDevice():
        found = inference.decode(inference.clip(query, words, there), inference.support(*support))
    assert found.pred_masks.shape[-2:] == (16, 24) and found.pred_masks.device == found.pred_boxes.device == found.pred_logits.device == elsewhere


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_pass(kind, elsewhere):
    "Padded: the second half of the frames' width is not there."
    model = model_of(kind).train().to(elsewhere)
    padding = torch.ones(1, 3, 64, 96, dtype=torch.bool, device=elsewhere)
    with OneDevice():
        output = model.decode(*inputs_of(model.config, elsewhere), padding, torch.zeros(1, 2, dtype=torch.int64, device=elsewhere))
        (output.pred_masks.sum() + output.pred_logits.sum() + output.pred_boxes.sum()).backward()
    assert all(p.grad.device == elsewhere for p in model.parameters() if p.grad is not None)


def test_a_tensor_that_was_left_behind_is_found(elsewhere):
    model = model_of("paper").eval().to(elsewhere)
    model.level_embed = torch.nn.Parameter(torch.zeros(model.level_embed.shape))
    with torch.no_grad(), pytest.raises(AssertionError, match="tensors on cpu and meta"), OneDevice():
        model.decode(*inputs_of(model.config, elsewhere))
