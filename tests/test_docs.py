"What a reader sees: README.md is the index notebook, and every notebook says what it is for."
import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def test_readme_is_the_index():
    readme = runpy.run_path(str(ROOT / "scripts/readme.py"))["readme"]
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(), "README.md is not nbs/index.ipynb: run make docs"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook_begins_with_title_and_purpose(path):
    first = next(c for c in nbformat.read(path, 4).cells if c.cell_type == "markdown").source.splitlines()
    assert first[0].startswith("# ") and any(line.startswith("> ") for line in first[1:])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook_holds_no_widget_state(path):
    "Progress bars and their state are of the run, not of the notebook, and a thousand lines long."
    notebook = nbformat.read(path, 4)
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())}
    assert "widgets" not in notebook.metadata and not [kind for kind in kinds if kind.startswith("application/vnd.jupyter.widget")]


def test_the_makefile_has_the_targets_of_the_readme():
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if "##" in line}
    assert targets == {"repro", "study", "smoke", "test", "demo", "bench", "docs", "lab"}
    assert all(f"make {target}" in (ROOT / "README.md").read_text() for target in targets)


def test_the_results_in_the_readme_are_those_of_the_report():
    "Each row of the README's table: J&F and its deviation, as in Table 1."
    report = {r["method"]: r for r in json.loads((ROOT / "reports/table1.json").read_text()) if r["fold"] == "mean"}
    rows = re.findall(r"^\| `([\w-]+)`[^|]*\| ([\d.]+) ± ([\d.]+) ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    assert {name for name, _, _ in rows} == set(report)
    for name, mean, deviation in rows:
        assert (mean, deviation) == (f"{report[name]['JF']:.1f}", f"{report[name]['JF_sd']:.1f}"), name


def test_the_compared_models_in_the_readme_are_those_of_the_reports():
    "J&F on fold 1: unseen classes as in Table 1, the shifted corpus as in Table 3."
    unseen = {r["method"]: r for r in json.loads((ROOT / "reports/table1.json").read_text()) if r["fold"] == 1}
    shifted = {(r["method"], r["tuned"]): r for r in json.loads((ROOT / "reports/transfer.json").read_text()) if r["fold"] == 1}
    shown = lambda row: "—" if row is None else f"{row['JF']:.1f} [{row['JF_low']:.1f}, {row['JF_high']:.1f}]"
    rows = re.findall(r"^\| (\w+) \| [\d.]+ \| \d+ \| [\d.]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    assert {name for name, *_ in rows} == {method for method, _ in shifted}
    for name, *values in rows:
        assert values == [shown(unseen[name]), shown(shifted[name, False]), shown(shifted.get((name, True)))], name
