"The report: any subset of cells, nothing invented, every number traceable, stale when its origin changed."
import csv
import json

import numpy as np
import pytest
from PIL import Image

from fsrvos.evaluation import report
from fsrvos.evaluation.protocol import SWAPS, Evaluation, ProtocolError, answer_cases, bootstrap, evaluate, run_means
from fsrvos.evaluation.report import (MISSING, ReportError, ablation_table, breakdown_table, difficulty_table, load_evaluations, margins,
                                      methods_in, read_curves, seeds_table, stale, stale_cells, swaps_table, table1, table1_text, write_report)
from tests.test_protocol import Echo, Source, make_manifest

HASHES = {"code": "c1", "params": "p1", "data": "d1"}


def made_up(method, fold, level, seed=0, runs=5, swaps=(), bound_th=0.008):
    "Records of a method that does not exist: two classes a fold, four videos each."
    rng = np.random.default_rng([fold, seed, runs])
    records = [{"run": run, "swap": swap, "class": f"{c}{fold}", "video": f"{c}{fold}{v}", "expression_id": e, "kind": "colour" if e == "0" else "motion",
                "class_named": e == "0", "distractors": v % 2, "frames": 5 + v, "J": float(np.clip(level + rng.normal(0, .05), 0, 1)),
                "F": float(np.clip(level + .02 + rng.normal(0, .05), 0, 1)), "area_pred": .02 if swap else .04, "area_true": .04, "score": .5}
               for run, swap in [(r, None) for r in range(runs)] + [(0, s) for s in swaps] for c in "ab" for v in range(4) for e in "01"]
    return Evaluation(records, {"runs": [{"run": r, "fold": fold} for r in range(runs)]}, bound_th,
                      {"cell": f"{method}-{fold}" + (f"-s{seed}" if seed else ""), "method": method, "fold": fold, "seed": seed, "provenance": HASHES})


def by_cell(*cells):
    return {cell.info["cell"]: cell for cell in cells}


@pytest.fixture
def four_folds():
    return by_cell(*(made_up("cma", f, .5 + f / 100, swaps=SWAPS) for f in (1, 2, 3, 4)), *(made_up("cma_plus", f, .6) for f in (1, 3)),
                   made_up("cma_plus", 1, .65, seed=2))


def test_table1_records(four_folds):
    records = table1(four_folds)
    assert all(list(record) == list(report.COLUMNS) for record in records)
    assert [(r["method"], r["fold"]) for r in records] == [("cma_plus", 1), ("cma_plus", 3), *(("cma", f) for f in (1, 2, 3, 4, "mean"))]
    mean = records[-1]
    means = np.mean([run_means(four_folds[f"cma-{f}"].main) for f in (1, 2, 3, 4)], 0) * 100
    assert mean["J"] == pytest.approx(means[:, 0].mean(), abs=.006) and mean["JF_sd"] == pytest.approx(means[:, 2].std(ddof=1), abs=.006)
    assert mean["JF_low"] < mean["JF"] < mean["JF_high"] and (mean["runs"], mean["videos"], mean["bound_th"]) == (5, 32, 0.008)
    assert records[0]["JF"] == pytest.approx((records[0]["J"] + records[0]["F"]) / 2, abs=.011)


def test_one_cell_is_enough_and_nothing_is_invented():
    alone = by_cell(made_up("cma", 2, .4, runs=1))
    assert [r["fold"] for r in table1(alone)] == [2] and table1(alone)[0]["JF_sd"] is None
    row = table1_text(alone).rows[0]
    assert row[0] == "cma" and [cell == MISSING for cell in row[1:]] == [False, True, True]
    assert all(MISSING in row[2:4] for row in ablation_table(alone).rows)
    assert not swaps_table(alone).rows and not seeds_table(alone).rows and not margins(alone, "cma").rows


def test_table_4_is_over_all_training_seeds():
    cells = by_cell(*(made_up("cma", 1, level, seed=seed) for seed, level in enumerate((.4, .5, .6))), made_up("cma_none", 1, .3))
    rows = {row[1]: row for row in ablation_table(cells).rows}
    mean = np.mean([100 * run_means(e.main)[:, 2].mean() for e in list(cells.values())[:3]])
    assert rows["cma"][4].startswith(f"{mean:.1f} ± ") and rows["cma"][4].endswith("(3)") and "±" not in rows["cma_none"][4] and rows["cma_self"][4] == MISSING


def test_no_cells_is_an_error(tmp_path):
    with pytest.raises(ReportError, match="no evaluations"):
        write_report(load_evaluations(tmp_path), tmp_path / "reports", provenance=HASHES)
    assert not (tmp_path / "reports").exists()


