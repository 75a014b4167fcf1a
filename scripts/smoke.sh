#!/bin/sh
# The whole pipeline in the size `smoke`, in a temporary clone: the committed reports and dvc.lock stay what they are.
# The clone is of HEAD with what differs from it in tracked files; reports, results, dvc.lock and executed notebooks come back to runs/smoke.
# scripts/smoke.sh --every-method [--float32]: with a cell of each method that the study trains; trained without autocast (scripts/confirm.py asks for that).
set -eu
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git clone --quiet "$root" "$work/clone"
git diff --quiet HEAD || git diff --binary HEAD | git -C "$work/clone" apply
cd "$work/clone"
export PYTHONPATH="$PWD"                # this package, not the checkout's, from the same .venv
ln -s ../kernels fsrvos/kernels         # PYTHONPATH alone does not map kernels/ to fsrvos.kernels
rm -rf results reports dvc.lock

python - "$@" <<'END'
import sys
from pathlib import Path
import yaml
from fsrvos.study import choose_size, read_yaml
study = read_yaml("params.yaml")
choose_size("smoke")
raw = read_yaml("params.yaml")
if "--every-method" in sys.argv:
    for cells in ("cells", "compared_cells", "ablation_cells", "start_cells", "multi_cells"):
        raw[cells] = {cell: method for cell, method in study[cells].items() if cell.endswith("-1")}
    raw |= {methods: study[methods] for methods in ("compared", "ablations")}
    raw["pretrain"]["methods"] = study["pretrain"]["methods"]
if "--float32" in sys.argv:
    for stage in ("pretrain", "train", "multi"):
        raw["smoke"][stage]["amp"] = "none"
raw["methods"]["plus_stills"].pop("pretrain")     # a budget for the size cpu; here it has that of the others
Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
END
fsrvos synthesize
dvc commit --quiet --force data.dvc
dvc repro

rm -rf "$root/runs/smoke"
mkdir -p "$root/runs/smoke"
cp -R reports results runs params.yaml dvc.lock "$root/runs/smoke/"
cat reports/table1.md reports/transfer.md reports/ablations.md reports/table5.md
echo
echo "a first picture: runs/smoke/$(ls reports/qualitative_*.png | head -n 1)    executed notebooks: runs/smoke/runs/"
