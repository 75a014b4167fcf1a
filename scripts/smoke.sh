#!/bin/sh
# The whole pipeline in the size `smoke`, in a temporary clone: the committed reports and dvc.lock stay what they are.
# The clone is of HEAD with what differs from it in tracked files; reports, results and executed notebooks come back to runs/smoke.
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

python - <<'END'
from pathlib import Path
import yaml
from fsrvos.study import choose_size, read_yaml
choose_size("smoke")
raw = read_yaml("params.yaml")
raw["methods"]["plus_stills"].pop("pretrain")     # a budget for the size cpu; here it has that of the others
Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
END
fsrvos synthesize
dvc commit --quiet --force data.dvc
dvc repro

rm -rf "$root/runs/smoke"
mkdir -p "$root/runs/smoke"
cp -R reports results runs params.yaml "$root/runs/smoke/"
cat reports/table1.md reports/transfer.md reports/ablations.md reports/table5.md
echo
echo "a first picture: runs/smoke/$(ls reports/qualitative_*.png | head -n 1)    executed notebooks: runs/smoke/runs/"
