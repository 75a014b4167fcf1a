"The pipeline: its notebooks, what dvc.yaml says of them, and the whole of it in small."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from dvc.repo import Repo

from fsrvos.models.baselines import ARCHITECTURES
from fsrvos.study import Stage, code_run, load_stages, write_code

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = sorted((ROOT / "nbs/pipeline").glob("*.ipynb"))
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def code_of(notebook: Path) -> str:
    return "\n".join(c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "code")


# ---- templates

@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_template(path):
    cells = nbformat.read(path, 4).cells
    assert cells[0].cell_type == "raw" and "skip_exec: true" in cells[0].source
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and "export" not in "".join(c.source for c in cells if c.source.startswith("#|"))
    names = [t.id for n in ast.parse(tagged[0].source).body for t in n.targets]
    guard = next(n for n in ast.walk(ast.parse(code_of(path))) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "used_parameters")
    assert [a.value for a in guard.args[1:]] == names
    code = [c for c in cells if c.cell_type == "code"]
    assert "used_parameters(" in code[code.index(tagged[0]) + 1].source     # before anything else
    imported = [a.name for n in ast.walk(ast.parse(code_of(path))) if isinstance(n, ast.ImportFrom) for a in n.names]
    assert not [name for name in imported if name.startswith("_")]          # public names only


def test_every_stage_runs_its_template():
    assert {stage.code[0] for stage in load_stages(ROOT / "dvc.yaml").values()} == {p.relative_to(ROOT).as_posix() for p in TEMPLATES}


# ---- the code that a stage runs

@pytest.fixture
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_models_that_are_imported_by_name_are_dependencies():
    "No import tells of them: of the stages of the compared methods, or a result would pass as fresh that is stale; of no other, or a change of one would make hours of results stale."
    compared = {f"{module.replace('.', '/')}.py" for architecture, (module, _) in ARCHITECTURES.items() if architecture != "fsrvos"}
    for name, stage in load_stages(ROOT / "dvc.yaml").items():
        assert {*stage.code[1:]} == (compared if name.endswith("_compared") or name == "report_transfer" else set()), name


def test_imports_are_followed(at_the_root):
    run = lambda *files: {*code_run(Stage(files, (), (), ()))}
    assert {"fsrvos/models/fusion.py", "kernels/deformable.py", "kernels/deformable.cpp", "kernels/build.py"} <= run("fsrvos/models/fsrvos.py")
    assert "kernels/deformable_programs.py" in run("kernels/deformable_triton.py"), "within a function, too"
    assert "fsrvos/models/one_mask.py" in run("nbs/pipeline/train.ipynb", "fsrvos/models/danet.py") - run("nbs/pipeline/train.ipynb")


