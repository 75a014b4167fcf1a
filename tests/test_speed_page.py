"Benchmarks: their reports, the page made of them, and the programs themselves on tiny sizes. No times are tested."
import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fsrvos.evaluation.metrics import contour_accuracy, region_similarity
from fsrvos.evaluation.speed import (GOALS, Report, SpeedError, ceilings_table, comparisons, counted_table, goals_table, growth_figure, machines_table, other_table, problems, read_reports,
                                     roofline_table, speed_figure, speed_table)

ROOT = Path(__file__).resolve().parents[1]
REPORTS = sorted((ROOT / "benchmarks").glob("*.json"))


@pytest.fixture
def load(monkeypatch):
    "Import a benchmark by its name, as it is when it is run: beside `timing`."
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


# ---- the committed reports

@pytest.mark.parametrize("path", REPORTS, ids=lambda p: p.name)
def test_a_committed_report_is_laid_out_as_reports_are(path):
    assert problems(json.loads(path.read_text())) == []


def test_every_report_has_its_benchmark():
    assert REPORTS and {path.name.split(".")[0] for path in REPORTS} <= {path.stem for path in (ROOT / "benchmarks").glob("*.py")}


def test_every_row_names_its_reference():
    for report in read_reports(ROOT / "benchmarks"):
        for c in comparisons(report):
            assert c.reference and c.way and c.reference != c.way, (report.name, c.case, c.what)


def test_the_tables_hold_all_reports():
    reports = read_reports(ROOT / "benchmarks")
    rows = [*speed_table(reports).rows, *other_table(reports).rows, *roofline_table(reports).rows]
    assert {row[0] for row in rows} == {row[0] for row in machines_table(reports).rows}
    assert [row[0] for row in goals_table(reports).rows] == [goal.text for goal in GOALS]


def test_a_goal_whose_benchmark_was_run_is_measured():
    reports = read_reports(ROOT / "benchmarks")
    run = {(report.name, bool(report.device)) for report in reports}
    unmeasured = [row[0] for goal, row in zip(GOALS, goals_table(reports).rows) if (goal.benchmark, goal.gpu) in run and row[-1] == "not measured"]
    skipped = {goal.text for goal in GOALS if "vos-benchmark" in goal.text}  # compared only where that package is installed
    assert set(unmeasured) <= skipped


def test_equal_answers_are_goals_that_hold():
    "What may be at most so much: the committed numbers keep it."
    rows = {row[0]: row for row in goals_table(read_reports(ROOT / "benchmarks")).rows}
    limits = [goal for goal in GOALS if goal.most is not None]
    assert {goal.benchmark for goal in limits} == {"inference", "deformable_sampling"} and all(goal.least is None for goal in limits)
    assert all(rows[goal.text][1] == f"≤ {goal.most:g}" and rows[goal.text][-1] == "met" for goal in limits)


def test_what_is_neither_time_nor_ratio_is_shown():
    "No quantity twice; some that matter, by name."
    reports = read_reports(ROOT / "benchmarks")
    rows = counted_table(reports).rows
    value = {(row[0], row[1], row[2]): row[3] for row in rows}
    assert len(value) == len(rows)
    assert any(what.startswith("exponent of time") for _, _, what in value) and "ours: " in value["study_cell", "cma_plus, fold 1, both: the cell", "J&F"]
    assert any(name == "training" and "waiting for data" in what for name, _, what in value)
    assert all(ratio not in what for _, _, what in value for ratio in ("ratio", "_ms"))
    roofs = [report for report in reports if report.ceilings]
    assert len(roofline_table(reports).rows) == sum(len(report.cases) for report in roofs) > 0
    assert len(ceilings_table(reports).rows) == sum(len(roof) for report in roofs for roof in report.ceilings.values()) > 0


# ---- reports of other kinds

TIMED = {"median_ms": 4.0, "least_ms": 3.0, "most_ms": 9.0}
HALF = {"median_ms": 2.0, "least_ms": 1.0, "most_ms": 3.0}
MACHINE = {"processor": "x86_64", "cpus": 2}


