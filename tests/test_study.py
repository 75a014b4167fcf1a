"The study's own files: parameters, cells, provenance, and whether what is committed still shows what is there."
import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from fsrvos.study import (GROUPS, SIZES, StudyError, architecture, choose_size, code_run, load_params, load_stages, method_config, parse_cell, stage_of, stage_provenance,
                          training_config, training_parts)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def edited(tmp_path, edit):
    "A copy of params.yaml after `edit(raw)`."
    raw = yaml.safe_load(Path("params.yaml").read_text())
    edit(raw)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("size", SIZES)
def test_every_size_makes_settings_that_the_code_accepts(tmp_path, size):
    from fsrvos.data.curation import CurationRules
    from fsrvos.data.synthesis import SynthesisSettings
    from fsrvos.evaluation.protocol import SWAPS
    from fsrvos.models.baselines import model_class
    from fsrvos.training.fine_tune import FineTuning
    from fsrvos.training.loop import TrainSettings

    params = load_params(edited(tmp_path, lambda raw: raw.update(size=size)))
    SynthesisSettings(**params["synthesis"])
    CurationRules(**{k: v for k, v in params["curation"].items() if k != "n_folds"})
    assert set(params["evaluate"]["swaps"]) <= set(SWAPS)
    assert {*params["evaluate"]["pictures"], *params["evaluate"]["swapped"]} <= set(params["methods"])
    for settings in params["transfer"]["fine_tune"].values():
        FineTuning(**settings)
    for method in {method for group in GROUPS for method in params[group].values()}:
        model_class(architecture(params, method)).config_class.from_preset(params["model"]["preset"], **{k: params["features"][k] for k in ("vision", "text")}, **method_config(params, method))
        for stage in ("pretrain", "train"):
            TrainSettings(**training_parts(training_config(params, method, stage))[0])


def test_controls_and_ablations_train_like_their_method():
    params = load_params()
    for stage in ("pretrain", "train"):
        same = ("language-only", "support-only", "plus_middle", "plus_untransformed", "plus_64", "plus_scratch")
        for method, models in {"cma": ("cma_self", "cma_none"), "cma_plus": same}.items():
            for model in models:
                assert training_config(params, model, stage) == training_config(params, method, stage)
        assert all(training_config(params, method, stage) == training_config(params, "cma", stage) for method in params["compared"])   # the same schedule
        assert {k: v for k, v in training_config(params, "plus_frozen", stage).items() if k != "rate_factors"} == {k: v for k, v in training_config(params, "cma_plus", stage).items() if k != "rate_factors"}
        budget = [{k: v for k, v in training_config(params, m, stage).items() if k in ("epochs", "episodes_per_class", "batch_size", "frames", "shots", "lr")}
                  for m in ("cma", "cma_plus")]
        assert budget[0] == budget[1]


