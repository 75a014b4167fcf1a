"Results that stay valid after a change of code: only if both codes make the same, and never silently."
import hashlib
import io
import json
import shutil
import subprocess
import sys
from math import inf, nan
from pathlib import Path

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import confirm  # noqa: E402
from confirm import differences, distance, new_hashes, restamp, restamp_picture, says_all_of, without_clocks  # noqa: E402

OLD, NEW, FIRST = "0123456789abcdef", "1" * 16, "f" * 16
TABLE = {"code": {OLD: NEW}, "params": {"a" * 16: "b" * 16}}


def made(folder, j=.5, seconds=1, model="m", loss="2.5", code=OLD):
    "What a run in small leaves: dvc.lock, a model that is known by its checksum, results, a picture."
    (folder / "results/shots").mkdir(parents=True)
    (folder / "results/a.json").write_text(json.dumps({"J": j, "seconds": seconds, "cells": {"a-1": {"code": code, "params": "x"}, "made_by": {"code": code}}, "provenance": {"code": code}}))
    (folder / "results/a.csv").write_text(f"step,seconds,loss\n0,{seconds},{loss}\n")
    (folder / "results/shots/k1.json").write_text(json.dumps({"J": j, "provenance": {"code": code}}))
    paths = {"data/models/a-1": model, "results/a.json": f"{j}{seconds}", "results/a.csv": f"{loss}{seconds}", "results/shots": f"{j}{code}", "reports/p.png": code}
    (folder / "dvc.lock").write_text(yaml.safe_dump({"stages": {"train@a-1": {"outs": [{"path": path, "md5": md5} for path, md5 in paths.items()]}}}))
    return folder


def test_clocks_and_hashes_are_no_difference(tmp_path):
    assert differences(made(tmp_path / "then"), made(tmp_path / "now", seconds=9, code=NEW)) == {}


def test_no_loss_is_no_loss_with_either_sign(tmp_path):
    assert differences(made(tmp_path / "then", loss="-0"), made(tmp_path / "now", loss="0")) == {}


@pytest.mark.parametrize("change, named", [(dict(j=.75), {"results/a.json": .25, "results/shots": .25}), (dict(model="other"), {"data/models/a-1": inf}), (dict(loss="2.75"), {"results/a.csv": .25})])
def test_what_differs_is_named(tmp_path, change, named):
    assert differences(made(tmp_path / "then"), made(tmp_path / "now", **change)) == named


def test_what_follows_from_training_is_known(tmp_path):
    stage = lambda deps, *outs: {"deps": [{"path": path} for path in deps], "outs": [{"path": path, "md5": "m"} for path in outs]}
    stages = {"report": stage(["results/evaluate", "data/curated"], "reports/t.json", "reports/t.csv"), "evaluate@a-1": stage(["data/models/a-1"], "results/evaluate/a-1.json"), "curate": stage([], "data/curated"),
              "train@a-1": stage(["data/curated"], "data/models/a-1", "results/train/a-1.csv"), "baseline@b": stage(["data/curated"], "results/other/b.json"), "count": stage(["data/curated"], "reports/c.csv")}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    assert confirm.after_training(tmp_path) == {"data/models/a-1", "results/train/a-1.csv", "results/evaluate/a-1.json", "reports/t.json", "reports/t.csv"}


def test_losses_lie_apart_by_a_share(tmp_path):
    def history(name, *losses, first=0):
        (tmp_path / name).write_text("step,total\n" + "".join(f"{first + i},{loss}\n" for i, loss in enumerate(losses)))
        return tmp_path / name
    then = history("then", 4, 2)
    for now, apart in ((history("a", 4, 2.5), .25), (history("b", 3, 2), .25), (history("c", 4), inf), (history("d", 4, 2, first=1), inf), (history("e", 4, nan), inf), (tmp_path / "none", inf)):
        assert confirm.losses_apart(then, now) == apart


