"Ablations: means and deviations over seeds and draws, what is missing stays missing, marks where an interval contains 0, the files; and what attention on a hand-made map amounts to."
import csv
import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from fsrvos.evaluation.ablations import COLUMNS, VARIANTS, affinity_records, affinity_table, variant_records, variants_table, write_ablation_report
from fsrvos.evaluation.attention import Look, affinity_figure, ask_pixels, attention_records, attention_table, centre_pixel, looks
from fsrvos.evaluation.protocol import SWAPS, Evaluation, ModelPredictor, bootstrap
from fsrvos.evaluation.report import MISSING, ReportError, margins
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from tests.test_protocol import make_manifest

HASHES = {"code": "c1", "params": "p1", "data": "d1"}


def made_up(method, level, seed=0, draw=0, swaps=(), noise=.02, shots=5):
    "Two runs of six questions of different length, at about `level`; `draw` numbers the support draws."
    rng = np.random.default_rng([seed, *method.encode()])
    records = [{"run": run, "swap": swap, "class": "cat", "video": f"v{v}", "expression_id": "0", "kind": "class", "class_named": True, "distractors": 0, "frames": 5 + v,
                "J": level - .2 * bool(swap) + noise * rng.standard_normal(), "F": level + .1, "area_pred": .1, "area_true": .1, "score": .5}
               for run, swap in [(0, None), (1, None), *((0, s) for s in swaps)] for v in range(6)]
    cell = f"{method}-1" + (f"-s{seed}" if seed else "")
    return Evaluation(records, {"runs": [{"run": r, "draw": draw} for r in range(2)]}, .008,
                      {"cell": cell, "method": method, "fold": 1, "seed": seed, "settings": {"shots": shots}, "provenance": HASHES})


def by_cell(*found):
    return {e.info["cell"]: e for e in found}


def asked_with(k, method, level, **how):
    "`made_up` as the stage `shots` leaves it: the cell asked with k support frames."
    found = made_up(method, level, **how)
    found.info |= {"cell": f"{method}-1-k{k}", "of": f"{method}-1", "shots": k}
    return found


SHOTS = by_cell(*(asked_with(k, method, level + .004 * k) for method, level in (("cma", .2), ("cma_plus", .5)) for k in (1, 5)))


def mean_of(evaluation, name, run=None):
    "Frame-weighted mean in percent by hand, over one run or the mean of both."
    if run is None:
        return (mean_of(evaluation, name, 0) + mean_of(evaluation, name, 1)) / 2
    rows = [r for r in evaluation.main if r["run"] == run]
    value = {"J": lambda r: r["J"], "F": lambda r: r["F"], "JF": lambda r: (r["J"] + r["F"]) / 2}[name]
    return 100 * sum(value(r) * r["frames"] for r in rows) / sum(r["frames"] for r in rows)


# ---- Table 4

def test_table_4_is_over_seeds_and_draws():
    cells = [made_up("cma", level, seed) for seed, level in enumerate((.4, .5, .57))]
    full = affinity_records(by_cell(*cells, made_up("cma_self", .3), made_up("cma_none", .2)))[2]
    assert (full["here"], full["seeds"], full["runs"], full["cells"]) == ("self + cross", 3, 2, ["cma-1", "cma-1-s1", "cma-1-s2"])
    for name in ("J", "F", "JF"):
        assert full[name] == pytest.approx(np.mean([mean_of(e, name) for e in cells]), abs=.006)
    assert full["JF_by_seed"] == pytest.approx([mean_of(e, "JF") for e in cells], abs=.006)
    assert full["JF_sd_seeds"] == pytest.approx(np.std([mean_of(e, "JF") for e in cells], ddof=1), abs=.006)
    assert full["JF_sd_runs"] == pytest.approx(np.mean([np.std([mean_of(e, "JF", r) for r in (0, 1)], ddof=1) for e in cells]), abs=.006)


