# The commands of this repository. They are the same on a laptop and in CI, and need nothing but
# make and Python 3.11: the first one builds the environment (see tools/environment.py).
#   make PYTHON=/path/to/python3.11 test     another Python
#   make test ARGS="tests/runtime -x"        a part of the tests

PYTHON ?= python3
RUN := $(PYTHON) tools/run.py
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo tiny ablations gpu-check test floors lint types format check clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 16

demo:  ## segment a picture: checkpoint, export, bundle, result
	@$(RUN) python tools/demo.py $(ARGS)

tiny:  ## train the default model from its seed (minutes on a GPU, two hours on two cores; resumes)
	@$(RUN) python -m escnet.foundations --output out/tiny --ship escnet/checkpoints $(ARGS)

ablations:  ## the paper's ablations on the foundations of tiny (five hours on two cores; resumes)
	@$(RUN) python -m escnet.ablations --foundations benchmarks/foundations --output benchmarks/ablations $(ARGS)

gpu-check:  ## all that only a GPU can tell: tests, parity, memory, latency, a soak (docs/gpu.md)
	@$(RUN) python -m escnet_bench.gpu_check $(ARGS)

test:  ## run the tests
	@$(RUN) python -m pytest -q -n auto --dist loadfile $(ARGS)

floors:  ## test what devices install at the lowest versions it accepts (floors.txt; about 1 GB)
	@$(RUN) python -m tools.floors $(ARGS)

lint:  ## check style and formatting
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .

types:  ## check the types
	@$(RUN) python -m mypy
	@# JetPack 6 has Python 3.10, whose arrays are Any by the stubs of a NumPy for newer ones.
	@$(RUN) python -m mypy --python-version 3.10 --disable-error-code no-any-return \
		-p escnet_runtime -p escnet_engines -p escnet_bench

format:  ## format the code and sort its imports
	@$(RUN) ruff check --select I --fix .
	@$(RUN) ruff format .

check: test lint types  ## tests, style and types

clean:  ## remove caches and builds of this checkout (not out/ and demo/, nor the shared environment)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +
