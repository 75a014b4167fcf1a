"The Triton kernel without a GPU: it runs under Triton's interpreter, compiles for GPUs that are not here, and its absence is no more than a warning."
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
WAYS = {"interpreted": "1"} | ({"compiled": "0"} if torch.cuda.is_available() else {})

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is offered for Linux alone")


@needs_triton
@pytest.mark.parametrize("way", WAYS)
def test_equals_the_plain_version(way):
    "Every test of triton_cases.py, in a process of its own: Triton reads the variable when it is imported."
    run = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/triton_cases.py"], cwd=ROOT, capture_output=True, text=True,
                         env={**os.environ, "TRITON_INTERPRET": WAYS[way]})
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout and "skipped" not in run.stdout


TYPES = {"sizes": "*i32", **dict.fromkeys(("rows", "queries", "pixels"), "i32"), **dict.fromkeys(("locations", "weights", "grad_value", "grad_locations", "grad_weights"), "*fp32")}


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled where it is interpreted")
@pytest.mark.parametrize("name, capability, kind", [("forward", 75, "fp16"), ("forward", 90, "bf16"), ("backward", 80, "bf16")])
def test_compiles_for_a_gpu_that_is_not_here(name, capability, kind):
    "To machine code, with half precision in and out; a corner's channels are read 16 bytes at once."
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    from fsrvos.kernels import deformable_programs as programs
    program = getattr(programs, name).fn
    constants = dict(HEADS=8, CHANNELS=32, LEVELS=4, POINTS=4, MANY=True, EXACT=programs.tl.float32, LANES=32, ROWS=32)
    signature = {argument: "constexpr" if argument in constants else TYPES.get(argument, f"*{kind}") for argument in program.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, argument in enumerate(program.arg_names) if signature[argument].startswith("*")}
    compiled = compile(ASTSource(program, signature, constants, aligned), target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, "enable_fp_fusion": True})
    assert len(compiled.asm["cubin"]) and compiled.asm["ptx"].count("ld.global.v4") >= 16


def test_without_triton_there_is_one_warning():
    code = ("import sys; sys.modules['triton'] = None\n"
            "import warnings; warnings.simplefilter('always')\n"
            "from fsrvos.kernels.deformable_triton import cuda_kernel\n"
            "assert cuda_kernel() is None and cuda_kernel() is None")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("no Triton kernel for deformable attention") == 1