def write_report(folder, name, cases, **machine):
    (folder / name).write_text(json.dumps({"machine": {**MACHINE, **machine}, "cases": cases}))
    return folder


def test_reports_of_a_gpu_stand_last_and_name_it(tmp_path):
    write_report(tmp_path, "a.cuda.json", {"case": {"plain": TIMED, "ours": HALF, "ratio it": 2.0}}, device="a GPU")
    reports = read_reports(write_report(tmp_path, "b.json", {"case": {"plain": TIMED, "ours": HALF, "ratio it": 2.0}}))
    assert [row[0] for row in speed_table(reports).rows] == ["b", "a, a GPU"]


def test_goals_of_a_gpu_are_not_met_by_a_processor(tmp_path):
    case = {"paper's size": {"plain forward and backward": TIMED, "Triton forward and backward": HALF, "ratio Triton to plain, forward and backward": 2.0}}
    verdict = lambda: [row[2:] for row in goals_table(read_reports(tmp_path)).rows if row[0].startswith("Triton")]
    write_report(tmp_path, "deformable_sampling.json", case)
    assert verdict() == [["—", "not measured"]]
    write_report(tmp_path, "deformable_sampling.cuda.json", case, device="a GPU")
    assert verdict() == [["2", "met"]]


def test_the_goal_of_a_gpus_frames_a_second(tmp_path):
    "bfloat16 is a way of the case at the paper's size; neither another way, nor another case, nor a processor decides."
    text = "paper-resnet50 at 360x640 in bfloat16, frames a second"
    verdict = lambda: next(row[2:] for row in goals_table(read_reports(tmp_path)).rows if row[0] == text)
    for rate, wanted in ((130.0, ["130", "met"]), (64.0, ["64", "**missed**"])):
        cases = {name: {"plain": {"frames_a_second": 20.0}, "ours": {"frames_a_second": 70.0}, "ours, bfloat16": {"frames_a_second": value}, "a chunk": TIMED}
                 for name, value in (("paper-resnet50, 360x640", rate), ("paper-resnet50, 360x640, freed memory kept", 1.0))}
        write_report(tmp_path, "inference.cuda.json", cases, device="a GPU")
        assert verdict() == wanted
    (tmp_path / "inference.cuda.json").unlink()
    assert [goals_table(read_reports(write_report(tmp_path, "inference.json", cases))).rows[-1][i] for i in (0, 2, 3)] == [text, "—", "not measured"]


def test_a_goal_with_a_limit_is_missed_by_one_that_exceeds_it(tmp_path):
    cases = {"paper-resnet50, 360x640": {"ours": TIMED, "masks, largest difference, ours": 2e-3, "masks, largest difference, ours, bfloat16": 1e-6}}
    rows = goals_table(read_reports(write_report(tmp_path, "inference.json", cases))).rows
    assert [row[1:] for row in rows if row[0].startswith("paper-resnet50, mask logits")] == [["≤ 0.001", "0.002", "**missed**"]]


def test_a_quantitys_ways_stand_in_one_row(tmp_path):
    case = {"C++ forward": TIMED, "other forward": HALF, "ours, small": HALF | {"peak_mb": 1234}, "ratio C++": 2.0, "C++: off": 1e-7, "other: off": .5, "seen: twice": 2, "score, ours, small": 50.21,
            "score, C++ forward": 3.0, "steps": {"first": 3, "second": 20000}, "note": "text"}
    rows = counted_table(read_reports(write_report(tmp_path, "a.json", {"case": case}))).rows
    assert [row[2:] for row in rows] == [["off", "C++: 1e-07; other: 0.5"], ["seen: twice", "2"], ["score", "ours, small: 50.21; C++ forward: 3"], ["peak memory, MB", "ours, small: 1,234"],
                                         ["steps", "first: 3; second: 20,000"]]