def test_hashes_of_code_are_no_result(tmp_path):
    "Of two codes they always differ, and a commit may have none yet."
    then, now = made(tmp_path / "then"), made(tmp_path / "now")
    with (now / "dvc.lock").open("a") as lock:
        lock.write("  code: {outs: [{path: code.json, md5: other}]}\n")
    assert differences(then, now) == {}


def test_what_is_there_once_alone_is_named(tmp_path):
    then, now = made(tmp_path / "then"), made(tmp_path / "now")
    lock = (now / "dvc.lock").read_text()
    (now / "dvc.lock").write_text(lock.replace("data/models/a-1", "data/models/a-2"))
    assert differences(then, now) == {"data/models/a-1": inf, "data/models/a-2": inf}
    (now / "dvc.lock").write_text(lock.replace(f"0.5{OLD}", "another"))
    (now / "results/shots/k3.json").write_text("{}")
    assert differences(then, now) == {"results/shots": inf}


def test_only_numbers_lie_at_a_distance():
    assert distance({"a": [1.0, {"b": "x"}], "n": 2}, {"a": [1.5, {"b": "x"}], "n": 2}) == .5
    for other in ({"a": [1.5]}, {"a": [1.0, 2.0]}, {"b": [1.0]}, {"a": 1.0}, {"a": ["1.0"]}, [1.0]):
        assert distance({"a": [1.0]}, other) == (.5 if other == {"a": [1.5]} else inf)
    assert distance({"kept": 3}, {"kept": 4}) == distance({"same": True}, {"same": False}) == inf, "counts and answers are the same or not"
    for other in ([nan, 0.0], [0.0, nan]):
        assert distance([0.0, 0.0], other) == distance(other, [0.0, 0.0]) == inf, "what is not a number is far from any"


def test_the_hash_that_measured_stays():
    text = '{"provenance": {\n "code": "0123456789abcdef",\n "params": "aaaaaaaaaaaaaaaa", "data": "aaaaaaaaaaaaaaaa"}}'
    once = restamp(text, TABLE)
    assert json.loads(once)["provenance"] == {"code": NEW, "measured_with": OLD, "params": "b" * 16, "data": "a" * 16}
    twice = restamp(once, {"code": {NEW: FIRST}, "params": {}})
    assert json.loads(twice)["provenance"] == {"code": FIRST, "measured_with": OLD, "params": "b" * 16, "data": "a" * 16}
    assert restamp(text, {"code": {}, "params": {}}) == restamp(text, {"code": {OLD: OLD}, "params": {}}) == text
    assert without_clocks("x.json", once) == {}


def test_tables_and_pictures_get_the_hash():
    assert restamp(f"Made by: code {OLD}, params {'a' * 16}, data {'a' * 16}.", TABLE) == f"Made by: code {NEW}, params {'b' * 16}, data {'a' * 16}."
    origin, file = PngInfo(), io.BytesIO()
    origin.add_text("fsrvos", f"code {OLD}, params {'a' * 16}")
    picture = Image.effect_noise((30, 20), 50)
    picture.save(file, "PNG", pnginfo=origin)
    restamped = Image.open(io.BytesIO(restamp_picture(file.getvalue(), lambda text: restamp(text, TABLE))))
    assert restamped.text == {"fsrvos": f"code {NEW}, params {'b' * 16}"} and restamped.tobytes() == picture.tobytes()
    assert restamp_picture(file.getvalue(), str) == file.getvalue()


def said(lr=1, code=OLD, data="d", **more):
    return {"params": {"train": {"lr": lr, **more}}, "stages": {name: {"code": code, "params": "a", "data": data, "reads": ["train"]} for name in ("train@a-1", "train@a-2")}}


def test_hashes_of_both_codes():
    assert new_hashes(said(), said(code=NEW, accumulate=1)) == {"code": {OLD: NEW}, "params": {"a": "a"}}
    twice = said(code=NEW)
    twice["stages"]["train@a-2"]["code"] = FIRST
    for now, told in ((said(lr=2), "train@a-1: params.yaml differs in train"), (said(data="e"), "the data differ"), (twice, "had the hash of another stage's")):
        with pytest.raises(SystemExit, match=told):
            new_hashes(said(), now)


