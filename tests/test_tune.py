"The record of what was tuned: on training classes alone, and params.yaml has what it says."
import csv
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from fsrvos.study import load_params, parse_cell

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import tune  # noqa: E402


@pytest.fixture
def params(monkeypatch):
    monkeypatch.chdir(ROOT)
    return load_params()


def rows(record):
    return list(csv.DictReader((ROOT / record.path).open()))


def test_nobody_is_asked_about_what_was_trained_on():
    classes = sorted(f"class {i:02}" for i in range(36))
    taught, asked = tune.split(classes)
    assert len(taught) == 24 and len(asked) == 12 and sorted(taught + asked) == classes


def test_every_compared_method_has_had_the_same_rates(params):
    tried = defaultdict(set)
    for row in rows(tune.RATES):
        tried[row["method"]].add(float(row["factor"]))
        assert float(row["pretrain_lr"]) == pytest.approx(params["pretrain"]["lr"] * float(row["factor"]))
        assert float(row["train_lr"]) == pytest.approx(params["train"]["lr"] * float(row["factor"]))
    for method in (*params["compared"], "cma", "cma_plus"):
        assert {0.5, 1, 2} <= tried[method]


def test_fine_tuning_is_as_the_record_says(params):
    found = defaultdict(dict)
    for row in rows(tune.FINE_TUNING):
        found[row["method"]][row["lr"] and float(row["lr"]), int(row["steps"])] = float(row["JF"])
    assert {parse_cell(cell).method for cell in (*params["transfer_cells"], *params["compared_cells"])} == set(found)
    for method, scores in found.items():
        assert set(scores) == {("", 0), *((lr, steps) for lr in (1e-5, 3e-5, 1e-4, 3e-4) for steps in tune.STEPS if steps)}, method
        lr, steps = max((key for key in scores if key[1]), key=scores.get)
        assert params["transfer"]["fine_tune"][method] == {"steps": steps, "lr": lr}


def test_a_record_adds_rows_and_knows_them(tmp_path):
    record = tune.Record(str(tmp_path / "r.csv"), ("method", "seed"), ("JF",))
    assert not record.has("a", "0")
    record.add("a", 0, "1.00")
    record.add("b", 1, "2.00")
    assert record.has("a", "0") and record.has("b", "1") and not record.has("a", "1")
    assert (tmp_path / "r.csv").read_text() == "method,seed,JF\na,0,1.00\nb,1,2.00\n"


@pytest.mark.parametrize("arguments, complaint", [
    (["rates", "magic", "0", "1"], "'magic'"), (["rates", "cma", "0"], "numbers"), (["fine-tuning", "cma", "fast"], "'fast'"), (["steps", "cma", "1"], "'steps'")])
def test_what_makes_no_sense_is_named_before_any_work(params, capsys, arguments, complaint):
    with pytest.raises(SystemExit):
        tune.main(arguments)
    assert complaint in capsys.readouterr().err
