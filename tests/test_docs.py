"What a reader sees: README.md is the index notebook, and every notebook says what it is for."
import json
import os
import re
import runpy
import subprocess
import sys
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


@pytest.fixture(scope="module")
def by_quarto(tmp_path_factory):
    "The site as scripts/docs.py builds it where a `quarto` is found: a stand-in, which shows what Quarto is given and what becomes of what it makes."
    folder = tmp_path_factory.mktemp("quarto")
    command = folder / "bin/quarto"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/quarto_stand_in.py" "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([sys.executable, "scripts/docs.py", folder / "site"], cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "site"


def test_quarto_renders_every_page_that_the_sidebar_names(by_quarto):
    site = runpy.run_path(str(ROOT / "scripts/docs.py"))["site"](ROOT / "nbs")
    named = [page["href"] for part in site["website"]["sidebar"]["contents"] for page in part.get("contents", [part])]
    assert len(named) == len(set(named)) > 80 and all((by_quarto / name).with_suffix(".html").exists() for name in named)
    assert set(site["format"]["html"]) == {"theme", "toc", "css", "html-math-method"} and site["format"]["html"]["html-math-method"] == "mathml"


def test_quarto_renders_the_reference_with_links_to_the_sources(by_quarto):
    page_of = runpy.run_path(str(ROOT / "scripts/docs.py"))["api_page"]
    pages = [p for p in (by_quarto / "api").glob("*.html") if p.stem != "index"]
    assert {p.stem for p in pages} == {page_of(p) for p in (ROOT / "fsrvos").rglob("[a-z]*.py")}, "every module has its page"
    linked = re.findall(r'href="([^"]+)"', (by_quarto / "api/metrics.html").read_text())
    assert "../source/fsrvos/evaluation/metrics.html#L-" in " ".join(linked)
    assert "source.invalid" not in "".join(p.read_text() for p in pages)


def test_no_link_of_quartos_pages_is_broken(by_quarto):
    pages = [p for p in by_quarto.rglob("*.html") if "source" not in p.relative_to(by_quarto).parts]
    links = [(page, link.split("#")[0]) for page in pages for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text(encoding="utf-8"))]
    own = [(page, link) for page, link in links if link and not re.match(r"[a-z]+:", link)]
    assert len(own) > 100 and [f"{page.relative_to(by_quarto)}: {link}" for page, link in own if not (page.parent / link).exists()] == []
    assert "https" not in (by_quarto / "theme.css").read_text(), "themes bring no fonts from elsewhere"
