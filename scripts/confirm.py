"""confirm.py [COMMIT] [--within X] [--trained R] [--anew STAGE ...]: results stay valid after a change of code that changes no number, if both codes, run in small on this machine, make the same.

A change of code that results depend on makes all of them stale, also when it cannot change a number (a new option and its parameter, a renamed variable). Hours of the study need not be run
again for that:

    python scripts/confirm.py          # against HEAD, or the commit named; about half an hour on two cores

The code of COMMIT and that of this checkout each run every stage in the size `smoke`, with a cell of each method (scripts/smoke.sh --every-method). All of it must be equal: features, weights and models
bit for bit, numbers digit for digit, clocks apart. Sums that are added up in another order round otherwise, and a pixel at the very edge of a mask may fall to the other side: where a change does that to
answers, --within says how far numbers that results hold may lie apart; features, weights and models may not. Where a change does that to training, no two trainings stay the
same, as small as it is: each step divides by the size of its gradient. With --trained the losses of every step of every training are compared, and may lie apart by the share that it names; both codes train in
float32 then, which rounds the least. Models, and what they answer, are not compared. Stages that the change does concern are named with --anew: what they make is not
compared, nor are parameters that they alone read, and it keeps its old hash until they are run again. Then the study's results and reports get the new code's hash, with the hash of the code that did measure them beside it (`measured_with`), and
code.json and dvc.lock are told. Anything that differs is named, and nothing is changed.

Both run here, because another processor rounds otherwise: what this machine makes cannot be held against what another one made."""
import argparse
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CLOCKS = ("seconds", "waiting", "provenance", "made_by")
KEPT = ("results", "reports", "dvc.lock", ":!reports/choices.md")  # what is restamped; choices.md is written by hand
HASHES = """
import json, yaml
from fsrvos.study import load_params, load_stages, parse_cell, stage_provenance, upstream
params, pipeline, stages = load_params(), load_stages(), {}
for name in yaml.safe_load(open("dvc.lock"))["stages"]:
    stage, _, item = name.partition("@")
    if stage not in pipeline:  # `code`, which makes no result
        continue
    made = stage_provenance(stage, params, item if item in params["methods"] else parse_cell(item).method if item else None)
    read = {key.split(".")[0] for above in upstream(pipeline, stage) for key in pipeline[above].params if "${size}" not in key}
    stages[name] = {**{k: made[k] for k in ("code", "params", "data")}, "reads": sorted(read)}
print(json.dumps({"params": params, "stages": stages}))
"""

TELL_DVC = """
from dvc.repo import Repo
from fsrvos.study import write_code
write_code()
with Repo() as repo, repo.lock:
    stages = [stage for stage in repo.index.stages if not stage.is_data_source]
    for stage in stages:
        stage.save(allow_missing=True, run_cache=False)
    stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
"""


# ---- the two codes

def check_out(folder: Path, commit: str | None) -> Path:
    "A clone of the repository in `folder`: at the commit, or with what the working tree has, where none is given."
    git = lambda *words, **more: subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, **more)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    if commit:
        git("checkout", "--quiet", commit)
        shutil.copy(ROOT / "scripts/smoke.sh", folder / "scripts")  # one way to run them both
    elif changes := subprocess.run(["git", "-C", str(ROOT), "diff", "--binary", "HEAD"], check=True, capture_output=True).stdout:
        git("apply", "--index", input=changes)  # or smoke.sh would not see files that are new
    os.symlink("../kernels", folder / "fsrvos/kernels")
    return folder


def run_small(folders: list[Path], *options: str) -> None:
    "The pipeline in small in each of the folders, side by side; SystemExit with the end of what one said that failed. options: of scripts/smoke.sh."
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    logs = [folder.with_suffix(".log") for folder in folders]
    running = [subprocess.Popen(["scripts/smoke.sh", "--every-method", *options], cwd=folder, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT) for folder, log in zip(folders, logs)]
    for process, log in zip(running, logs):
        if process.wait():
            sys.exit(f"the pipeline in small failed:\n{log.read_text()[-3000:]}")


def hashes(folder: Path) -> dict:
    "What the code in `folder` says of the study: its parameters, and {item: {code, params, data}} of every item in its dvc.lock."
    done = subprocess.run([sys.executable, "-c", HASHES], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else sys.exit(done.stderr)


# ---- what they made

def without_clocks(path: str, text: str) -> object:
    "What a result file says, without times, provenance and hashes of code, parameters and files; what a CSV file says as numbers, for which -0 is 0."
    hidden = lambda key, value: key in CLOCKS or re.fullmatch("[0-9a-f]{16}", str(value))
    bare = lambda x: {k: bare(v) for k, v in x.items() if not hidden(k, v)} if isinstance(x, dict) else [*map(bare, x)] if isinstance(x, list) else x
    return [{k: number(v) for k, v in bare(row).items()} for row in csv.DictReader(io.StringIO(text))] if path.endswith(".csv") else bare(json.loads(text))


def number(text: str) -> float | str:
    "The number that a cell of a table holds, or its text; NaN, which equals nothing, stays text."
    try:
        value = float(text)
    except ValueError:
        return text
    return text if math.isnan(value) else value


def outs(folder: Path, anew: Collection[str] = ()) -> dict[str, str]:
    "{path: md5} of all that the items in the folder's dvc.lock made, those of the stages `anew` apart; hashes of code, and pictures and texts, which carry hashes, apart, too."
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for name, stage in stages.items() if stage_of(name) not in (*anew, "code") for out in stage["outs"] if not out["path"].endswith((".png", ".md"))}