def test_a_missing_seed_is_counted_and_a_missing_method_stays_missing():
    records = affinity_records(by_cell(made_up("cma", .4), made_up("cma", .5, 2), made_up("cma_self", .3)))
    assert [r["seeds"] for r in records] == [0, 1, 2] and records[1]["JF_sd_seeds"] is None and records[0]["JF"] is None
    rows = affinity_table(records).rows
    assert rows[0][1] == "0" and set(rows[0][2:-1]) == {MISSING} and rows[0][-1] == "57.9"
    assert rows[1][6] == MISSING and rows[2][6] != MISSING and rows[2][5].count(",") == 1
    assert [r["difference"] is None for r in records] == [True, False, True]


def test_a_difference_that_contains_0_is_marked():
    cells = by_cell(made_up("cma", .4), made_up("cma_self", .4), made_up("cma_none", .1))
    for record in cells["cma_self-1"].records:              # better on every second video, worse on the others
        record["J"] += .2 * (-1) ** int(record["video"][1])
    none, own, _ = affinity_records(cells)
    assert own["contains_0"] and own["low"] <= 0 <= own["high"] and not none["contains_0"] and none["low"] > 0
    assert [row[-2].endswith("(contains 0)") for row in affinity_table(affinity_records(cells)).rows] == [False, True, False]


def test_the_interval_is_that_of_the_other_reports():
    "With one seed each it is `margins`; with several, all are resampled by the same draws of videos."
    cells = by_cell(made_up("cma", .4, noise=.1), made_up("cma_self", .38, noise=.1))
    assert affinity_table(affinity_records(cells)).rows[1][-2].split("[")[1] == margins(cells, "cma").rows[0][-1].split("[")[1]
    second = made_up("cma", .5, 1, noise=.1)
    record = affinity_records(cells | by_cell(second))[1]
    draws = 100 * ((bootstrap(cells["cma-1"].main, seed=1) + bootstrap(second.main, seed=1)) / 2 - bootstrap(cells["cma_self-1"].main, seed=1))[:, 2]
    assert (record["low"], record["high"]) == pytest.approx(tuple(np.percentile(draws, (2.5, 97.5))), abs=1e-3)


def test_other_questions_are_not_compared():
    cells = by_cell(made_up("cma", .4), made_up("cma_self", .3, draw=1))
    assert affinity_records(cells)[1]["JF"] is not None and affinity_records(cells)[1]["difference"] is None


# ---- one thing changed

@pytest.fixture
def study():
    return by_cell(made_up("cma_plus", .6, swaps=SWAPS), made_up("cma_plus", .59, 1), made_up("support-only", .4), made_up("cma", .3)), by_cell(made_up("plus_64", .6, noise=.1), made_up("plus_scratch", .3))


def test_variants(study):
    records = variant_records(*study, {"cma_plus-1": {"trainable_parameters": 1800000}, "plus_64-1": {"trainable_parameters": 900000}}, SHOTS)
    found = {(r["what"], r["here"]): r for r in records}
    assert len(found) == len(records) == 2 + len(VARIANTS) + 3 + 2, "nothing twice, and the K of this cell alone"
    default, small, scratch = found["the default", "cma_plus"], found["hidden size", "64"], found["pretraining", "none"]
    assert default["JF"] == pytest.approx(mean_of(study[0]["cma_plus-1"], "JF"), abs=.006) and default["difference"] is None
    assert small["contains_0"] and not scratch["contains_0"] and scratch["difference"] == pytest.approx(scratch["JF"] - default["JF"], abs=.011)
    assert (default["parameters"], small["parameters"], scratch["parameters"]) == (1800000, 900000, None)
    assert found["affinity layers", "frozen, as the published optimiser omits them"]["JF"] is None and found["training seed", "1"]["minus"] == "cma_plus-1"
    assert found["words", "trained without"]["cells"] == ["support-only-1"] and found["support", "trained without"]["JF"] is None