def test_a_roofline_has_tables_of_its_own(tmp_path):
    part = TIMED | {"gigaoperations": 1.5, "megabytes": 75.0, "operations a byte": 20.0, "bound": "memory", "bound, GFLOP/s": 100.0, "reached, GFLOP/s": 75.0, "share of the bound reached": .75}
    path = write_report(tmp_path, "roofline.json", {"a part, float32": part}) / "roofline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ceilings": {"float32": {"copy, GB/s": 5.0, "matrix product, in bits, GFLOP/s": 170.0}}}))
    reports = read_reports(tmp_path)
    assert ceilings_table(reports).rows == [["roofline", "float32", "copy", "GB/s", "5"], ["roofline", "float32", "matrix product, in bits", "GFLOP/s", "170"]]
    assert roofline_table(reports).rows == [["roofline", "a part, float32", "4 ms [3, 9]", "1.5", "75", "20", "memory", "100", "75", "**75 %**"]]
    assert other_table(reports).rows == [] == counted_table(reports).rows


def test_machines_are_named_where_they_say_their_name(tmp_path):
    write_report(tmp_path, "a.json", {"case": {"ours": TIMED}}, model="A processor", **{"matrix tiles": False})
    assert machines_table(read_reports(write_report(tmp_path, "b.json", {"case": {"ours": TIMED}}))).rows == [
        ["a", "A processor", "processor x86_64, cpus 2, matrix tiles no"], ["b", "—", "processor x86_64, cpus 2"]]


def test_growth_may_have_references(tmp_path):
    "A ratio in a case that grows: its ways are named with the value, and the figures are still drawn and listed."
    slow = {**TIMED, "median_ms": 8.0}
    cases = {"by frames, as of late": {"5": {"plain": TIMED, "ours": HALF}, "10": {"plain": slow, "ours": HALF}, "ratio 10": 4.0, "exponent of time, ours": .1}}
    reports = read_reports(write_report(tmp_path, "growth.json", cases))
    c, = comparisons(reports[0])
    assert (c.reference, c.way) == ("10, plain", "10, ours") and speed_table(reports).rows[0][2] == "10, plain: 8 ms [3, 9]"
    assert len(other_table(reports).rows) == 4 and [row[2:] for row in counted_table(reports).rows] == [["exponent of time", "ours: 0.1"]] and len(growth_figure(reports).axes[0].lines) == 2


def test_the_ways_of_a_ratio_are_those_that_its_name_mentions(tmp_path):
    "Where two pairs have the same ratio, the name decides; of frames a second, more is better."
    fast = {**HALF, "frames_a_second": 30.0}
    case = {"plain forward": TIMED, "C++ forward": HALF, "plain backward": TIMED, "C++ backward": HALF, "slow": {**TIMED, "frames_a_second": 10.0}, "fast": fast,
            "ratio C++ to plain, backward": 2.0, "ratio frames": 3.0}
    report, = read_reports(write_report(tmp_path, "a.json", {"case": case}))
    assert [(c.reference, c.way, c.key) for c in comparisons(report)] == [("plain backward", "C++ backward", "median_ms"), ("slow", "fast", "frames_a_second")]


def test_growth_is_drawn_and_listed(tmp_path):
    cases = {"by frames": {"5": {"plain": {**TIMED, "peak_mb": 9.0}, "ours": HALF}, "10": {"plain": TIMED, "ours": TIMED}, "exponent of time, plain": 1.1}}
    reports = read_reports(write_report(tmp_path, "growth.json", cases))
    time, memory = growth_figure(reports).axes
    assert [list(line.get_xdata()) for line in time.lines] == [[5, 10], [5, 10]] and [list(line.get_ydata()) for line in memory.lines] == [[9.0]]
    assert [row[2] for row in other_table(reports).rows] == ["5, plain", "5, ours", "10, plain", "10, ours"]
    assert len(speed_figure(reports).axes[0].patches) == 0


