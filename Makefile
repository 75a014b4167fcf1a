# Thin: each target is one or two commands; what they do is in scripts/, dvc.yaml and settings.ini.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# On 2 cores: repro took 63 minutes without danet, setup included; danet adds about 12, and what runs side by side now takes about 8 off (by their parts). The study, by its parts: 66 more
# for controls and seeds, 60 for the other compared models and the transfer, 45 for any number of objects, 60 for the ablations.
REPRO_NEEDS = about 70 minutes on 2 cores and 6 GB of disk
STUDY_NEEDS = about 5 hours on 2 cores and 6 GB of disk

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
