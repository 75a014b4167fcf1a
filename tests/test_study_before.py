"The benchmark of an earlier commit's code: what it gives that code, and how it reports. No times are tested."
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fsrvos.evaluation.speed import Report, comparisons, problems

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("study_before")


def test_settings_that_both_codes_know_are_todays(benchmark):
    old = {"train": {"frames": 3, "lr": 1, "gone": 5}, "cells": {"cma-1": "cma"}, "methods": ["a"]}
    new = {"train": {"frames": 2, "lr": 1, "augment": False}, "cells": {"cma-1": "cma", "danet-1": "danet"}, "methods": ["a", "b"], "size": "gpu"}
    assert benchmark.what_both_know(old, new) == {"train": {"frames": 2, "lr": 1, "gone": 5}, "cells": {"cma-1": "cma"}, "methods": ["a", "b"]}


def test_the_report_compares_turn_by_turn_sums(benchmark):
    seen = {"before": {"train": [30., 34., 31.], "evaluate": [10., 10., 11.]}, "ours": {"train": [20., 16., 15.], "evaluate": [5., 4., 6.]}}
    cases = benchmark.cases_of(seen, {"before": 50., "ours": 51.})
    machine = {"processor": "x86_64", "cpus": 2}
    assert problems({"machine": machine, "cases": cases}) == []
    found = {c.case: (c.reference, c.way, c.ratio) for c in comparisons(Report("study_before", machine, cases))}
    assert found["cma_plus-1, the cell"] == ("before", "ours", 2.0) and found["cma_plus-1, training"] == ("before", "ours", 1.94)
    assert cases["cma_plus-1, the cell"]["ours"] == {"median_ms": 21000, "least_ms": 20000, "most_ms": 25000} and cases["cma_plus-1, the cell"]["J&F, before"] == 50


@pytest.mark.parametrize("asked, told", [(["--data", "nowhere"], "left out: nowhere/pretrained has no weights"), (["0" * 40, "--data", "{}"], "left out: this clone has no commit 000")])
def test_it_is_left_out_where_something_is_missing(asked, told, tmp_path):
    (tmp_path / "pretrained/cma_plus").mkdir(parents=True)
    done = subprocess.run([sys.executable, "benchmarks/study_before.py", *(word.format(tmp_path) for word in asked)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and told in done.stdout, done.stderr
