#!/bin/sh
# scripts/study.sh [METHOD ...]: bring the folds of these methods up to date, then Table 1; none named: every cell of the study, and every table.
# One `dvc repro` would run the cells one after another; here JOBS of them (2) run side by side, one thread each.
set -eu
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# glibc gives large tensors back to the system when they are freed and takes them again a moment later: 6 % of a training step.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000

stages=$(dvc stage list --name-only)
methods=$(echo "$*" | tr ' ' '|')
select_items() {   # select_items STAGE: its items, one a line, of the methods asked for
    echo "$stages" | sed -n "s/^$1@//p" | if [ -n "$methods" ]; then grep -E "^($methods)(-[0-9]+)?\$" || true; else cat; fi
}
side_by_side() {   # the items on standard input; each runs the given stages in order
    xargs -P "${JOBS:-2}" -I{} dvc --wait-for-lock repro --single-item "$@"
}

scripts/materialise.sh
dvc repro oracles features
select_items pretrain | side_by_side 'pretrain@{}'
select_items train    | side_by_side 'train@{}' 'evaluate@{}'
select_items baseline | side_by_side 'baseline@{}'
select_items pretrain_compared | side_by_side 'pretrain_compared@{}'
select_items train_compared    | side_by_side 'train_compared@{}' 'evaluate_compared@{}'
dvc repro --single-item report
cat reports/table1.md
[ -z "$methods" ] || exit 0             # the methods named have their Table 1; the rest is for all together

dvc repro shifted
select_items transfer          | side_by_side 'transfer@{}'
select_items transfer_compared | side_by_side 'transfer_compared@{}'
dvc repro --single-item shots report_transfer
cat reports/transfer.md
if [ -n "$(select_items train_multi)" ]; then
    select_items train_multi | side_by_side 'train_multi@{}' 'choose_multi@{}' 'evaluate_multi@{}'
    dvc repro --single-item report_multi
    cat reports/table5.md
fi
echo
echo "figures and tables: reports/    executed notebooks: runs/"
