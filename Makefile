# The habits. `make setup` once, then the rest; PYTHON chooses the interpreter.
PYTHON ?= python
WORKSPACE ?= autocompress-runs
STUDY ?= digits
BENCH ?= autocompress-bench

.PHONY: help setup test slow lint format smoke bench report picture screenshots docs ci

help:  ## list the habits
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup:  ## install the checkout with everything a developer needs, and the commit hook
	$(PYTHON) -m pip install --editable .[dev]
	$(PYTHON) -m pre_commit install

test:  ## the tests that take seconds
	$(PYTHON) -m pytest

slow:  ## the tests that take minutes, the networks of torchvision among them
	$(PYTHON) -m pytest -m slow

lint:  ## style and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format:  ## rewrite the code in the house format
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

smoke:  ## a two-trial study, under a minute; nothing is left behind
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(PYTHON) -m autocompress search digits --budget 58s --max-trials 3 --workspace "$$folder" --set model.epochs=4

bench:  ## start-up, and what a trained trial's time goes to; JSON in $(BENCH)
	mkdir -p $(BENCH)
	$(PYTHON) tests/bench/start_up.py --out $(BENCH)/start_up.json
	$(PYTHON) tests/bench/trial_breakdown.py --study digits --budget 90s --out $(BENCH)/trial_breakdown.json

report:  ## the report of STUDY in WORKSPACE
	$(PYTHON) -m autocompress report $(STUDY) --workspace $(WORKSPACE)

picture:  ## the README's picture, from STUDY in WORKSPACE
	$(PYTHON) docs/picture.py $(STUDY) --workspace $(WORKSPACE) --out docs/front.svg

screenshots:  ## the README's pictures of the pages, from the browser tests
	$(PYTHON) -m pytest tests/browser -m slow -k pictures_of_the_readme
	for name in studies study trial; do cp test-results/readme-$$name.png docs/$$name.png; done

docs:  ## rewrite the parts of the README that are printed from the code
	$(PYTHON) docs/readme.py

ci:  ## what the build server runs
	.ci/run
