"The C++ kernel equals the plain version it replaces, forward and backward, and its absence is no more than a warning."
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fsrvos.kernels import build, feed_forward
from fsrvos.kernels.deformable import cpu_kernel
from fsrvos.models import deformable, inference
from fsrvos.models.deformable import DeformableAttention, sample_levels, sampler
from fsrvos.models.inference import FeedForward
from tests.sampling import SHAPES, eighths, inputs, with_gradients

ROOT = Path(__file__).resolve().parent.parent
needs_kernel = pytest.mark.skipif(cpu_kernel() is None, reason="no C++ compiler here: the plain version runs")
needs_tiles = pytest.mark.skipif(feed_forward.cpu_kernel() is None, reason="no matrix tiles here: the plain version runs")


@needs_kernel
@pytest.mark.parametrize("shapes", SHAPES, ids=len)
@pytest.mark.parametrize("channels", [3, 8, 16, 24, 32, 64])
def test_equals_the_plain_version(shapes, channels):
    tensors = inputs(shapes, channels)
    for fast, plain in zip(with_gradients(cpu_kernel(), shapes, *tensors), with_gradients(sample_levels, shapes, *tensors)):
        torch.testing.assert_close(fast, plain, atol=1e-9, rtol=1e-9)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(dtype):
    shapes = SHAPES[2]
    value, locations, weights = (x.detach().to(dtype) for x in inputs(shapes, 24))
    fast = cpu_kernel()(value, shapes, locations, weights)
    plain = sample_levels(value.float(), shapes, locations.float(), weights.float())
    unit = max(torch.finfo(dtype).eps, 1e-5)
    assert fast.dtype == dtype
    torch.testing.assert_close(fast.float(), plain, atol=unit, rtol=unit)


@needs_kernel
@pytest.mark.parametrize("channels", [3, 24, 32, 64])
def test_bfloat16_values_are_read_as_they_are(channels):
    "Beside locations and weights in float32, as under autocast: sums are in float32, and so is what comes out; the values' gradient is rounded once."
    half, locations, weights = (x.detach().float() for x in inputs(SHAPES[2], channels))
    half = half.bfloat16()
    results = []
    for sample, value in ((cpu_kernel(), half), (sample_levels, half.float())):
        results.append(with_gradients(sample, SHAPES[2], *(x.detach().requires_grad_() for x in (value, locations, weights))))
    (out, by_value, *rest), (plain, by_plain, *plain_rest) = results
    assert out.dtype == torch.float32 and by_value.dtype == torch.bfloat16
    torch.testing.assert_close((out, *rest), (plain, *plain_rest), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_value, by_plain.bfloat16(), atol=1e-4, rtol=1e-2)


@needs_kernel
def test_a_model_in_bfloat16():
    "Its projections want what they are made of."
    attention = DeformableAttention(32, 4, 2, 3).bfloat16()
    memory, reference = torch.randn(2, 30, 32, dtype=torch.bfloat16), torch.rand(2, 5, 2, 2, dtype=torch.bfloat16)
    out = attention(memory[:, :5], reference, memory, [(4, 6), (2, 3)], None)
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and attention.value_proj.weight.grad.isfinite().all()


@needs_kernel
def test_compile_sees_through_the_attention():
    attention, memory, reference = DeformableAttention(32, 4, 2, 3), torch.randn(2, 30, 32), torch.rand(2, 5, 2, 2)
    call = lambda module: module(memory[:, :5], reference, memory, [(4, 6), (2, 3)], None)
    torch.testing.assert_close(call(torch.compile(attention, fullgraph=True, backend="aot_eager")), call(attention))


@needs_kernel
def test_every_gradient_by_finite_differences():
    tensors = inputs(SHAPES[1], 3, batch=1, queries=2, points=2)
    assert torch.autograd.gradcheck(lambda *x: cpu_kernel()(x[0], SHAPES[1], *x[1:]), tensors)


@needs_kernel
@pytest.mark.parametrize("shapes", SHAPES, ids=len)
@pytest.mark.parametrize("channels", [8, 16, 24, 32, 64])
def test_gradients_by_finite_differences(shapes, channels):
    "Along random directions, which takes two samplings a tensor instead of two a number."
    tensors = inputs(shapes, channels, queries=3, points=4)
    assert torch.autograd.gradcheck(lambda *x: cpu_kernel()(x[0], shapes, *x[1:]), tensors, fast_mode=True)


