"The C++ kernel equals the plain version it replaces, forward and backward, and its absence is no more than a warning."
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fsrvos.kernels.deformable import cpu_kernel
from fsrvos.models.deformable import sample_levels, sampler

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [[(4, 6)], [(5, 7), (3, 2)], [(8, 12), (4, 6), (2, 3)], [(7, 5), (4, 3), (2, 2), (1, 1)]]

needs_kernel = pytest.mark.skipif(cpu_kernel() is None, reason="no C++ compiler here: the plain version runs")


def inputs(shapes, channels, batch=2, queries=5, points=3, dtype=torch.float64):
    "Values, locations inside, outside and on the border of the levels, and weights."
    torch.manual_seed(0)
    pixels, heads, levels = sum(h * w for h, w in shapes), 2, len(shapes)
    value = torch.randn(batch, pixels, heads, channels, dtype=dtype)
    locations = torch.rand(batch, queries, heads, levels, points, 2, dtype=dtype) * 1.6 - .3
    weights = torch.rand(batch, queries, heads, levels, points, dtype=dtype)
    return [x.requires_grad_() for x in (value, locations, weights)]


@needs_kernel
@pytest.mark.parametrize("shapes", SHAPES, ids=len)
@pytest.mark.parametrize("channels", [3, 8, 16, 24, 32, 64])
def test_equals_the_plain_version(shapes, channels):
    value, locations, weights = inputs(shapes, channels)
    outs = [sample(value, shapes, locations, weights) for sample in (sample_levels, cpu_kernel())]
    torch.testing.assert_close(outs[1], outs[0], atol=1e-10, rtol=1e-10)
    way = torch.randn_like(outs[0])
    plain, fast = (torch.autograd.grad(out, (value, locations, weights), way) for out in outs)
    for a, b in zip(fast, plain):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(dtype):
    shapes = SHAPES[2]
    value, locations, weights = (x.detach().to(dtype) for x in inputs(shapes, 24))
    fast = cpu_kernel()(value, shapes, locations, weights)
    plain = sample_levels(value.float(), shapes, locations.float(), weights.float())
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


@needs_kernel
def test_gradients_by_finite_differences():
    value, locations, weights = inputs(SHAPES[1], 3, batch=1, queries=2, points=2)
    assert torch.autograd.gradcheck(lambda *x: cpu_kernel()(x[0], SHAPES[1], *x[1:]), (value, locations, weights))


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
def test_nothing_in_nothing_out():
    value, locations, weights = inputs(SHAPES[0], 8, batch=0)
    assert cpu_kernel()(value, SHAPES[0], locations, weights).shape == (0, 5, 16)


@needs_kernel
def test_levels_that_do_not_fit_are_refused():
    value, locations, weights = inputs(SHAPES[0], 8)
    with pytest.raises(RuntimeError, match="the levels hold 25 pixels, value has 24"):
        cpu_kernel()(value, [(5, 5)], locations, weights)


@needs_kernel
def test_registered_as_torch_wants_it():
    value, locations, weights = inputs(SHAPES[1], 8, dtype=torch.float32)
    torch.library.opcheck(torch.ops.fsrvos.sample_levels.default, (value, torch.tensor(SHAPES[1]), locations, weights))


def test_without_a_compiler_there_is_one_warning_and_the_plain_version(tmp_path):
    code = ("import warnings; warnings.simplefilter('always')\n"
            "from fsrvos.models.deformable import sampler, sample_levels\n"
            "assert sampler('cpu') is sample_levels and sampler('cpu') is sample_levels")
    environment = dict(os.environ, CXX=str(tmp_path / "no-such-compiler"), TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("no C++ kernel for deformable attention") == 1


def test_other_devices_use_the_plain_version():
    assert sampler(torch.device("meta")) is sample_levels