def test_published_numbers_are_marked_and_stay_out_of_the_records(four_folds):
    text = table1_text(four_folds).markdown()
    assert "*CMA, published: real corpus, not comparable* | 59.5 / 60.8" in text
    assert {r["method"] for r in table1(four_folds)} == {"cma", "cma_plus"}
    assert "published" not in table1_text(four_folds, by_class=True).markdown()


def test_margin_is_paired(four_folds):
    better = {cell: Evaluation([r | {"J": r["J"] + .1, "F": r["F"] + .1} for r in e.records], e.manifest, e.bound_th, e.info | {"cell": cell, "method": "better"})
              for fold in (1, 2, 3, 4) for cell, e in ((f"better-{fold}", four_folds[f"cma-{fold}"]),)}
    rows = margins({**four_folds, **better}, "better").rows
    assert ["cma", "1, 2, 3, 4", "+10.0 [+10.0, +10.0]"] in rows           # the same videos, hence no spread in the difference
    other = made_up("apart", 1, .3)
    other.manifest = {"runs": ["other questions"]}
    assert not [row for row in margins({**better, "apart-1": other}, "better").rows if row[0] == "apart"]


def test_other_questions_are_pointed_out(four_folds):
    assert "Different draws" not in table1_text(four_folds).note
    four_folds["cma-1"].manifest = {"runs": []}
    assert "Different draws, not comparable with one another: fold 1: cma-1 against cma_plus-1, cma_plus-1-s2" in table1_text(four_folds).note


def test_swaps_seeds_and_breakdowns(four_folds):
    rows = swaps_table(four_folds).rows
    assert [row[0] for row in rows] == ["cma"] and rows[0][1] == "1, 2, 3, 4" and "(×1.00)" in rows[0][2] and "(×0.50)" in rows[0][3]
    seeds = seeds_table(four_folds).rows
    values = [100 * run_means(four_folds[cell].main)[:, 2].mean() for cell in ("cma_plus-1", "cma_plus-1-s2")]
    assert len(seeds) == 1 and seeds[0][:2] == ["cma_plus", "1"] and seeds[0][4] == f"{np.std(values, ddof=1):.1f}"
    kinds = breakdown_table(four_folds, "kind", "kinds")
    assert kinds.header == ["method", "colour (32)", "motion (32)"] and len(kinds.rows) == 2
    assert breakdown_table(four_folds, "class_named", "named").header[1:] == ["False (32)", "True (32)"]


def test_difficulty(four_folds):
    oracle = {"every object": {"J": .3, "F": .35, "JF": .325}}
    rows = difficulty_table({1: oracle, 2: oracle}, four_folds).rows
    assert rows[0][0] == "nearest prototype" and set(rows[0][1:4]) == {MISSING}
    assert rows[1] == ["every object", "30.0 / 35.0", "30.0 / 35.0", "30.0 / 35.0", "J ≤ 40"]      # as many columns as there are folds
    asked = by_cell(*(made_up("prototype", fold, .2) for fold in (1, 2)))
    assert difficulty_table({1: oracle}, asked).rows[1] == ["every object", "30.0 / 35.0", MISSING, MISSING, "J ≤ 40"], "no mean where a fold is missing"
    assert difficulty_table({f: oracle for f in (1, 2, 3, 4)}, four_folds).rows[1][5] == "30.0 / 35.0"


def test_methods_are_ordered_by_score(four_folds):
    assert methods_in(four_folds) == ["cma_plus", "cma"]


@pytest.fixture
def results(tmp_path, tiny_corpus):
    "A folder of results as the stages leave it, with a cell on a real (tiny) corpus whose cases can be drawn."
    corpus = tiny_corpus(videos_per_class=3)
    echo = evaluate(Echo(corpus), corpus, Source(corpus), make_manifest(corpus), swaps=SWAPS, progress=False)
    echo.info = {"cell": "echo-1", "method": "echo", "fold": 1, "seed": 0, "provenance": HASHES,
                 "cases": answer_cases(Echo(corpus), corpus, Source(corpus), echo)}
    for cell in (echo, made_up("cma", 2, .5, swaps=SWAPS), made_up("cma", 3, .4)):
        cell.to_json(tmp_path / "evaluate" / f"{cell.info['cell']}.json")
    (tmp_path / "train").mkdir()
    for cell in ("cma-2", "cma-3", "cma_plus-1-s2"):
        (tmp_path / "train" / f"{cell}.csv").write_text("step,epoch,lr,total\n" + "".join(f"{i},0,1e-4,{9 / (i + 1)}\n" for i in range(30)))
    (tmp_path / "train" / "cma-2.validation.csv").write_text("step,epoch,J,F,JF\n10,0,0.2,0.3,0.25\n20,1,0.3,0.4,0.35\n")
    return tmp_path, corpus