def test_spoiled_inputs_are_compared_with_the_same_run(study):
    reference = study[0]["cma_plus-1"]
    record = next(r for r in variant_records(*study, {}, {}) if r["here"] == "asked without")
    spoiled = [r for r in reference.records if r["swap"] == "no_support"]
    expected = 100 * sum((r["J"] + r["F"]) / 2 * r["frames"] for r in spoiled) / sum(r["frames"] for r in spoiled)
    assert record["runs"] == 1 and record["JF"] == pytest.approx(expected, abs=.006) and record["JF_sd_runs"] is None
    assert record["difference"] == pytest.approx(expected - mean_of(reference, "JF", 0), abs=.006) and record["high"] < 0
    without = by_cell(made_up("cma_plus", .6))
    assert all(r["JF"] is None for r in variant_records(without, {}, {}, {}) if r["here"].startswith("asked"))


def test_numbers_of_support_frames(study):
    one, five = [r for r in variant_records(*study, {}, SHOTS) if r["what"] == "K, support frames"]
    assert (one["here"], one["cells"], one["minus"], one["contains_0"]) == ("1", ["cma_plus-1-k1"], "K = 5, the same runs", False)
    assert one["JF"] == pytest.approx(mean_of(SHOTS["cma_plus-1-k1"], "JF"), abs=.006) and one["JF_sd_runs"] is not None
    assert one["difference"] == pytest.approx(-1.6, abs=.001) and one["low"] <= one["difference"] <= one["high"] < 0
    assert (five["here"], five["difference"], five["low"]) == ("5", None, None), "the default K differs from nothing"


def test_other_questions_are_not_compared(study):
    fewer = asked_with(1, "cma_plus", .5)
    fewer.records = fewer.records[:-1]
    one = next(r for r in variant_records(*study, {}, by_cell(fewer, SHOTS["cma_plus-1-k5"])) if r["what"] == "K, support frames")
    assert one["JF"] is not None and one["difference"] is None


def test_without_the_default_there_is_nothing_to_differ_from():
    with pytest.raises(ReportError, match="no evaluation of cma_plus-1.*evaluate@cma_plus-1"):
        variant_records(by_cell(made_up("cma", .4)), {}, {}, {})


# ---- the files

def test_the_files(study, tmp_path):
    attention = [{"cell": "cma-1", "stride": 8, "questions": 3, "area": 9., "inside": 7.1, "inside_ground": 7.4, "above": 20., "spread": 84.}]
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    files = write_ablation_report(*study, tmp_path, provenance=HASHES, trained={}, shots=SHOTS, attention=attention, figure=figure, overlaps={"a corpus": "- Fold 1: 1 of 12"})
    assert {f.name for f in files} == {f.name for f in tmp_path.iterdir()} == {"ablations.md", "ablations.csv", "ablations.json", "affinity_maps.png"}
    content, rows = json.loads((tmp_path / "ablations.json").read_text()), list(csv.DictReader((tmp_path / "ablations.csv").open()))
    assert list(rows[0]) == list(COLUMNS) and len(rows) == len(content["records"]) and content["attention"] == attention and content["made_by"] == HASHES
    assert [row["JF"] for row in rows] == ["" if r["JF"] is None else str(r["JF"]) for r in content["records"]]
    text = (tmp_path / "ablations.md").read_text()
    assert "*published, other data*" in text and "| cma-1 | 8 | 9.0 | 7.1 | 7.4 | 20.0 | 84.0 |" in text
    assert "## Test classes seen in pretraining: a corpus\n\n- Fold 1: 1 of 12" in text
    assert "code c1, params p1, data d1" in text and {"cma_plus-1", "plus_64-1"} <= set(content["cells"]) and "cma_plus-1" in text.split("Cells made by:")[1]
    assert Image.open(tmp_path / "affinity_maps.png").text["Source"] == "code c1, params p1, data d1"


def test_without_further_cells_and_figure(tmp_path):
    files = write_ablation_report(by_cell(made_up("cma_plus", .6)), {}, tmp_path, provenance=HASHES, trained={}, shots={})
    assert {f.name for f in files} == {"ablations.md", "ablations.csv", "ablations.json"} and "affinity_maps" not in (tmp_path / "ablations.md").read_text()


# ---- attention

