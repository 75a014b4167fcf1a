"The Triton kernel equals the plain version. `test_triton.py` runs this file in a process of its own: under Triton's interpreter on a CPU, compiled where there is a GPU."
import os

import pytest
import torch

from fsrvos.kernels.deformable_triton import cuda_kernel
from fsrvos.models.deformable import sample_levels
from tests.sampling import SHAPES, eighths, inputs, with_gradients

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
OPERATORS = torch.ops.fsrvos


@pytest.mark.parametrize("shapes", SHAPES, ids=len)
@pytest.mark.parametrize("channels", [3, 8, 24, 64])
def test_equals_the_plain_version(shapes, channels):
    tensors = inputs(shapes, channels, queries=19, device=DEVICE)  # 76 rows: more than a program's, and no multiple of it
    for fast, plain in zip(with_gradients(cuda_kernel(), shapes, *tensors), with_gradients(sample_levels, shapes, *tensors)):
        torch.testing.assert_close(fast, plain, atol=1e-9, rtol=1e-9)


def test_on_pixels_borders_and_far_outside():
    shapes, *tensors = eighths(device=DEVICE)
    for fast, plain in zip(with_gradients(cuda_kernel(), shapes, *tensors), with_gradients(sample_levels, shapes, *tensors)):
        torch.testing.assert_close(fast, plain)
    value, locations, weights = tensors
    assert all(x.eq(0).all() for x in with_gradients(cuda_kernel(), shapes, value, locations * float("nan"), weights)[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision(dtype):
    "As exact as the type that comes out, since sums are in float32: against the plain version in float64 on the same numbers."
    shapes, tensors = SHAPES[2], inputs(SHAPES[2], 24, dtype=dtype, device=DEVICE)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    fast, plain = with_gradients(cuda_kernel(), shapes, *tensors), with_gradients(sample_levels, shapes, *exact)
    unit = max(torch.finfo(dtype).eps, 2e-6)  # the latter: what is left of a location in float32, between two pixels
    assert [x.dtype for x in fast] == [dtype] * 4
    torch.testing.assert_close(fast[0].double(), plain[0], atol=unit, rtol=unit)
    for a, b in zip(fast[1:], plain[1:]):  # the direction itself is rounded to the output's type
        assert (a.double() - b).norm() < 4 * unit * b.norm()


def test_mixed_precision_gives_what_the_plain_version_gives():
    "Under autocast the values come in half precision, locations and weights in float32."
    value, locations, weights = (x.detach().float() for x in inputs(SHAPES[1], 8, device=DEVICE))
    half = value.bfloat16().requires_grad_()
    out = cuda_kernel()(half, SHAPES[1], locations, weights)
    assert out.dtype == torch.float32 == sample_levels(half, SHAPES[1], locations, weights).dtype
    torch.testing.assert_close(out, sample_levels(half.detach().float(), SHAPES[1], locations, weights), atol=1e-5, rtol=1e-5)
    assert torch.autograd.grad(out.sum(), half)[0].dtype == torch.bfloat16


def test_gradients_are_summed_in_float32():
    "600 samples of one pixel: a sum in bfloat16 stays at 256."
    value, locations = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16, device=DEVICE, requires_grad=True), torch.full((1, 600, 1, 1, 1, 2), .5, device=DEVICE)
    out = cuda_kernel()(value, [(1, 1)], locations, torch.ones(1, 600, 1, 1, 1, device=DEVICE))
    assert torch.autograd.grad(out.sum(), value)[0].eq(600).all()


@pytest.mark.parametrize("shapes, channels", [(SHAPES[0], 32), (SHAPES[3], 8)])
def test_gradients_by_finite_differences(shapes, channels):
    tensors = inputs(shapes, channels, batch=1, queries=2, points=2, device=DEVICE)
    assert torch.autograd.gradcheck(lambda *x: cuda_kernel()(x[0], shapes, *x[1:]), tensors, fast_mode=True)


def test_memory_in_another_order():
    tensors = inputs(SHAPES[1], 8, device=DEVICE)
    turned = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in tensors]
    for a, b in zip(with_gradients(cuda_kernel(), SHAPES[1], *turned), with_gradients(cuda_kernel(), SHAPES[1], *tensors)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("batch, queries", [(0, 5), (2, 0)])
def test_nothing_in_nothing_out(batch, queries):
    tensors = inputs(SHAPES[0], 8, batch=batch, queries=queries, device=DEVICE)
    out, *gradients = with_gradients(cuda_kernel(), SHAPES[0], *tensors)
    assert out.shape == (batch, queries, 16)
    assert all(g.shape == x.shape and g.eq(0).all() for g, x in zip(gradients, tensors))


def test_levels_that_do_not_fit_are_refused():
    value, locations, weights = inputs(SHAPES[0], 8, device=DEVICE)
    with pytest.raises(RuntimeError, match="the levels hold 25 pixels, value has 24"):
        cuda_kernel()(value, [(5, 5)], locations, weights)
    with pytest.raises(RuntimeError, match="there are 2 levels, locations has 1"):
        cuda_kernel()(value, [(4, 5), (2, 2)], locations, weights)


def test_registered_as_torch_wants_it():
    value, locations, weights = inputs(SHAPES[1], 8, batch=1, dtype=torch.float32, device=DEVICE)
    sizes = [side for shape in SHAPES[1] for side in shape]
    torch.library.opcheck(OPERATORS.sample_levels_triton.default, (value, sizes, locations, weights))
    detached = [x.detach() for x in (value, locations, weights)]
    torch.library.opcheck(OPERATORS.sample_levels_triton_backward.default, (torch.ones(1, 5, 16, device=DEVICE), detached[0], sizes, *detached[1:]))


def test_compile_sees_through():
    tensors, sample = inputs(SHAPES[1], 8, dtype=torch.float32, device=DEVICE), cuda_kernel()
    compiled = torch.compile(lambda *x: 2 * sample(x[0].sin(), SHAPES[1], *x[1:]), fullgraph=True, backend="aot_eager")
    plain = with_gradients(lambda v, shapes, *rest: 2 * sample_levels(v.sin(), shapes, *rest), SHAPES[1], *tensors)
    for a, b in zip(with_gradients(lambda v, shapes, *rest: compiled(v, *rest), SHAPES[1], *tensors), plain):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