@pytest.mark.parametrize("edit, complaint", [
    (lambda raw: raw["train"].pop("lr"), "unknown parameter 'train.lr'"),                      # `paper` overrides it
    (lambda raw: raw["smoke"]["train"].update(epoch=3), "did you mean 'epochs'"),
    (lambda raw: raw.update(trian={}), "did you mean 'train'"),
    (lambda raw: raw.update(size="huge"), "size 'huge' is none of"),
    (lambda raw: raw.pop("seed"), "missing: seed"),
    (lambda raw: raw["cells"].update({"cma-5": "cma"}), "there are 4 folds"),
    (lambda raw: raw["cells"].update({"cma-1": "cma_plus"}), "must name the cell's own method"),
    (lambda raw: raw["cells"].update({"magic-1": "magic"}), "no method 'magic'"),
    (lambda raw: raw["pretrain"]["methods"].remove("cma"), "pretrain.methods lacks 'cma'"),
    (lambda raw: raw["training_free_cells"].append("prototype"), "'prototype' is no cell"),
    (lambda raw: raw["multi_cells"]["ism-1"].update(base="cma_plus-9"), "starts from 'cma_plus-9', which is none of the cells"),
    (lambda raw: raw["multi_cells"]["ism-1"].update(base="cma_plus-2"), "of another fold"),
    (lambda raw: raw["multi_cells"]["ism-1"].update(method="cma"), "must name the cell's own method"),
    (lambda raw: raw["compared"].remove("mttr"), "compared lacks 'mttr', which the cell 'mttr-1' starts from"),
    (lambda raw: raw["compared_cells"].update({"danet-5": "danet"}), "'danet-5': there are 4 folds"),
    (lambda raw: raw["multi_cells"]["ism-1"].update(base="danet-1"), "starts from 'danet-1', which is none of the cells"),
    (lambda raw: raw["ablations"].remove("plus_64"), "ablations lacks 'plus_64', which the cell 'plus_64-1' starts from"),
    (lambda raw: raw["untrained"].clear(), "stills.methods and untrained lacks 'plus_scratch'"),
    (lambda raw: raw["compared"].append("cma"), "the method 'cma' is listed twice"),
    (lambda raw: raw["ablation_cells"].update({"cma-1": "cma"}), "the cell 'cma-1' is listed twice"),
    (lambda raw: raw["transfer_cells"].append("cma-9"), "transfer_cells: 'cma-9' is none of the cells"),
    (lambda raw: raw["transfer"]["fine_tune"].pop("mttr"), "transfer.fine_tune: no steps and rate for 'mttr', whose cell 'mttr-1' is transferred"),
])
def test_bad_parameters_are_one_clear_error(tmp_path, edit, complaint):
    path = edited(tmp_path, edit)
    with pytest.raises(StudyError, match=complaint) as error: load_params(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_parameters(tmp_path):
    with pytest.raises(StudyError, match="no such file"): load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("train: {lr: [")
    with pytest.raises(StudyError, match="not valid YAML"): load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- lr")
    with pytest.raises(StudyError, match="expected a mapping"): load_params(tmp_path / "params.yaml")


def test_the_study_has_the_cells_of_the_issue():
    params = load_params()
    folds = {method: sorted(parse_cell(c).fold for c in [*params["cells"], *params["training_free_cells"]]
                            if parse_cell(c).method == method and parse_cell(c).seed == 0) for method in params["methods"]}
    for method in ("cma", "cma_plus", "language-only", "support-only", "prototype"): assert folds[method] == [1, 2, 3, 4]
    assert folds["cma_self"] == folds["cma_none"] == [1]
    assert {f"{method}-1{seed}" for method in ("cma_plus", "cma", "cma_self", "cma_none") for seed in ("", "-s1", "-s2")} <= set(params["cells"])   # Table 4: three seeds
    assert {parse_cell(c).fold for group in ("ablation_cells", "start_cells") for c in params[group]} == {params["stills"]["fold"]} == {1}
    assert list(params["compared_cells"]) == ["danet-1", "danet-2", "danet-3", "danet-4", "referformer-1", "mttr-1", "lbdt-1"]                 # Tables 1 to 3
    assert params["transfer_cells"] == [f"{method}-{fold}" for method in ("cma", "cma_plus") for fold in folds["cma"]]
    assert {f"ism-{fold}" for fold in folds["cma_plus"]} | {"ism_referred-1"} == set(params["multi_cells"])


def test_a_smaller_size_changes_the_cells_that_dvc_sees(tmp_path):
    path = edited(tmp_path, lambda raw: None)
    params = choose_size("smoke", path)
    assert yaml.safe_load(path.read_text())["cells"] == params["cells"] != load_params()["cells"]


def test_provenance_follows_what_a_stage_runs(tmp_path, monkeypatch):
    params = load_params()
    now = stage_provenance("evaluate", params, "cma")
    other = {**params, "evaluate": {**params["evaluate"], "runs": 99}}
    assert stage_provenance("evaluate", other, "cma")["params"] != now["params"]
    assert stage_provenance("train", other, "cma") == stage_provenance("train", params, "cma")
    assert stage_provenance("evaluate", params, "cma_plus")["params"] != now["params"]
    with pytest.raises(StudyError, match="no stage 'evalute'"): stage_provenance("evalute", params)


def test_every_stage_runs_one_notebook_and_this_module():
    for name, stage in load_stages().items():
        assert [c for c in stage.code if c.endswith(".ipynb")] == [*stage.code[:1]], name
        assert {stage.code[0], "fsrvos/study.py"} <= {*code_run(stage)}, name


def test_every_requirement_is_pinned():
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read("settings.ini")
    settings = parser["DEFAULT"]
    pinned = {line.split("==")[0].lower() for line in Path("constraints.txt").read_text().splitlines() if "==" in line}
    wanted = re.findall(r"^[A-Za-z0-9_.-]+", "\n".join((settings["requirements"] + " " + settings["dev_requirements"]).split()), flags=re.M)
    assert [name for name in wanted if name.lower() not in pinned] == ["triton"], "torch's GPU builds ask for a triton of their own, which a pin could contradict"
    assert "+" not in Path("constraints.txt").read_text()


@pytest.mark.skipif(not (ROOT / "reports/provenance.json").exists(), reason="no committed report")
def test_the_committed_report_is_not_stale():
    from fsrvos.evaluation.report import load_evaluations, stale, stale_cells

    params = load_params()
    assert stale("reports", stage_provenance("report", params)) == []
    stage = lambda cell: "baseline" if cell in params["training_free_cells"] else stage_of(params, cell, "evaluate")
    for folder in ("results/evaluate", "results/ablations"):
        assert stale_cells(load_evaluations(folder), lambda cell: stage_provenance(stage(cell), params, parse_cell(cell).method)) == []
    assert set(load_evaluations("results/ablations")) == {*params["ablation_cells"], *params["start_cells"]}


@pytest.mark.skipif(not (ROOT / "reports/transfer.json").exists(), reason="no committed report")
def test_the_committed_tables_2_and_3_are_not_stale():
    from fsrvos.evaluation.report import load_evaluations, stale_cells
    from fsrvos.evaluation.transfer import transfer_records

    params = load_params()
    made_by = lambda cell: stage_provenance("transfer" if cell in params["cells"] else "transfer_compared", params, parse_cell(cell).method)
    results = {folder: load_evaluations(f"results/{folder}") for folder in ("transfer", "tuned", "seen")}
    assert all(set(evaluations) == {*params["transfer_cells"], *params["compared_cells"]} for evaluations in results.values())
    assert [line for evaluations in results.values() for line in stale_cells(evaluations, made_by)] == []
    shots, asked = load_evaluations("results/shots"), params["transfer"]["numbers_of_shots"]
    assert set(shots) == {f"{cell}-k{k}" for cell in asked["cells"] for k in asked["tried"]}
    assert stale_cells(shots, lambda cell: stage_provenance("shots", params)) == []
    assert json.loads((ROOT / "reports/transfer.json").read_text()) == json.loads(json.dumps(transfer_records(results["transfer"], results["tuned"])))


@pytest.mark.skipif(not (ROOT / "reports/table5.json").exists(), reason="no committed report")
def test_the_committed_table_5_is_not_stale():
    from fsrvos.evaluation.multi_report import load_multi, table5
    params, results = load_params(), load_multi("results/multi")
    hashes = lambda made: {k: made[k] for k in ("code", "params", "data")}
    assert set(results) == set(params["multi_cells"])
    for cell, (info, _) in results.items():
        assert hashes(info["provenance"]) == hashes(stage_provenance("evaluate_multi", params, parse_cell(cell).method)), cell
    report = json.loads((ROOT / "reports/table5.json").read_text())
    assert hashes(report["made_by"]) == hashes(stage_provenance("report_multi", params)) and report["records"] == json.loads(json.dumps(table5(results)))