def test_share_of_attention_on_a_hand_made_map():
    heat, share = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    heat[0, 0, 0], heat[0, 2, 3], heat[1, 1, 1] = .25, .25, .5
    share[0, 0, 0], share[1, 1, 1], share[1, 1, 2] = 1, .5, 1
    look = Look(heat, [0, 1], share)
    assert look.inside == pytest.approx(.25 + .5 * .5) and look.area == pytest.approx(2.5 / 24)
    assert look.spread == pytest.approx(2 ** 1.5 / 24)      # entropy of (1/4, 1/4, 1/2): 1.5 bits


def test_the_pixel_is_the_centre_most():
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:6, 2:6] = masks[2, 5:16, 10:21] = True
    assert centre_pixel(masks) == (2, 10, 15)
    masks[1, :, :14] = True                                 # larger, and at the edge of the frame, which is outline, too
    t, y, x = centre_pixel(masks)
    assert t == 1 and 6 <= y <= 13 and 6 <= x <= 7
    with pytest.raises(ValueError, match="no pixel is set"):
        centre_pixel(masks & False)


@pytest.fixture(scope="module")
def predictors():
    torch.manual_seed(0)
    return {which: ModelPredictor(FSRVOSModel(FSRVOSConfig.from_preset("tiny", support_frames=which))) for which in ("middle", "all")}


def test_pixels_of_a_question(tiny):
    corpus, _ = tiny
    support = make_manifest(corpus)["runs"][0]["support"]["cat"]
    asked = ask_pixels(corpus, support, "cat_1", "0", frames=3)
    masks = corpus.read_masks("cat_1", asked.query.frames, [1, 2])
    assert len(asked.query.frames) == 3 and masks[0][asked.centre] and not masks.any(0)[asked.ground] and asked.centre[0] == asked.ground[0]


def test_where_the_models_look(tiny, predictors):
    corpus, source = tiny
    asked = ask_pixels(corpus, make_manifest(corpus, shots=4)["runs"][0]["support"]["cat"], "cat_1", "0")
    middle, every = (looks(predictors[which], source, asked)[0][0] for which in ("middle", "all"))
    assert middle.frames == [2] and every.frames == [0, 1, 2, 3], "the middle support frame alone, or all"
    for look in (middle, every):
        assert look.heat.sum() == pytest.approx(1, abs=1e-5) and look.heat.shape == look.share.shape and 0 < look.area < look.spread <= 1 or look is every
    assert every.inside > 2 * every.area and abs(middle.inside - middle.area) < .05


def test_means_over_questions_and_the_figure(tiny, predictors):
    corpus, source = tiny
    run = make_manifest(corpus)["runs"][0]
    run = run | {"queries": {name: run["queries"][name][:2] for name in ("cat", "dog")}}
    records = attention_records(predictors["middle"], corpus, source, run, "cma-1")
    assert [r["stride"] for r in records] == [8 * 2 ** i for i in range(len(records))] and {r["questions"] for r in records} == {4}
    pixels = [ask_pixels(corpus, run["support"][name], *run["queries"][name][i]) for name in ("cat", "dog") for i in (0, 1)]
    finest = [looks(predictors["middle"], source, asked)[0] for asked in pixels]
    assert records[0]["inside"] == pytest.approx(100 * np.mean([a.inside for a, _ in finest]), abs=.006)
    assert records[0]["inside_ground"] == pytest.approx(100 * np.mean([b.inside for _, b in finest]), abs=.006)
    assert len(attention_table(records).rows) == len(records)
    cases = [{"name": "best", "text": "a cat", "J": .5, "F": .5}]
    figure = affinity_figure(cases, pixels[:1], {which: [looks(p, source, pixels[0])[0][0]] for which, p in predictors.items()}, corpus)
    assert len(figure.axes) == 1 + 1 + 3                    # the query, the middle of three support frames, all three
    assert f"{100 * finest[0][0].inside:.0f} % on the object" in figure.axes[1].get_title("left")


def test_a_model_without_cross_affinity_is_refused(tiny):
    corpus, source = tiny
    asked = ask_pixels(corpus, make_manifest(corpus)["runs"][0]["support"]["cat"], "cat_1", "0")
    with pytest.raises(ReportError, match="no cross-affinity.*self\\+cross"):
        looks(ModelPredictor(FSRVOSModel(FSRVOSConfig.from_preset("tiny", affinity="self"))), source, asked)