@pytest.mark.parametrize("content, told", [
    ("{", "is no JSON"),
    ({"machine": {}, "cases": {"a": {"b": TIMED}}}, "machine: give at least processor"),
    ({"machine": MACHINE}, "cases: give a mapping"),
    ({"machine": MACHINE, "cases": {"a": {"b": 3}}}, "cases.a: nothing in it is timed"),
    ({"machine": MACHINE, "cases": {"a": {"b": {**TIMED, "most_ms": 1.0}}}}, "cases.a: b: not least <= median <= most"),
    ({"machine": MACHINE, "cases": {"a": {"b": TIMED, "ratio it": "two"}}}, "cases.a: ratio it: is 'two'"),
    ({"machine": MACHINE, "cases": {"a": {"b": TIMED}}, "ceilings": {"float32": {"copy, GB/s": 0}}}, "ceilings: give for each"),
])
def test_a_report_of_another_layout_is_refused(tmp_path, content, told):
    (tmp_path / "bad.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SpeedError, match="bad.json") as error:
        read_reports(tmp_path)
    assert told in str(error.value)


def test_no_reports(tmp_path):
    with pytest.raises(SpeedError, match="make bench"):
        read_reports(tmp_path)


# ---- make bench

def test_bench_goes_on_where_one_fails(tmp_path, capsys):
    bench = runpy.run_path(str(ROOT / "scripts/bench.py"))
    main = 'if __name__ == "__main__":\n    '
    for name, does in (("b_fails", "raise SystemExit('no such thing')"), ("a_works", "print('a')"), ("curation_scale", "print('last')"), ("c_works", "print('c')")):
        (tmp_path / f"{name}.py").write_text(main + does)
    (tmp_path / "shared.py").write_text("VALUE = 1")
    found = bench["scripts"](tmp_path)
    assert [path.stem for path in found] == ["a_works", "b_fails", "c_works", "curation_scale"]
    assert bench["run_all"](found) == ["b_fails"]
    told = capsys.readouterr()
    assert [line.split(" after")[0] for line in told.out.splitlines()] == ["a_works: done", "b_fails: FAILED", "c_works: done", "curation_scale: done"] and "no such thing" in told.err


def test_bench_runs_every_benchmark_but_what_they_share():
    bench = runpy.run_path(str(ROOT / "scripts/bench.py"))
    shared = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {path.stem for path in bench["scripts"](ROOT / "benchmarks")}
    assert "timing" in shared and not shared & {path.name.split(".")[0] for path in REPORTS}


def test_the_quantity_that_a_ratios_name_begins_with_is_the_one_compared():
    case = {"plain": TIMED | {"peak_mb": 844, "cpu_seconds": 5}, "ours": TIMED | {"peak_mb": 754, "cpu_seconds": 2.18}, "ours, bfloat16": TIMED | {"peak_mb": 743, "cpu_seconds": 1.89},
            "ratio memory, ours, bfloat16": 1.14, "ratio cpu, ours, bfloat16": 2.65}   # 2.18 / 1.89 fits 1.14, too
    found = [(c.reference, c.way, c.key) for c in comparisons(Report("inference", MACHINE, {"a": case}))]
    assert found == [("plain", "ours, bfloat16", "peak_mb"), ("plain", "ours, bfloat16", "cpu_seconds")]


# ---- the benchmarks of this page, on tiny sizes

def test_measures_agree_with_the_definition_of_the_benchmark(load):
    measures = load("measures")
    for seed in range(20):
        prediction, truth = measures.moving_object(2 + seed, frames=3, size=(40, 61), seed=seed)
        assert (measures.by_definition(prediction, truth) == np.stack([region_similarity(prediction, truth), contour_accuracy(prediction, truth)], 1)).all()
    empty, full = np.zeros((1, 9, 9), bool), np.ones((1, 9, 9), bool)
    assert measures.by_definition(empty, empty).tolist() == [[1, 1]] and measures.by_definition(empty, full).tolist() == [[0, 1]]


def test_measures_report_is_laid_out_and_equal(load):
    made = load("measures").report(turns=1, frames=2, size=(48, 86))
    assert problems(made) == [] and len(made["cases"]) >= 4
    assert all(case.get("largest difference", 0) == 0 for case in made["cases"].values())


def test_measures_of_files(load, tmp_path):
    measures = load("measures")
    (answer, truth), (other, right) = (measures.moving_object(r, 3, (40, 61), seed) for r, seed in ((9, 0), (5, 1)))
    for folder, masks in (("truth", (truth, right)), ("prediction", (answer, other))):
        measures.write_clip(tmp_path / folder, "video", np.stack(masks))
    hidden = lambda under, over: under & ~over
    scores = measures.files_by_fsrvos(tmp_path / "truth", tmp_path / "prediction")
    assert set(scores) == {("video", 1), ("video", 2)}
    assert scores["video", 2] == pytest.approx(100 * measures.by_fsrvos(other, right).mean(0))
    shown = hidden(truth, right)
    counted = shown.any((1, 2))
    assert scores["video", 1] == pytest.approx(100 * measures.by_fsrvos(hidden(answer, other)[counted], shown[counted]).mean(0))


def test_corpus_reading_compares_what_is_equal(load, tmp_path):
    from fsrvos.models.encoders import FeatureStore
    reading = load("corpus_reading")
    corpus = reading.small_corpus(tmp_path, ("dog",))
    folder = FeatureStore.build(tmp_path / "features", corpus, progress=False).folder
    cases = {"masks": reading.masks(corpus, folder, 1), "features": reading.features(corpus, folder, 1)}
    assert problems({"machine": MACHINE, "cases": cases}) == []
    assert cases["masks"]["largest difference"] == 0 and cases["features"]["largest difference"] <= cases["features"]["largest feature"] * 2 ** -11


def test_segment_memory_lays_out_what_its_processes_say(load):
    memory = load("segment_memory")
    rows = [{"model": model, "way": way, "frames": frames, "peak_mb": 700 + frames * (1 + (way == memory.WHOLE)) + turn, "above_model_mb": frames, "seconds": frames / 10 + turn, "found": 1}
            for frames, ways in ((50, (memory.WHOLE, memory.OURS)), (500, (memory.OURS, memory.WHOLE)), (2000, (memory.OURS,))) for turn in (0, 1) for model in ("one", "two") for way in ways]
    made = memory.report(MACHINE, rows, {(model, frames): .25 for model in ("one", "two") for frames in (50, 500)})
    grown, both = made["cases"]["one, by frames of 128x192"], made["cases"]["one, 500 frames of 128x192"]
    assert problems(made) == [] and [[*ways] for ways in grown.values()] == [[memory.WHOLE, memory.OURS]] * 2 + [[memory.OURS]]
    assert [grown[key][memory.OURS]["above_mb"] for key in ("50", "500", "2000")] == [0, 450, 1950] and grown["500"][memory.WHOLE]["above_mb"] == 900
    assert (both[memory.OURS]["least_ms"], both[memory.OURS]["median_ms"], both[memory.OURS]["most_ms"]) == (50_000, 50_500, 51_000)
    assert both["ratio memory"] == round(1701 / 1201, 2) and both["ratio time"] == 1 and both["share of mask pixels that differ, 50 frames"] == .25
    assert [(c.reference, c.way, c.key) for c in comparisons(Report("segment_memory", MACHINE, {"one": both}))][0] == (memory.WHOLE, memory.OURS, "peak_mb")


@pytest.mark.parametrize("model", ["fsrvos-demo", "fsrvos-demo-multi"])
def test_everything_in_memory_answers_as_ours_does(load, tmp_path, model):
    "But for rounding (features of all frames at once, or of some), where both see logits as ours keeps them; three chunks, the last one short."
    from fsrvos.apps.demo import draw_clip
    from fsrvos.apps.segment import Segmenter, numbered, pack_logits, unpack_logits
    from fsrvos.data.corpus import write_masks
    from fsrvos.data.video import write_video
    memory = load("segment_memory")
    support, query = draw_clip("hedgehog", 0, "support"), draw_clip("hedgehog", 0, "query", objects=2)
    segmenter = Segmenter.from_pretrained(model, chunk=4, overlap=1, device="cpu").support(support.frames[:2], support.ids[:2] == 1, "a hedgehog")
    video = write_video(tmp_path / "a.mp4", memory.moving(query, 9), 25)
    answer = segmenter._answer

    def rounded(*asked):
        logits, *rest = answer(*asked)
        kept = np.stack([[unpack_logits(pack_logits(frame), frame.shape) for frame in maps] for maps in logits.numpy()])
        return torch.from_numpy(kept), *rest

    segmenter._answer = rounded
    with torch.no_grad():
        ours, whole = segmenter.segment(video, "a hedgehog", progress=False), memory.with_everything(segmenter, video, "a hedgehog")
    assert ours.scores == pytest.approx(whole.scores, abs=1e-4) and ours.frames == whole.frames == 9 and ours.masks.any() and (ours.masks != whole.masks).mean() < 1e-4
    folders = whole.save(tmp_path / "whole"), ours.save(tmp_path / "ours")
    assert memory.apart(*folders) < 1e-4
    write_masks(folders[0] / "masks/00000.png", 1 - numbered(ours.frame_masks(0)).clip(0, 1))
    assert .1 < memory.apart(*folders) <= 1 / 9 + 1e-4


CELL = {"plain": {"training": [30., 29.], "evaluation": [10., 9.], "steps": 4, "queries": 7, "JF": 50.}, "ours": {"training": [20., 19.], "evaluation": [5., 4.], "steps": 4, "queries": 7, "JF": 51.}}


def test_a_cells_parts_are_laid_out(load):
    later = {way: said | {"training": [1.2 * s for s in said["training"]], "JF": said["JF"] + 2} for way, said in CELL.items()}
    cases = load("study_cell").compare([CELL, later])
    assert problems({"machine": MACHINE, "cases": cases}) == []
    assert [case["ratio ours"] for case in cases.values()] == [1.5, 2, 1.59]
    training, _, both = cases.values()
    assert training["ours"] == {"median_ms": 22_000, "least_ms": 20_000, "most_ms": 24_000, "cpu_seconds": 20.9}
    assert {key: value for key, value in both.items() if "J&F" in key} == {"J&F, plain": 51, "J&F, ours": 52, "J&F, least, plain": 50, "J&F, least, ours": 51, "J&F, most, plain": 52, "J&F, most, ours": 53}
    assert both["turns"] == 2 and [case["ratio ours"] for case in load("study_cell").compare([CELL]).values()] == [1.5, 2, 1.6]


def test_each_way_of_a_cell_starts_first_in_every_other_turn(load, monkeypatch, tmp_path):
    cell = load("study_cell")
    (tmp_path / "data/pretrained" / cell.METHOD).mkdir(parents=True)
    monkeypatch.setattr(cell, "ROOT", tmp_path)
    started, written = [], []

    class Process:
        returncode = 0
        def __init__(self, command, env, **_): started.append(command[-1]), setattr(self, "env", env)
        def communicate(self): return "a line before\n" + json.dumps(CELL["ours" if cell.FREED_MEMORY_KEPT.items() <= self.env.items() else "plain"]), None

    monkeypatch.setattr(cell.subprocess, "Popen", Process)
    monkeypatch.setattr(cell, "write", lambda script, report: written.append(report))
    for name in cell.FREED_MEMORY_KEPT:
        monkeypatch.delenv(name, raising=False)
    cell.main(turns=3)
    assert started == ["plain", "ours", "ours", "plain", "plain", "ours"] and problems(written[0]) == []
    assert [*written[0]["cases"].values()][-1]["turns"] == 3 and [*written[0]["cases"].values()][0]["ratio ours"] == 1.5


def test_vos_benchmark_is_no_requirement():
    "Where it is absent the script says so and measures the rest."
    code = ("import sys; sys.path.insert(0, 'benchmarks'); sys.modules['skimage'] = sys.modules['vos_benchmark'] = None; import importlib.util as u; found = u.find_spec; "
            "u.find_spec = lambda name, *a: None if name in ('skimage', 'vos_benchmark') else found(name, *a); import measures; print(len(measures.report(1, 2, (24, 40))['cases']))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "pip install" in done.stdout and done.stdout.splitlines()[-1] == "4", done.stderr