def write(results, **changes):
    folder, corpus = results
    return write_report(load_evaluations(folder / "evaluate"), folder / "reports",
                        **{"provenance": HASHES, "results": folder / "evaluate", "curves": folder / "train", "corpus": corpus} | changes)


def test_whole_report(results):
    folder, _ = results
    files = write(results)
    assert sorted(f.name for f in files) == ["learning_curves.png", "per_class.png", "provenance.json", "qualitative_echo-1.png", "study.md",
                                             "table1.csv", "table1.json", "table1.md"]
    assert sorted(f.name for f in (folder / "reports").iterdir()) == sorted(f.name for f in files)
    records = json.loads((folder / "reports/table1.json").read_text())
    assert [r["method"] for r in records] == ["echo", "cma", "cma"] or [r["method"] for r in records] == ["cma", "cma", "echo"]
    rows = list(csv.DictReader((folder / "reports/table1.csv").open()))
    assert [float(row["JF"]) for row in rows] == [r["JF"] for r in records] and list(rows[0]) == list(report.COLUMNS)
    for name in ("table1.md", "study.md"):
        assert "code c1, params p1, data d1" in (folder / "reports" / name).read_text()
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.text["Source"] == "code c1, params p1, data d1" and min(picture.size) > 100


def test_report_is_the_same_again(results):
    first = {path: path.read_bytes() for path in write(results)}
    assert {path: path.read_bytes() for path in write(results)} == first


def test_report_without_curves_and_corpus(results):
    folder, _ = results
    names = {path.name for path in write(results, corpus=None, curves=folder / "nowhere")}
    assert "learning_curves.png" not in names and not any(name.startswith("qualitative") for name in names)


def test_stale(results):
    folder, _ = results
    write(results)
    def reasons(hashes=HASHES):
        return stale(folder / "reports", hashes, folder / "evaluate")
    assert reasons() == []
    for name in ("code", "params", "data"):
        assert [r.split(" changed since")[0] for r in reasons({**HASHES, name: "other"})] == [name]
    text = folder / "reports/table1.md"
    whole = text.read_text()
    text.write_text(whole.replace("cma", "ours"))
    assert reasons() == ["table1.md is not what it was"]
    text.unlink()
    assert reasons() == ["table1.md is gone"]
    text.write_text(whole)
    made_up("cma", 4, .4).to_json(folder / "evaluate/cma-4.json")
    made_up("cma", 3, .5).to_json(folder / "evaluate/cma-3.json")
    assert [r.rsplit("/", 1)[1] for r in reasons()] == ["cma-3.json is not what it was", "cma-4.json is new"]
    (folder / "reports/provenance.json").write_text("{")
    assert len(reasons()) == 1 and "run the report stage" in reasons()[0]


def test_stale_cells(four_folds):
    assert stale_cells(four_folds, lambda cell: HASHES) == []
    reasons = stale_cells(four_folds, lambda cell: {**HASHES, "params": "p2"} if cell == "cma-3" else HASHES)
    assert reasons == ["cma-3: params changed since: p1, now p2"]
    four_folds["cma-1"].info.pop("provenance")
    assert len(stale_cells(four_folds, lambda cell: HASHES)) == 3


def test_results_that_do_not_fit_are_named(tmp_path):
    made_up("cma", 1, .5).to_json(tmp_path / "cma-1.json")
    made_up("cma", 2, .5).to_json(tmp_path / "cma-3.json")
    with pytest.raises(ReportError, match="cma-3.json: its cell is cma-2"):
        load_evaluations(tmp_path)
    (tmp_path / "cma-3.json").unlink()
    made_up("cma", 2, .5, bound_th=0.01).to_json(tmp_path / "cma-2.json")
    with pytest.raises(ReportError, match="different bound_th"):
        load_evaluations(tmp_path)
    (tmp_path / "cma-2.json").write_text("{")
    with pytest.raises(ProtocolError, match="cma-2.json: not an evaluation"):
        load_evaluations(tmp_path)


def test_broken_curves_are_named(tmp_path):
    (tmp_path / "cma-1.csv").write_text("step,total\n1,2\n2\n")
    with pytest.raises(ReportError, match="cma-1.csv: no table of numbers"):
        read_curves(tmp_path)


def test_cases_are_needed_for_the_figure(four_folds):
    with pytest.raises(ReportError, match="cma-1: no cases to draw"):
        report.qualitative_figure(four_folds["cma-1"], None)