def test_hashes_are_asked_of_the_code_in_a_folder(tmp_path):
    root = Path(__file__).resolve().parents[1]
    for name in ("fsrvos", "kernels", "nbs", "dvc.yaml", "params.yaml"):
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": {"code": {}, "train@cma-1": {}, "pretrain@cma": {}}}))
    stages = confirm.hashes(tmp_path)["stages"]
    assert stages.keys() == {"train@cma-1", "pretrain@cma"}, "the stage `code` makes no result"
    assert {"model", "train", "curation"} <= {*stages["train@cma-1"]["reads"]} and not [name for name in stages["train@cma-1"]["reads"] if "code" in name]


def test_stages_that_will_be_run_again_are_left_alone(tmp_path):
    then, now = made(tmp_path / "then"), made(tmp_path / "now", j=.75, model="other")
    assert differences(then, now, anew=["train"]) == {} and differences(then, now, anew=["evaluate"])
    both = lambda code, data, lr=1: {"params": {"train": {"lr": lr}}, "stages": {"train@a-1": {"code": code, "params": "a", "data": data, "reads": ["train"]},
                                                                            "report": {"code": OLD, "params": "a", "data": "d", "reads": []}}}
    assert new_hashes(both(FIRST, "d"), both(NEW, "e", lr=2), anew=["train"]) == {"code": {OLD: OLD}, "params": {"a": "a"}}, "nor are parameters compared that only those read"
    with pytest.raises(SystemExit, match="train@a-1: params.yaml differs in train by more"):
        new_hashes(both(FIRST, "d"), both(NEW, "d", lr=2), anew=["report"])
    with pytest.raises(SystemExit, match="no stage trian in dvc.lock; there are report, train"):
        new_hashes(both(FIRST, "d"), both(NEW, "d"), anew=["trian"])


def test_parameters_may_be_added_but_not_changed():
    assert says_all_of({"train": {"lr": 1}}, {"train": {"lr": 1, "augment": False}, "more": 2})
    assert not says_all_of({"train": {"lr": 1}}, {"train": {"lr": 2, "augment": False}}) and not says_all_of({"train": {"lr": 1}}, {"train": {}}) and not says_all_of([1], [1, 2])


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    "A study of one result: the pipeline in small is a script that writes what `number.txt` says, the hash of the code is what `code.txt` says."
    root = tmp_path / "repository"
    for folder in ("results", "reports", "scripts", "fsrvos"):
        (root / folder).mkdir(parents=True)
    (root / "results/a.json").write_text(json.dumps({"J": .5, "provenance": {"code": OLD}}))
    (root / "reports/a.md").write_text(f"Made by: code {OLD}\n")
    (root / "reports/provenance.json").write_text(json.dumps({"made_by": {"code": OLD}, "files": {"a.md": digest(root / "reports/a.md")}, "results": {"a.json": digest(root / "results/a.json")}}))
    (root / "reports/choices.md").write_text("")
    (root / "scripts/smoke.sh").write_text("""#!/bin/sh
mkdir -p runs/smoke/results
printf '{"J": %s}' "$(cat number.txt)" > runs/smoke/results/a.json
printf 'stages: {a: {outs: [{path: results/a.json, md5: %s}]}}' "$(cat number.txt)" > runs/smoke/dvc.lock
""")
    (root / "scripts/smoke.sh").chmod(0o755)
    (root / "fsrvos/x.py").write_text("")
    for name, text in (("number.txt", "0.25"), ("code.txt", OLD), ("dvc.lock", "stages: {}\n"), ("code.json", "{}")):
        (root / name).write_text(text)
    for words in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm a"):
        subprocess.run(["git", *words.split()], cwd=root, check=True)
    monkeypatch.setattr(confirm, "ROOT", root)
    monkeypatch.setattr(confirm.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "scratch"))
    monkeypatch.setattr(confirm, "hashes", lambda folder: said(code=(folder / "code.txt").read_text()))
    monkeypatch.setattr(confirm, "TELL_DVC", "open('dvc.lock', 'a').write('# told'); open('code.json', 'w').write(open('code.txt').read())")
    return root


