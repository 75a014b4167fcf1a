#!/bin/sh
# scripts/study.sh [METHOD ...]: bring the folds of these methods up to date, then Table 1; none named: every cell of the study, and every table.
# One `dvc repro` would run the items one after another; here JOBS of them (2) run side by side, one thread each.
set -eu
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# glibc gives large tensors back to the system when they are freed and takes them again a moment later: 6 % of a training step.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000

scripts/materialise.sh
stages=$(dvc stage list --name-only)
methods=$(echo "$*" | tr ' ' '|')
lines() {        # lines ITEMS STAGE...: for each item of the stage ITEMS, of the methods asked for, a line with that item of the stages
    items=$1; shift
    echo "$stages" | sed -n "s/^$items@//p" | if [ -n "$methods" ]; then grep -E "^($methods)(-[0-9]+)?\$" || true; else cat; fi |
        while read -r item; do line=; for stage; do line="$line $stage@$item"; done; echo "${line# }"; done   # a blank at its end would join it with the next
}
each() { for stage; do lines "$stage" "$stage"; done; }
side_by_side() { # the lines on standard input; of a line, one after another. What is longest stands first, so that no core waits for long at the end.
    xargs -P "${JOBS:-2}" -L 1 dvc --wait-for-lock repro --single-item
}

whole() { [ -z "$methods" ]; }          # the methods named have their Table 1; all else is for all of them together

dvc repro curate                        # and `code`, which it depends on: no item below has to ask what its code is
{ echo features; echo oracles; if whole; then echo shifted; echo stills; fi; } | side_by_side
{ each pretrain; if whole; then each pretrain_stills pretrain_ablation; fi; each pretrain_compared; if whole; then each untrained; fi; } | side_by_side
{                                       # what starts from a trained cell stands far behind it
    lines train train evaluate
    lines train_compared train_compared evaluate_compared
    if whole; then
        for group in start ablation; do lines "train_$group" "train_$group" "evaluate_$group"; done
        lines train_multi train_multi choose_multi evaluate_multi
        echo shots
        each transfer_compared transfer
    fi
    each baseline
} | side_by_side
dvc repro --single-item report
cat reports/table1.md
whole || exit 0

dvc repro --single-item report_transfer report_ablations
cat reports/transfer.md reports/ablations.md
if [ -n "$(each train_multi)" ]; then
    dvc repro --single-item report_multi
    cat reports/table5.md
fi
echo
echo "figures and tables: reports/    executed notebooks: runs/"
