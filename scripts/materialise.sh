#!/bin/sh
# Render data/embedded where it is missing, then compare it with data.dvc.
# `dvc repro` would take other bytes in silence and rewrite data.dvc, so the comparison is git's.
set -eu
cd "$(dirname "$0")/.."

[ -d data/embedded ] || fsrvos synthesize
dvc commit --quiet --force data.dvc
git diff --exit-code -- data.dvc >&2 || {
    echo "data/embedded is not what data.dvc pins (above: - pinned, + here)." >&2
    echo "If the generator or params.yaml was changed on purpose: git add data.dvc, and run again." >&2
    echo "Else: rm -rf data/embedded && git checkout data.dvc, and run again; if it comes out again, it is a bug." >&2
    exit 1
}
