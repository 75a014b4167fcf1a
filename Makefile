# Thin: each target is one or two commands; what they do is in scripts/, dvc.yaml and settings.ini.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Measured on 2 cores of a processor without matrix tiles: repro 25 minutes from a fresh clone, setup included; the study two hours to two and a half (reports/choices.md).
REPRO_NEEDS = 25 to 45 minutes on 2 cores and 6 GB of disk
STUDY_NEEDS = 2 to 2.5 hours on 2 cores and 6 GB of disk

.PHONY: repro study smoke test demo bench docs lab setup announce-repro announce-study
.NOTPARALLEL:

repro: announce-repro setup       ## cma, cma_plus and danet on four folds, then Table 1
	scripts/study.sh cma cma_plus danet

study: announce-study setup       ## every method, ablation and seed, then Table 1
	scripts/study.sh

smoke: setup                      ## the whole pipeline in small, in a temporary clone: a first picture and table
	scripts/smoke.sh

test: setup                       ## every test
	OMP_NUM_THREADS=1 nbdev_test --n_workers 2
	pytest

demo: setup                       ## a clip, a support, two sentences: what the demo model makes of them
	rm -rf demo
	fsrvos demo --out demo

bench: setup                      ## every benchmark, measured again on this machine
	python scripts/bench.py

docs: setup                       ## README.md and the site, in _docs/
	python scripts/readme.py
	python scripts/docs.py

lab: setup                        ## JupyterLab on the notebooks
	jupyter lab --notebook-dir=nbs

setup: .venv/ready
.venv/ready: constraints.txt settings.ini setup.py pyproject.toml
	scripts/setup.sh "$(PYTHON)"

announce-repro: ; @echo "make repro: $(REPRO_NEEDS) (the setup of .venv apart). An interrupted run goes on where it stopped."
announce-study: ; @echo "make study: $(STUDY_NEEDS) (the setup of .venv apart). An interrupted run goes on where it stopped."
