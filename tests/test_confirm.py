"Results that stay valid after a change of code: only if what was run again is the same, and never silently."
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from confirm import differences, read_lock, restamp, says_all_of, split, without_clocks  # noqa: E402

LOCK = """
stages:
  train@a-1: {deps: [{path: fsrvos/x.py, md5: 1}, {path: data/in, md5: d}], params: {params.yaml: {seed: 0}}, outs: [{path: data/models/a-1, md5: m}]}
  train@a-2: {deps: [{path: fsrvos/x.py, md5: 1}, {path: data/in, md5: d}], params: {params.yaml: {seed: 0}}, outs: [{path: data/models/a-2, md5: m}]}
  report: {deps: [{path: results, md5: r}], outs: []}
"""
is_code = lambda path: path.startswith("fsrvos/")


def test_items_run_again_and_the_others():
    before = read_lock(LOCK)
    now = read_lock(LOCK.replace("md5: 1", "md5: 2", 1).replace("md5: r", "md5: s"))
    assert split(before, now, is_code) == (["train@a-1"], ["train@a-2"])


@pytest.mark.parametrize("old, new, told", [("seed: 0", "seed: 1", "parameters or data"), ("md5: d", "md5: e", "parameters or data"), ("", "", "no item was run again")])
def test_more_than_code(old, new, told):
    now = read_lock(LOCK.replace("md5: 1", "md5: 2", 1).replace(old, new, 1) if old else LOCK)
    with pytest.raises(SystemExit, match=told):
        split(read_lock(LOCK), now, is_code)


def test_what_the_sample_made_is_no_other_data():
    "An item that reads what another one of the sample wrote, clocks and all, differs in code alone."
    lock = LOCK.replace("{path: results, md5: r}", "{path: data/models/a-1, md5: m}, {path: fsrvos/y.py, md5: 1}").replace("report:", "evaluate@a-1:")
    before, now = read_lock(lock), read_lock(lock.replace("md5: 1", "md5: 2", 1).replace("fsrvos/y.py, md5: 1", "fsrvos/y.py, md5: 2").replace("md5: m}", "md5: n}"))
    assert split(before, now, is_code)[0] == ["train@a-1", "evaluate@a-1"]
    with pytest.raises(SystemExit, match="evaluate@a-1: parameters or data"):
        split(before, {**now, "train@a-1": before["train@a-1"]}, is_code)


def test_a_number_that_differs_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {"r.json": '{"J": 0.5, "seconds": 3, "provenance": {"code": "a"}}', "c.csv": "step,seconds,loss\n0,1,2.5\n"}
    now = {"outs": {"r.json": "1", "c.csv": "2", "data/m": "same", "p.png": "3"}}
    before = {"outs": {"r.json": "9", "c.csv": "8", "data/m": "same", "p.png": "7"}}
    Path("r.json").write_text('{"J": 0.5, "seconds": 9, "provenance": {"code": "b"}}')
    Path("c.csv").write_text("step,seconds,loss\n0,7,2.5\n")
    assert differences("train@a-1", before, now, texts.get) == []
    Path("c.csv").write_text("step,seconds,loss\n0,7,2.6\n")
    assert differences("train@a-1", before, {"outs": {**now["outs"], "data/m": "other"}}, texts.get) == ["train@a-1: c.csv", "train@a-1: data/m"]


def test_a_folder_of_results_is_compared_file_by_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results/shots").mkdir(parents=True)
    for name, value in (("a", .5), ("b", .25)):
        Path(f"results/shots/{name}.json").write_text(json.dumps({"J": value, "provenance": {"code": "new"}}))
    then = lambda b: {"results/shots/a.json": '{"J": 0.5, "provenance": {"code": "old"}}', "results/shots/b.json": json.dumps({"J": b})}
    before, now = {"outs": {"results/shots": "1.dir"}}, {"outs": {"results/shots": "2.dir"}}
    assert differences("shots", before, now, then(.25).get) == []
    assert differences("shots", before, now, then(.75).get) == ["shots: results/shots/b.json"]


def test_the_hash_that_measured_stays():
    text = '{"provenance": {\n "code": "0123456789abcdef", "params": "fedcba9876543210"}}'
    once = restamp(text, "1" * 16, "fedcba9876543210")
    assert json.loads(once)["provenance"] == {"code": "1" * 16, "measured_with": "0123456789abcdef", "params": "fedcba9876543210"}
    assert json.loads(restamp(once, "2" * 16, "a" * 16))["provenance"] == {"code": "2" * 16, "measured_with": "0123456789abcdef", "params": "a" * 16}
    assert without_clocks("x.json", once) == {}


def test_parameters_may_be_added_but_not_changed():
    assert says_all_of({"train": {"lr": 1}}, {"train": {"lr": 1, "augment": False}, "more": 2})
    assert not says_all_of({"train": {"lr": 1}}, {"train": {"lr": 2, "augment": False}}) and not says_all_of({"train": {"lr": 1}}, {"train": {}}) and not says_all_of([1], [1, 2])
    now = read_lock(LOCK.replace("md5: 1", "md5: 2", 1).replace("seed: 0", "seed: 0, more: 1", 1))
    assert split(read_lock(LOCK), now, is_code) == (["train@a-1"], ["train@a-2"])
