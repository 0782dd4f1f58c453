# `make help` lists the targets. Everything runs in .venv, which `make install` creates.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

export DETECTRON2_DATASETS ?= datasets
ifneq ($(words $(DETECTRON2_DATASETS)),1)
$(error DETECTRON2_DATASETS is "$(DETECTRON2_DATASETS)": make needs a path without spaces)
endif
SCENES := $(DETECTRON2_DATASETS)/synthetic_kitti
RUNS := output/quickstart
TEACHER := faster_rcnn_R34_FPN
DISTILLED := faster_rcnn_R18_from_R34
STUDENTS := faster_rcnn_R18_FPN faster_rcnn_R18_FPN_equal_time $(DISTILLED)
# Options of datasets/make_synthetic_kitti.py.
SCENE_OPTIONS ?=
# Options of tools/benchmark.py.
BENCHMARK_OPTIONS ?=
# Overrides of config keys for all runs, such as "SOLVER.MAX_ITER 10".
TRAIN_OPTIONS ?=
# Number of kills of the crash campaign.
KILLS ?= 20

.DEFAULT_GOAL := help
.PHONY: help install demo reuse visualize deploy model-zoo benchmark load-test crash-campaign gpu-check \
	test test-core test-slow lint docs clean distclean always
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

install: $(INSTALLED)  ## create .venv with all dependencies

$(INSTALLED): requirements.txt setup.py tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --requirement requirements.txt
	$(BIN)/python tools/install_detectron2.py
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@

demo: reuse $(RUNS)/report/report.md  ## train a teacher, students without and with it, and write a report
	@cat $(RUNS)/report/report.md
	@echo
	@echo "Report with pictures: $(RUNS)/report/report.html"

reuse: $(SCENES)/training/scenes.json
	@for run in $(TEACHER) $(STUDENTS); do \
		if [ $(RUNS)/$$run/.finished -nt $< ]; then \
			echo "$(RUNS)/$$run: already trained, kept (make clean removes it)"; \
		fi; \
	done

# The script checks whether scenes with these options exist.
$(SCENES)/training/scenes.json: always | $(INSTALLED)
	$(BIN)/python datasets/make_synthetic_kitti.py $(SCENE_OPTIONS)

$(patsubst %,$(RUNS)/%/.finished,$(TEACHER) $(STUDENTS)): $(SCENES)/training/scenes.json
$(DISTILLED:%=$(RUNS)/%/.finished): $(RUNS)/$(TEACHER)/.finished

# An interrupted run resumes. A run on older scenes or with an older teacher starts again.
$(RUNS)/%/.finished:
	@for input in $^; do if [ $$input -nt $(@D)/config.yaml ]; then rm -rf $(@D); fi; done
	$(BIN)/python train_net.py --config-file configs/Quickstart/$*.yaml --num-gpus 0 --resume $(TRAIN_OPTIONS)
	@touch $@

$(RUNS)/report/report.md: $(foreach run,$(TEACHER) $(STUDENTS),$(RUNS)/$(run)/.finished)
	$(BIN)/python tools/report.py $(^D) --output $(@D)

visualize: $(RUNS)/faster_rcnn_R18_from_R34/.finished  ## draw weights, attention and features of the demo's student
	$(BIN)/python tools/visualize.py \
		--config-file configs/Quickstart/faster_rcnn_R18_from_R34.yaml \
		--weights $(RUNS)/faster_rcnn_R18_from_R34/model_final.pth \
		--num-gpus 0 --output $(RUNS)/pictures --contact-sheet 8

model-zoo: $(foreach run,$(TEACHER) $(STUDENTS),$(RUNS)/$(run)/.finished)  ## update the rows of the demo in MODEL_ZOO.md
	$(BIN)/python tools/model_zoo.py $(DISTILLED:%=$(RUNS)/%)

deploy: $(RUNS)/faster_rcnn_R18_from_R34/.finished  ## export the demo's student to TorchScript and ONNX
	$(BIN)/python tools/export_model.py --config-file $(<D) --output $(RUNS)/export

benchmark: install  ## measure the cost of a training step with a teacher
	$(BIN)/python tools/benchmark.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml \
		--size 370x1242 --batch 2 --seconds 200 --json output/benchmark/benchmark.json \
		$(BENCHMARK_OPTIONS)

load-test: $(RUNS)/$(TEACHER)/.finished $(SCENES)/training/scenes.json  ## check that memory and open files do not grow in 2000 iterations
	$(BIN)/python tools/load_test.py --config-file configs/Quickstart/faster_rcnn_R18_from_R34.yaml \
		SOLVER.MAX_ITER 2000

crash-campaign: install  ## kill training runs KILLS times, resume them, compare the results
	$(BIN)/python tools/crash_campaign.py --kills $(KILLS)

gpu-check: install  ## check on a GPU what cannot be tested without one, in 6 minutes
	$(BIN)/python tools/gpu_check.py

test: install  ## run the tests, about 10 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test-core: install  ## run the core tests, 2 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "core and not slow"

test-slow: install  ## run the slow tests
	$(BIN)/python -m pytest -m slow

lint: install  ## check format, lint rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install  ## build the documentation as HTML in output/docs/html
	$(BIN)/sphinx-build -W --keep-going -b html docs output/docs/html

clean:  ## remove the output of the demo
	rm -rf $(RUNS) $(SCENES)

distclean: clean  ## remove .venv too
	rm -rf .venv docs/api projects/AID/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
