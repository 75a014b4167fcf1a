"""A cell of `make repro` by the code of an earlier commit and by today's: the notebooks of the stages `train` and `evaluate`, executed in a working tree each.

Both start from the same pretrained weights, read the same features and ask the same questions; settings that both codes know are today's. The two run side by side, one thread each, as the study runs two items, and
turn after turn; starts of processes and notebooks are part of the time. That is what the change of the code is worth, and nothing else: the study itself has become shorter by other things, too (clips of two frames).

python benchmarks/study_before.py [COMMIT] [--turns N]    needs data/ as `make repro` leaves it, and the commit, or is left out; writes benchmarks/study_before.json beside itself. Some ten minutes.

The commit that stands for "before" is the last one without J and F by bits, `fsrvos.models.inference`, attention to the keys that count alone and all else that the page Speed tells of; its C++ deformable attention and
bfloat16 are there already.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from timing import FREED_MEMORY_KEPT, machine, ratio, spread, write

ROOT, CELL, BEFORE = Path(__file__).resolve().parents[1], "cma_plus-1", "a3af44fd"
STAGES, WAYS = ("train", "evaluate"), ("before", "ours")
STORE = "from fsrvos.data.corpus import Corpus; from fsrvos.models.encoders import FeatureStore; print(FeatureStore.folder_for('{}', Corpus.load('data/curated'), '{}', '{}').name)"


def environment(tree: Path) -> dict[str, str]:
    "The package of this working tree, one thread, and memory as scripts/study.sh has it kept."
    return os.environ | FREED_MEMORY_KEPT | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def what_both_know(old, new):
    "Parameters with the names of the old ones and the values of the new ones, where there are such."
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: what_both_know(value, new[key]) if key in new else value for key, value in old.items()}
    return new


def prepare(tree: Path, commit: str | None, data: Path, params: dict) -> Path:
    "A working tree of the commit, or of what is checked out, with today's settings and a data/ that holds what a cell starts from."
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    if commit:
        subprocess.run(["git", "-C", str(tree), "checkout", "--quiet", commit], check=True)
    os.symlink("../kernels", tree / "fsrvos/kernels")
    old = yaml.safe_load((tree / "params.yaml").read_text())
    (tree / "params.yaml").write_text(yaml.safe_dump(what_both_know(old, params) | {"size": "cpu"}, sort_keys=False))
    (tree / "data/features").mkdir(parents=True)
    for name in ("curated", "pretrained", "embedded"):
        os.symlink(data / name, tree / "data" / name)
    name = lambda where, root: subprocess.run([sys.executable, "-c", STORE.format(root, params["features"]["vision"], params["features"]["text"])], cwd=where, env=environment(where), check=True,
                                              capture_output=True, text=True).stdout.strip()
    os.symlink(data / "features" / name(ROOT, "data/features"), tree / "data/features" / name(tree, "data/features"))   # one store, under the name that this code gives it
    return tree


def run(tree: Path) -> subprocess.Popen:
    "Both stages of the cell in the tree, one after the other; prints the seconds of each."
    code = ("import subprocess, sys, time\n"
            f"for stage in {STAGES}:\n"
            "    begun = time.perf_counter()\n"
            f"    subprocess.run(['papermill', '--no-progress-bar', f'nbs/pipeline/{{stage}}.ipynb', f'runs/{{stage}}.ipynb', '-p', 'cell', '{CELL}'], check=True, stdout=sys.stderr)\n"
            "    print(time.perf_counter() - begun, flush=True)\n")
    (tree / "runs").mkdir(exist_ok=True)
    for made in ("data/models", "data/checkpoints"):   # or training would find itself done
        shutil.rmtree(tree / made, ignore_errors=True)
    return subprocess.Popen([sys.executable, "-c", code], cwd=tree, env=environment(tree), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def measure(trees: dict[str, Path], turns: int) -> dict[str, dict[str, list[float]]]:
    "{way: {stage: seconds of each turn}}; in each turn the ways run side by side, and another one is started first."
    seen = {way: {stage: [] for stage in STAGES} for way in trees}
    for turn in range(turns):
        running = {way: run(trees[way]) for way in (list(trees) if turn % 2 else reversed(trees))}
        for way, process in running.items():
            told, complaint = process.communicate()
            if process.returncode:
                raise SystemExit(f"{way}: {complaint[-3000:]}")
            for stage, seconds in zip(STAGES, told.split(), strict=True):
                seen[way][stage].append(float(seconds))
        print(turn + 1, seen, flush=True)
    return seen


def cases_of(seen: dict[str, dict[str, list[float]]], scores: dict[str, float]) -> dict[str, dict]:
    "What was measured, as reports are laid out."
    cases = {}
    for part, what in ((("train",), "training"), (("evaluate",), "evaluation"), (STAGES, "the cell")):
        row = {way: spread([sum(turn) for turn in zip(*(stages[stage] for stage in part))]) for way, stages in seen.items()}
        cases[f"{CELL}, {what}"] = row | {"ratio ours": ratio(row, *WAYS)}
    cases[f"{CELL}, the cell"] |= {f"J&F, {way}": score for way, score in scores.items()}
    return cases


def score_of(tree: Path) -> float:
    "J&F on unseen classes of the last evaluation, percent."
    return json.loads((tree / f"results/metrics/{CELL}.json").read_text())["JF"]


def main(commit: str, data: Path, turns: int) -> None:
    if not (data / "pretrained" / CELL.partition("-")[0]).is_dir():
        print(f"left out: {data}/pretrained has no weights to start from; run `make repro` first")
        return
    if subprocess.run(["git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True).returncode:
        print(f"left out: this clone has no commit {commit}")
        return
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        trees = {way: prepare(Path(folder) / way, None if way == "ours" else commit, data.resolve(), params) for way in WAYS}
        seen = measure(trees, turns)
        cases = cases_of(seen, {way: score_of(tree) for way, tree in trees.items()})
    print(json.dumps(cases))
    write(__file__, {"machine": machine("transformers") | {"threads": 1}, "before": commit, "cases": cases})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default=BEFORE)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="as `make repro` leaves it")
    parser.add_argument("--turns", type=int, default=2)
    main(**vars(parser.parse_args()))