@needs_kernel
def test_on_the_border_and_far_outside():
    "Exactly on the corner of a level, a hair inside, far away, not a number."
    shapes, value = [(4, 6)], inputs([(4, 6)], 8)[0].detach()
    places = torch.tensor([[0., 0.], [1., 1.], [1., 0.], [.5 / 6, .5 / 4], [1 - 1e-12, 1e-12], [-9., 40.], [1e30, -1e30]], dtype=torch.float64)
    locations = places[None, :, None, None, None].expand(2, -1, 2, 1, 1, -1)
    weights = torch.ones(2, len(places), 2, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(cpu_kernel()(value, shapes, locations, weights), sample_levels(value, shapes, locations, weights))
    assert cpu_kernel()(value, shapes, locations * float("nan"), weights).eq(0).all()


@needs_kernel
def test_gradients_on_pixels_borders_and_as_far_out_as_a_sample_can_touch_a_pixel():
    "Exactly one pixel before the first, where the derivative by the location jumps from 0, the kernel takes 0, as the published CUDA operator does; PyTorch takes the other side's."
    shapes, value, locations, weights = eighths()
    (*fast, by_place, by_weight), (*plain, by_plain_place, by_plain_weight) = (with_gradients(s, shapes, value, locations, weights) for s in (cpu_kernel(), sample_levels))
    torch.testing.assert_close((*fast, by_weight), (*plain, by_plain_weight))
    (h, w), = shapes
    jumps = (locations * torch.tensor([w, h]) == -.5).any(-1)
    assert 0 < jumps.sum() < jumps.numel() / 4 and by_place[jumps].eq(0).all()
    torch.testing.assert_close(by_place[~jumps], by_plain_place[~jumps])


@needs_kernel
def test_threads_share_the_work():
    "More rows than one thread is given, forward and backward."
    tensors, before = inputs(SHAPES[2], 8, queries=200), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(with_gradients(cpu_kernel(), SHAPES[2], *tensors))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)


@needs_kernel
@pytest.mark.parametrize("batch, queries", [(0, 5), (2, 0)])
def test_nothing_in_nothing_out(batch, queries):
    tensors = inputs(SHAPES[0], 8, batch=batch, queries=queries)
    out, *gradients = with_gradients(cpu_kernel(), SHAPES[0], *tensors)
    assert out.shape == (batch, queries, 16) and all(g.shape == x.shape and g.eq(0).all() for g, x in zip(gradients, tensors))


@needs_kernel
def test_levels_that_do_not_fit_are_refused():
    value, locations, weights = inputs(SHAPES[0], 8)
    with pytest.raises(RuntimeError, match="the levels hold 25 pixels, value has 24"):
        cpu_kernel()(value, [(5, 5)], locations, weights)


@needs_kernel
def test_registered_as_torch_wants_it():
    value, locations, weights = inputs(SHAPES[1], 8, dtype=torch.float32)
    torch.library.opcheck(torch.ops.fsrvos.sample_levels.default, (value, torch.tensor(SHAPES[1]), locations, weights))
    detached = [x.detach() for x in (value, locations, weights)]
    torch.library.opcheck(torch.ops.fsrvos.sample_levels_backward.default, (torch.ones(2, 5, 16), detached[0], torch.tensor(SHAPES[1]), *detached[1:]))


@needs_kernel
def test_compile_sees_through():
    tensors, sample = inputs(SHAPES[1], 8, dtype=torch.float32), cpu_kernel()
    compiled = torch.compile(lambda *x: 2 * sample(x[0].sin(), SHAPES[1], *x[1:]), fullgraph=True, backend="aot_eager")
    plain = with_gradients(lambda v, shapes, *rest: 2 * sample_levels(v.sin(), shapes, *rest), SHAPES[1], *tensors)
    for a, b in zip(with_gradients(lambda v, shapes, *rest: compiled(v, *rest), SHAPES[1], *tensors), plain):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_without_a_compiler_there_is_one_warning_and_the_plain_version(tmp_path):
    code = ("import warnings; warnings.simplefilter('always')\n"
            "from fsrvos.models.deformable import sampler, sample_levels\n"
            "assert sampler('cpu') is sample_levels and sampler('cpu') is sample_levels")
    environment = dict(os.environ, CXX=str(tmp_path / "no-such-compiler"), TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("no C++ kernel for deformable attention") == 1


def test_each_device_its_kernel(monkeypatch):
    monkeypatch.setattr(deformable, "cpu_kernel", lambda: deformable.sample_cpu)
    monkeypatch.setattr(deformable, "cuda_kernel", lambda: deformable.sample_cuda)
    assert (sampler("cpu"), sampler(torch.device("cuda", 1)), sampler("meta")) == (deformable.sample_cpu, deformable.sample_cuda, sample_levels)
    monkeypatch.setattr(deformable, "cuda_kernel", lambda: None)
    assert sampler("cuda") is sample_levels
    monkeypatch.setenv("FSRVOS_KERNELS", "reference")
    assert sampler("cpu") is sample_levels


# ---- feed-forward layers on matrix tiles

def two_layers(width, hidden, outputs, rows):
    torch.manual_seed(0)
    first, second = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, outputs)
    return (first.weight.data, first.bias.data, second.weight.data, second.bias.data), torch.randn(rows, width)


def exactly(weights, x):
    a, b, c, d = (w.double() for w in weights)
    return ((x.double() @ a.T + b).relu() @ c.T + d).float()