def test_the_same_numbers_get_the_new_hash(repository):
    (repository / "code.txt").write_text(NEW)
    confirm.confirm("HEAD")
    assert json.loads((repository / "results/a.json").read_text()) == {"J": .5, "provenance": {"code": NEW, "measured_with": OLD}}
    record = json.loads((repository / "reports/provenance.json").read_text())
    assert record == {"made_by": {"code": NEW, "measured_with": OLD}, "files": {"a.md": digest(repository / "reports/a.md")}, "results": {"a.json": digest(repository / "results/a.json")}}
    assert (repository / "reports/a.md").read_text() == f"Made by: code {NEW}\n" and (repository / "dvc.lock").read_text().endswith("# told")
    assert (repository / "code.json").read_text() == NEW


def test_files_that_are_new_are_seen(repository):
    "smoke.sh takes what differs from HEAD in tracked files: a new one has to be among it."
    (repository / "fsrvos/new.py").write_text("")
    with (repository / "scripts/smoke.sh").open("a") as script:
        script.write("[ ! -e fsrvos/new.py ] || git diff --name-only HEAD | grep -q fsrvos/new.py\n")
    subprocess.run(["git", "add", "fsrvos/new.py"], cwd=repository, check=True)
    (repository / "code.txt").write_text(NEW)
    confirm.confirm("HEAD")
    assert NEW in (repository / "results/a.json").read_text()


def test_trainings_that_round_otherwise(repository):
    "Both train in float32, and their losses are compared in place of models and answers."
    with (repository / "scripts/smoke.sh").open("a") as script:
        script.write("""[ "$*" = "--every-method --float32" ] || exit 1
printf 'step,total\\n0,100\\n1,10%s\\n' "$(tail -c 1 code.txt)" > runs/smoke/results/a.csv
printf 'stages: {a: {outs: [{path: results/a.json, md5: %s}, {path: results/a.csv, md5: %s}]}}' "$(cat number.txt)" "$(cat code.txt)" > runs/smoke/dvc.lock
""")
    (repository / "code.txt").write_text("0" * 16)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "b"], cwd=repository, check=True)
    (repository / "number.txt").write_text("0.26")
    (repository / "code.txt").write_text(NEW)
    with pytest.raises(SystemExit, match="results/a.csv: 0.01"):
        confirm.confirm("HEAD", within=.5, trained=.005)
    shutil.rmtree(repository.parent / "scratch")
    confirm.confirm("HEAD", trained=.02)
    assert (repository / "code.json").read_text() == NEW


def test_other_numbers_change_nothing(repository):
    (repository / "code.txt").write_text(NEW)
    (repository / "number.txt").write_text("0.26")
    with pytest.raises(SystemExit, match="(?s)not the same.*\n  results/a.json"):
        confirm.confirm("HEAD")
    assert OLD in (repository / "results/a.json").read_text() and (repository / "dvc.lock").read_text() == "stages: {}\n"


def test_results_that_are_not_the_commits_are_refused(repository):
    (repository / "results/a.json").write_text("{}")
    with pytest.raises(SystemExit, match="are not those of HEAD"):
        confirm.confirm("HEAD")
    subprocess.run(["git", "checkout", "-q", "results"], cwd=repository, check=True)
    (repository / "reports/choices.md").write_text("written meanwhile")
    confirm.confirm("HEAD")
    assert (repository / "reports/choices.md").read_text() == "written meanwhile"


def test_a_run_that_fails_is_told(repository):
    (repository / "scripts/smoke.sh").write_text("#!/bin/sh\necho no space left; exit 1\n")
    with pytest.raises(SystemExit, match="the pipeline in small failed:\nno space left"):
        confirm.confirm("HEAD")