def test_compiled_files_are_no_dependency():
    "A folder of modules is a dependency; what Python leaves in it is not."
    done = subprocess.run([sys.executable, "-m", "dvc", "check-ignore", "fsrvos/models/__pycache__/fsrvos.pyc"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "__pycache__" in done.stdout


def test_scoring_does_not_make_training_stale(at_the_root):
    train = load_stages()["train"]
    assert not [c for c in code_run(train) if "evaluation" in c or "apps" in c] and "evaluate" not in " ".join(train.params)


def test_the_hashes_of_code_are_those_of_the_code(at_the_root, tmp_path):
    write_code(tmp_path / "code.json")
    assert (ROOT / "code.json").read_text() == (tmp_path / "code.json").read_text(), "code.json is stale: `make study` and scripts/confirm.py write it, with dvc.lock"


def test_every_stage_has_the_hash_of_its_own_code_for_a_parameter():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {name: [p for p in stage.get("do", stage)["params"] if not isinstance(p, str)] for name, stage in stages.items() if name != "code"} == {name: [{"code.json": [name]}] for name in load_stages(ROOT / "dvc.yaml")}


@pytest.mark.filterwarnings("ignore:_NoneStep")  # DVC's own
def test_code_is_hashed_before_anything_runs():
    with Repo(ROOT) as repo:
        stages = {stage.addressing: stage for stage in repo.index.stages if not stage.is_data_source}
        assert {*repo.index.graph.predecessors(stages["code"])} == {stage for name, stage in stages.items() if name != "code"}


@pytest.mark.parametrize("module, text, concerned", [
    ("fsrvos/evaluation/transfer.py", "MORE = 1", {"report_transfer"}),
    ("fsrvos/models/one_mask.py", "MORE = 1", {"pretrain_compared", "train_compared", "evaluate_compared", "transfer_compared", "report_transfer"}),
    ("kernels/contour.cpp", "int more;", None),
    ("fsrvos/study.py", "# a comment", set()),
])
def test_a_module_makes_those_stale_that_run_it(tmp_path, monkeypatch, module, text, concerned):
    for name in ("fsrvos", "kernels", "nbs/pipeline"): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    before = write_code()
    with open(module, "a") as file: file.write(f"\n{text}\n")
    after = write_code()
    assert json.loads(Path("code.json").read_text()) == after
    assert {name for name in before if before[name] != after[name]} == ({name for name, stage in load_stages().items() if module in code_run(stage)} if concerned is None else concerned)


# ---- parameters arrive

@pytest.fixture
def workplace(tmp_path, tiny_corpus):
    "A folder that a stage can run in, with a raw corpus of coloured squares and rules that fit it."
    for name in ("fsrvos", "nbs", "dvc.yaml"): (tmp_path / name).symlink_to(ROOT / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["curation"].update(min_videos=2)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    tiny_corpus("squares")
    return tmp_path


def papermill(folder, *parameters):
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "nbs/pipeline/curate.ipynb", "run.ipynb"]
    return subprocess.run(command + [x for p in parameters for x in ("-p", *p)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def test_parameters_reach_the_result(workplace):
    done = papermill(workplace, ("raw", "squares"), ("out", "elsewhere"))
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((workplace / "reports/curation.json").read_text())
    assert report["parameters"] == {"raw": "squares", "out": "elsewhere"} and set(report["provenance"]) >= {"code", "params", "data"}
    assert (workplace / "elsewhere/folds.json").exists() and not (workplace / "data/curated").exists()


def test_an_unknown_parameter_is_refused(workplace):
    done = papermill(workplace, ("raw", "squares"), ("outt", "elsewhere"))
    assert done.returncode != 0 and "unknown parameter 'outt'; did you mean 'out'?" in done.stderr
    assert not (workplace / "reports").exists()


# ---- the two commands set up what they need

@pytest.mark.parametrize("target", ["repro", "study", "smoke", "test"])
def test_a_first_call_sets_up(tmp_path, target):
    for name in ("Makefile", "constraints.txt", "settings.ini", "setup.py", "pyproject.toml"): shutil.copy(ROOT / name, tmp_path)
    def dry_run():
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}     # these tests may be run by make
        return subprocess.run(["make", "-n", target], cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    plan = dry_run().splitlines()
    steps = [line for line in plan if line.startswith("scripts/") or "nbdev_test" in line]
    assert steps[0].startswith("scripts/setup.sh") and len(steps) == 2
    if target in ("repro", "study"): assert "hours" in plan[0] or "minutes" in plan[0]
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/ready").touch()
    assert "setup.sh" not in dry_run()


def test_a_wrong_python_is_told(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo Python 3.9.0\nexit 1\n")
    fake.chmod(0o755)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    done = subprocess.run(["sh", tmp_path / "scripts/setup.sh", str(fake)], capture_output=True, text=True)
    assert done.returncode == 2 and "Python 3.9.0" in done.stderr and not (tmp_path / ".venv").exists()


# ---- data.dvc

def test_other_bytes_than_pinned_fail_loudly(tmp_path):
    def run(*command): return subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    (tmp_path / "data/embedded").mkdir(parents=True)
    (tmp_path / "data/embedded/a").write_text("pinned")
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "data.dvc").write_text("outs:\n- path: data/embedded\n  hash: md5\n")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "commit", "-f", "data.dvc"], ["git", "add", "data.dvc"]):
        assert run(*command).returncode == 0
    assert run("sh", "scripts/materialise.sh").returncode == 0
    (tmp_path / "data/embedded/a").unlink()
    (tmp_path / "data/embedded/a").write_text("other")
    done = run("sh", "scripts/materialise.sh")
    assert done.returncode != 0 and "not what data.dvc pins" in done.stderr


# ---- kernels

def test_kernels_are_fsrvos_kernels():
    import fsrvos.kernels
    assert Path(fsrvos.kernels.__file__).resolve() == ROOT / "kernels/__init__.py"


def test_nothing_imports_kernels_by_that_name():
    sources = {p: p.read_text() for folder in ("fsrvos", "tests", "kernels", "benchmarks") for p in (ROOT / folder).rglob("*.py")}
    sources |= {p: re.sub(r"^[%!].*", "", code_of(p), flags=re.M) for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [n for n in names if n.split(".")[0] == "kernels"], path


def test_transformers_does_not_take_our_kernels_for_its_own():
    check = "from transformers.utils import is_kernels_available as a; raise SystemExit(a())"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


# ---- all of it, in small

@pytest.mark.smoke
def test_smoke_run(capfd):
    before = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    with capfd.disabled(): done = subprocess.run(["scripts/smoke.sh"], cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    made = ROOT / "runs/smoke"
    params = yaml.safe_load((made / "params.yaml").read_text())
    records = json.loads((made / "reports/table1.json").read_text())
    keys = {"method", "fold", "J", "F", "JF", "JF_sd", "JF_low", "JF_high", "runs", "videos", "bound_th"}
    assert records and all(set(r) == keys and r["runs"] == params["smoke"]["evaluate"]["runs"] for r in records)
    cells = [*params["cells"], *params["compared_cells"], *params["training_free_cells"]]
    assert {f"{r['method']}-{r['fold']}" for r in records if r["fold"] != "mean"} == set(cells)
    for cell in cells:
        result = json.loads((made / f"results/evaluate/{cell}.json").read_text())
        assert result["cell"] == result["parameters"]["cell"] == cell and result["settings"]["max_queries"] == params["smoke"]["evaluate"]["max_queries"]
        assert (made / f"runs/evaluate/{cell}.ipynb").exists()
    for cell in [*params["ablation_cells"], *params["start_cells"]]:
        assert json.loads((made / f"results/ablations/{cell}.json").read_text())["cell"] == cell and (made / f"results/ablations_train/{cell}.json").exists()
    assert all(title in (made / "reports/ablations.md").read_text() for title in ("Table 4", "plus_middle", "plus_scratch")) and (made / "reports/affinity_maps.png").exists()
    for cell in params["multi_cells"]:
        result = json.loads((made / f"results/multi/{cell}.json").read_text())
        assert result["cell"] == cell and set(result["answers"]) == {"ism", "ism_some", "ism_0.5", "ism_0.8", "argmax", "frame", "oracle", "single"} and result["thresholds"]["sequence"] in params["smoke"]["multi"]["sweep"]["thresholds"]
    assert "ISM, σ of the sweep" in (made / "reports/table5.md").read_text() and (made / "reports/multi_sweep.png").exists() and (made / "reports/multi_examples.png").exists()
    transferred = [*params["transfer_cells"], *params["compared_cells"]]
    for folder in ("transfer", "tuned", "seen"):
        assert {json.loads(f.read_text())["cell"] for f in (made / f"results/{folder}").glob("*.json") if not f.name.endswith(".manifest.json")} == set(transferred)
    assert all(title in (made / "reports/transfer.md").read_text() for title in ("Table 2", "Table 3", "What each model costs")) and (made / "reports/transfer_examples.png").exists()
    assert list((made / "reports").glob("qualitative_*.png")) and (made / "reports/learning_curves.png").exists()
    assert subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout == before   # nothing committed was touched