@needs_tiles
@pytest.mark.parametrize("width, hidden, outputs", [(32, 64, 32), (256, 2048, 256), (96, 384, 96), (64, 100, 10), (32, 1, 1), (128, 320, 65)])
@pytest.mark.parametrize("rows", [1, 255, 256, 700])
def test_feed_forward_equals_the_plain_version(width, hidden, outputs, rows):
    weights, x = two_layers(width, hidden, outputs, rows)
    torch.testing.assert_close(feed_forward.cpu_kernel()(x, feed_forward.pack(*weights)), exactly(weights, x), atol=2e-5, rtol=1e-5)


@needs_tiles
def test_feed_forward_of_large_and_small_numbers():
    "The halves of a number keep its size: rows a million times larger or smaller are as exact as others."
    weights, x = two_layers(64, 128, 64, 6)
    weights = tuple(w if w.ndim == 2 else 0 * w for w in weights)
    size = torch.tensor([1e-12, 1e-6, 1., 1e6, 1e12, 1e20])[:, None]
    torch.testing.assert_close(feed_forward.cpu_kernel()(x * size, feed_forward.pack(*weights)) / size, exactly(weights, x), atol=2e-5, rtol=1e-5)


@needs_tiles
def test_feed_forward_keeps_what_is_not_a_number_in_its_row():
    weights, x = two_layers(32, 64, 32, 5)
    x[1, 3] = float("nan")
    out = feed_forward.cpu_kernel()(x, feed_forward.pack(*weights))
    assert out[1].isnan().all() and out[[0, 2, 3, 4]].isfinite().all()


@needs_tiles
def test_feed_forward_of_nothing_and_of_strided_rows():
    weights, x = two_layers(32, 64, 32, 40)
    packed = feed_forward.pack(*weights)
    assert feed_forward.cpu_kernel()(x[:0], packed).shape == (0, 32)
    torch.testing.assert_close(feed_forward.cpu_kernel()(x[::2], packed), exactly(weights, x[::2]), atol=2e-5, rtol=1e-5)


@needs_tiles
def test_feed_forward_refuses_what_was_not_packed_together():
    weights, x = two_layers(32, 64, 32, 4)
    other, _ = two_layers(32, 128, 32, 4)
    with pytest.raises(RuntimeError, match=r"rows \[R, 32\] in float32 are wanted"):
        feed_forward.cpu_kernel()(x.double(), feed_forward.pack(*weights))
    with pytest.raises(RuntimeError, match="packed together"):
        feed_forward.cpu_kernel()(x, (*feed_forward.pack(*weights)[:2], *feed_forward.pack(*other)[2:]))


@needs_tiles
def test_feed_forward_is_registered_as_torch_wants_it():
    weights, x = two_layers(32, 64, 32, 4)
    torch.library.opcheck(torch.ops.fsrvos.feed_forward.default, (x, *feed_forward.pack(*weights)))


@needs_tiles
@pytest.mark.parametrize("threads", [1, 2])
def test_a_layer_on_the_tiles_is_the_layer(threads):
    "Residual and norm included, in slices and in place; whatever the number of threads."
    torch.manual_seed(0)
    layer, tokens = torch.nn.TransformerDecoderLayer(256, 4, 2048).eval(), torch.randn(2, 1100, 256)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            expected, on_tiles = layer.norm3(tokens + layer.linear2(layer.linear1(tokens).relu())), FeedForward.of(layer, layer.norm3)
            found = on_tiles(tokens)
    finally:
        torch.set_num_threads(before)
    assert on_tiles.packed is not None and found is tokens
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


def test_which_layers_go_to_the_tiles(monkeypatch):
    "Wide ones in float32 on a CPU that has them, unless the reference is asked for; all others as before."
    layer = torch.nn.TransformerDecoderLayer(256, 4, 64)
    packed = lambda: FeedForward.of(layer, layer.norm3).packed is not None
    monkeypatch.setattr(inference, "cpu_kernel", lambda: None)
    assert not packed()
    monkeypatch.setattr(inference, "cpu_kernel", lambda: print)
    assert packed()
    with torch.autocast("cpu", torch.bfloat16):
        assert not packed()
    monkeypatch.setenv("FSRVOS_KERNELS", "reference")
    assert not packed()
    monkeypatch.delenv("FSRVOS_KERNELS")
    layer = layer.bfloat16()
    assert not packed()
    assert not feed_forward.fits(torch.zeros(512, 96)) and not feed_forward.fits(torch.zeros(512, 270)) and not feed_forward.fits(torch.zeros(512, 256, device="meta"))


def test_no_tiles_no_kernel_and_no_word_of_it(monkeypatch, recwarn):
    monkeypatch.setattr(feed_forward, "has_tiles", lambda: False)
    assert feed_forward.cpu_kernel.__wrapped__() is None and not recwarn


def test_tiles_without_a_compiler_give_one_warning(monkeypatch):
    monkeypatch.setattr(feed_forward, "has_tiles", lambda: True)
    monkeypatch.setattr(build, "load", lambda source: (_ for _ in ()).throw(RuntimeError("no compiler\nat all")))
    with pytest.warns(UserWarning, match=r"no C\+\+ kernel for feed-forward layers \(RuntimeError: no compiler\)"):
        assert feed_forward.cpu_kernel.__wrapped__() is None
