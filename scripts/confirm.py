"""confirm.py [COMMIT]: results stay valid after a change of code that changes no number, if a sample of the study, run again, shows it.

A change of code that results depend on makes all of them stale, also when it cannot change a number (a new option and its parameter, a renamed variable). Two hours of the study need not be run
again for that:

    dvc repro --single-item curate features oracles pretrain@cma train@cma-1 evaluate@cma-1     # a sample: at least one item of every stage that is stale
    python scripts/confirm.py                                                                  # against HEAD, or the commit named

Everything that the sample made must equal what COMMIT holds: models and features bit for bit, numbers digit for digit (clocks apart). Then the results of the stages' other items
get the new code's hash, with the hash of the code that did measure them beside it (`measured_with`), and DVC is told. Anything that differs is named, and nothing is changed."""
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from fsrvos.study import SECTIONS, deep_merge, load_params, parse_cell, stage_provenance

CLOCKS = ("seconds", "waiting", "provenance")
KEPT_OUT = ("baseline", "report", "report_transfer", "report_ablations", "report_multi")  # cheap to run again, or made of the others


def read_lock(text: str) -> dict[str, dict]:
    "dvc.lock -> {item: {deps, outs: {path: md5}, params}}."
    sums = lambda entries: {e["path"]: e["md5"] for e in entries or []}
    return {name: {"deps": sums(s.get("deps")), "outs": sums(s.get("outs")), "params": s.get("params")} for name, s in yaml.safe_load(text)["stages"].items()}


def without_clocks(path: str, text: str) -> object:
    "What a result file says, without times and provenance."
    if path.endswith(".csv"):
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(io.StringIO(text))]
    return {k: v for k, v in json.loads(text).items() if k not in CLOCKS}


def differences(item: str, before: dict, now: dict, old_text) -> list[str]:
    "Outs of an item that was run again and are not what they were. Pictures and texts, which carry hashes, are left to the report."
    changed = [path for path, md5 in now["outs"].items() if before["outs"].get(path) != md5]
    files = [file for path in changed for file in files_of(path)]
    same = lambda path: path.endswith((".json", ".csv")) and without_clocks(path, Path(path).read_text()) == without_clocks(path, old_text(path))
    return [f"{item}: {path}" for path in files if not path.endswith((".png", ".md")) and not same(path)]


def files_of(path: str) -> list[str]:
    "A folder of results, which git keeps, as its files; anything else as it is."
    folder = Path(path)
    return [p.as_posix() for p in sorted(folder.rglob("*")) if p.is_file()] if path.startswith("results/") and folder.is_dir() else [path]


def says_all_of(before: object, now: object) -> bool:
    "Do the parameters `now` hold every one of those before, with its value? More of them may be there: what the code did not know, the sample shows to change nothing."
    if isinstance(before, dict) and isinstance(now, dict):
        return all(key in now and says_all_of(value, now[key]) for key, value in before.items())
    return before == now


def split(before: dict[str, dict], now: dict[str, dict], is_code) -> tuple[list[str], list[str]]:
    "Items that were run again, and those of the same stages that were not. SystemExit where more than code differs, or nothing was run."
    again = [i for i in now if i in before and now[i]["deps"] != before[i]["deps"] and i.split("@")[0] not in KEPT_OUT]
    made = {path for i in again for path in now[i]["outs"]}  # what the sample made is compared apart, clocks left out
    data = lambda deps: {p: m for p, m in deps.items() if not is_code(p) and p not in made}
    more = [i for i in again if not says_all_of(before[i]["params"], now[i]["params"]) or data(now[i]["deps"]) != data(before[i]["deps"])]
    if more:
        sys.exit(f"{', '.join(more)}: parameters or data differ, too; run the study again")
    if not again:
        sys.exit("no item was run again: run a sample with dvc repro --single-item first (see the head of this file)")
    stages = {i.split("@")[0] for i in again}
    return again, [i for i in now if i.split("@")[0] in stages and i not in again]


def restamp(text: str, code: str, params: str) -> str:
    "The text of a result with other hashes of code and parameters; the code hash that measured stays beside it."
    first = re.search(r'"code":\s*"([0-9a-f]{16})"', text)[1]
    kept = "" if '"measured_with"' in text else f', "measured_with": "{first}"'
    text = re.sub(r'("code":\s*)"[0-9a-f]{16}"', rf'\1"{code}"{kept}', text, count=1)
    return re.sub(r'("params":\s*)"[0-9a-f]{16}"', rf'\1"{params}"', text, count=1)


def params_of(text: str) -> dict:
    "The parameters in the text of a params.yaml of before, which may lack sections that there are now."
    raw = yaml.safe_load(text)
    return deep_merge({section: raw[section] for section in SECTIONS if section in raw}, raw[raw["size"]])


def confirm(commit: str) -> None:
    show = lambda path: subprocess.run(["git", "show", f"{commit}:{path}"], capture_output=True, text=True, check=True).stdout
    before, now, params, params_then = read_lock(show("dvc.lock")), read_lock(Path("dvc.lock").read_text()), load_params(), params_of(show("params.yaml"))
    again, others = split(before, now, lambda p: p.startswith(("fsrvos/", "nbs/", "kernels/")))
    wrong = [line for i in again for line in differences(i, before[i], now[i], show)]
    if wrong:
        sys.exit("not the same numbers:\n  " + "\n  ".join(wrong))
    print(f"the same, bit for bit: {', '.join(again)}")
    for item in others:
        stage, name = item.split("@")
        provenance, then = (stage_provenance(stage, p, name if stage.startswith("pretrain") else parse_cell(name).method) for p in (params, params_then))
        for path in (p for p in now[item]["outs"] if p.startswith("results/") and p.endswith(".json")):
            text = Path(path).read_text()
            made = json.loads(text).get("provenance")
            if made is None:
                continue
            if (made["params"], made["data"]) != (then["params"], provenance["data"]):
                sys.exit(f"{path}: made with other parameters or data; run {item} again")
            Path(path).write_text(restamp(text, provenance["code"], provenance["params"]))
    subprocess.run(["dvc", "commit", "--force", *others, *again], check=True)  # the sample, too: what it read may have got a new hash just now
    print(f"confirmed: {', '.join(others)}")


if __name__ == "__main__":
    confirm(*sys.argv[1:2] or ["HEAD"])
