PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup audit test test-slow lint bench bench-captions bench-defenses bench-factors bench-gpu bench-inversion \
        bench-layers bench-paper bench-peel docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

setup: $(STAMP)  ## create .venv with everything the project needs

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $(STAMP)

audit: setup  ## run the embedded default audit; the last line is the report's path
	@$(BIN)/seepage audit

lint: setup  ## style, types and the import graph
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread each: two torch processes of two threads on two cores wait for each other most of the time.
test: lint  ## lint, then the tests but for the slow ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --durations=25 -m "not slow"

test-slow: setup  ## the tests that take ten seconds and more: pages that run, kills, whole trainings
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --durations=25 -m slow

bench: setup  ## the README's first table; the targets below make the other figures
	$(BIN)/python benchmarks/first_audit.py

bench-inversion: setup  ## attack x victim x depth, on the research data that SEEPAGE_DATA names
	$(BIN)/python benchmarks/inversion.py
	$(BIN)/python benchmarks/identifiability.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/blocks.py
	$(BIN)/python benchmarks/tokens.py
	$(BIN)/python benchmarks/recoveries.py
	$(BIN)/python benchmarks/twins.py --block layer2.1

bench-factors: setup  ## skip, activation, pooling and first weights, each changed alone
	$(BIN)/python benchmarks/factors.py

bench-peel: setup  ## PEEL's block, tables, figures and claims
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python benchmarks/peel_block.py
	$(BIN)/python benchmarks/train_xray.py
	$(BIN)/python benchmarks/train_face_judge.py
	$(BIN)/python benchmarks/train_generator.py faces -o $(VENV)/faces.safetensors
	$(BIN)/python benchmarks/train_generator.py cifar10 -o $(VENV)/cifar10.safetensors
	$(BIN)/python benchmarks/peel_tables.py --generator faces=$(VENV)/faces.safetensors \
		--generator cifar10=$(VENV)/cifar10.safetensors
	$(BIN)/python benchmarks/peel_figures.py --effort standard
	$(BIN)/python benchmarks/claims.py

bench-captions: setup  ## what features say in words, on the research data that SEEPAGE_DATA names
	$(BIN)/python benchmarks/captions.py
	$(BIN)/python benchmarks/labels.py
	$(BIN)/python benchmarks/depth.py
	$(BIN)/python benchmarks/authors.py

bench-paper: setup  ## CapRecover's published cells, with its models and data where they are: DATA=folder
	$(BIN)/python benchmarks/paper.py --data $(or $(DATA),data)

bench-gpu: setup  ## images a second of 200 steps on a CPU and, where there is one, on a GPU
	$(BIN)/python benchmarks/gpu.py

bench-defenses: setup  ## what defenses promise, held against what they do
	$(BIN)/python benchmarks/mask.py
	$(BIN)/python benchmarks/noise.py
	$(BIN)/python benchmarks/masked.py
	$(BIN)/python benchmarks/defenses.py
	$(BIN)/python benchmarks/encrypted.py
	$(BIN)/python benchmarks/bounds.py
	$(BIN)/python benchmarks/decide.py

bench-layers: setup  ## the cut law on every architecture at full size
	$(BIN)/python benchmarks/layers.py

docs: setup  ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

clean:  ## remove what the targets made
	rm -rf $(VENV) docs/_build docs/jupyter_execute seepage-out