def stage_of(item: str) -> str:
    return item.partition("@")[0]


def differences(then: Path, now: Path, anew: Collection[str] = ()) -> dict[str, float]:
    "What differs between the results of two runs in small, by path: how far at most, infinitely what is there once alone."
    before, after = outs(then, anew), outs(now, anew)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return {path: apart for path in changed if (apart := _apart(path, then / path, now / path))}


def _apart(path: str, then: Path, now: Path) -> float:
    "How far files of results, or folders of them, lie apart, clocks apart. Data that has another checksum is other data."
    if then.is_dir() and now.is_dir():
        names = [sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) for folder in (then, now)]
        return max((_apart(name, then / name, now / name) for name in names[0]), default=0.0) if names[0] == names[1] else math.inf
    if path.endswith((".png", ".md")):
        return 0.0
    if not (then.is_file() and now.is_file() and path.endswith((".json", ".csv"))):
        return math.inf
    return distance(without_clocks(path, then.read_text()), without_clocks(path, now.read_text()))


def distance(a: object, b: object) -> float:
    "The largest difference between the numbers of two results; infinite where anything else differs."
    if a == b:
        return 0.0
    if isinstance(a, float) and isinstance(b, float):
        return math.inf if math.isnan(a - b) else abs(a - b)  # no bound would hold back what is not a number
    pairs = [(a[key], b[key]) for key in a] if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys() else \
        [*zip(a, b)] if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) else None
    return math.inf if pairs is None else max(distance(*pair) for pair in pairs)


def is_history(path: str) -> bool:
    return path.startswith("results/") and path.endswith(".csv")


def after_training(folder: Path) -> set[str]:
    "The outs, by the folder's dvc.lock, of stages that train (they write the history of their losses below results/) and of all that build on them."
    stages, found = yaml.safe_load((folder / "dvc.lock").read_text())["stages"].values(), set()
    under = lambda a, b: a == b or a.startswith(b + "/") or b.startswith(a + "/")
    while True:
        more = {out["path"] for stage in stages if any(is_history(out["path"]) for out in stage["outs"]) or any(under(dep["path"], path) for dep in stage.get("deps", ()) for path in found)
                for out in stage["outs"]}
        if more <= found:
            return found
        found |= more


def losses_apart(then: Path, now: Path) -> float:
    "The largest difference of the loss of a step in two histories, as a share of the first one's; infinite where they have other steps."
    a, b = (list(csv.DictReader(path.open())) if path.is_file() else [] for path in (then, now))
    if not a or [row["step"] for row in a] != [row["step"] for row in b]:
        return math.inf
    shares = [abs(float(y["total"]) / float(x["total"]) - 1) for x, y in zip(a, b)]
    return math.inf if any(map(math.isnan, shares)) else max(shares)


# ---- new hashes for old results

def says_all_of(before: object, now: object) -> bool:
    "Do the parameters `now` hold every one of those before, with its value? More of them may be there: what the code did not know, the runs in small show to change nothing."
    if isinstance(before, dict) and isinstance(now, dict):
        return all(key in now and says_all_of(value, now[key]) for key, value in before.items())
    return before == now


def new_hashes(then: dict, now: dict, anew: Collection[str] = ()) -> dict[str, dict[str, str]]:
    "What `hashes` said before and says now -> {code: {old: new}, params: {old: new}}, of all stages but `anew`. SystemExit where data or parameters differ, or one hash would become two."
    if unknown := sorted(set(anew) - {stage_of(item) for item in then["stages"]}):
        sys.exit(f"--anew: no stage {', '.join(unknown)} in dvc.lock; there are {', '.join(sorted({stage_of(item) for item in then['stages']}))}")
    table = {"code": {}, "params": {}}
    for item in sorted(then["stages"].keys() & now["stages"].keys()):
        if stage_of(item) in anew:
            continue
        before, after = then["stages"][item], now["stages"][item]
        if other := [name for name in before["reads"] if not says_all_of(then["params"].get(name), now["params"].get(name))]:
            sys.exit(f"{item}: params.yaml differs in {', '.join(other)} by more than parameters that are new; run the study again")
        if before["data"] != after["data"]:
            sys.exit(f"{item}: the data differ; run the study again")
        for kind, known in table.items():
            if known.setdefault(before[kind], after[kind]) != after[kind]:
                sys.exit(f"{item}: its {kind} had the hash of another stage's and has not any more; run the study again")
    return table


def restamp(text: str, table: dict[str, dict[str, str]]) -> str:
    "The text of a result or a report with the new hashes; in JSON the hash of the code that measured stays beside the new one."
    def code(found: re.Match) -> str:
        old, new = found[2], table["code"].get(found[2], found[2])
        return found[1] + new + '"' + (found[3] or (f', "measured_with": "{old}"' if new != old else ""))
    text = re.sub(r'("code":\s*")([0-9a-f]{16})"(,\s*"measured_with":\s*"[0-9a-f]{16}")?', code, text)
    text = re.sub(r'("params":\s*"|\bparams )([0-9a-f]{16})\b', lambda m: m[1] + table["params"].get(m[2], m[2]), text)
    return re.sub(r"(\bcode )([0-9a-f]{16})\b", lambda m: m[1] + table["code"].get(m[2], m[2]), text)


def restamp_picture(png: bytes, change: Callable[[str], str]) -> bytes:
    "A PNG file with other text beside its pixels."
    done, at = [png[:8]], 8
    while at < len(png):
        end = at + 8 + int.from_bytes(png[at:at + 4], "big")
        kind, data = png[at + 4:at + 8], png[at + 8:end]
        if kind == b"tEXt":
            data = change(data.decode("latin-1")).encode("latin-1")
        done.append(len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big"))
        at = end + 4
    return b"".join(done)


def restamp_study(folder: Path, table: dict[str, dict[str, str]]) -> list[str]:
    "All results and reports of the study in `folder`, its dvc.lock, which keeps what it says of data that are not there, and its code.json. -> the files that are others now."
    changed, digest = {"dvc.lock": None, "code.json": None}, lambda data: hashlib.sha256(data).hexdigest()[:16]
    record = folder / "reports/provenance.json"  # holds the others' digests
    for path in (p for kept in ("results", "reports") for p in (folder / kept).rglob("*") if p.suffix in (".json", ".md", ".png")):
        before = path.read_bytes()
        after = restamp_picture(before, lambda text: restamp(text, table)) if path.suffix == ".png" else restamp(before.decode(), table).encode()
        if after != before:
            path.write_bytes(after)
            changed[path.relative_to(folder).as_posix()] = digest(before), digest(after)
    digests = dict(pair for pair in changed.values() if pair)
    record.write_text(re.sub('"([0-9a-f]{16})"', lambda m: f'"{digests.get(m[1], m[1])}"', record.read_text()))
    subprocess.run([sys.executable, "-c", TELL_DVC], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return [*changed]


def confirm(commit: str, within: float = 0.0, trained: float = 0.0, anew: Collection[str] = ()) -> None:
    if subprocess.run(["git", "diff", "--quiet", commit, "--", *KEPT], cwd=ROOT).returncode:
        sys.exit(f"results, reports or dvc.lock are not those of {commit}; what was measured with other code is not to be stamped: git diff {commit} -- {' '.join(KEPT)}")
    scratch = Path(tempfile.mkdtemp(prefix="confirm-"))
    then, now = check_out(scratch / "then", commit), check_out(scratch / "now", None)
    table = new_hashes(hashes(then), hashes(now), anew)
    run_small([then, now], *["--float32"] * (trained > 0))
    then, made = then / "runs/smoke", now / "runs/smoke"
    apart, trainings = differences(then, made, anew), {}
    if trained:
        loose = after_training(made)
        apart = {path: by for path, by in apart.items() if path not in loose}
        trainings = {path: losses_apart(then / path, made / path) for path in loose if is_history(path)}
    if wrong := [f"{path}: {by:.2g}" for bound, found in ((within, apart), (trained, trainings)) for path, by in found.items() if by > bound]:
        sys.exit("\n  ".join([f"not the same in then/runs/smoke and now/runs/smoke of {scratch}, apart by:", *wrong]))  # kept, to be looked at
    compared = outs(made, anew).keys() - (after_training(made) if trained else set())
    print(f"the same: {len(compared)} results, models and folders of data" + (f"; {len(apart)} of them but for {max(apart.values()):.2g}" if apart else "")
          + (f"; the losses of {len(trainings)} trainings to within {max(trainings.values()):.2g} of themselves" if trainings else ""))
    for path in restamp_study(now, table):
        shutil.copy(now / path, ROOT / path)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", default="HEAD")
    parser.add_argument("--within", type=float, default=0.0)
    parser.add_argument("--trained", type=float, default=0.0, metavar="R")
    parser.add_argument("--anew", nargs="+", default=(), metavar="STAGE")
    confirm(**vars(parser.parse_args()))
