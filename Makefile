# Everything runs in .venv, which is made on first use and renewed when pyproject.toml or constraints.txt change.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
MYPY := ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-quick test lint types tests soak agreement bench bench-large bench-quick learning learning-quick wheel clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do \
		printf 'make %-15s %s\n' "$$name" "$$what"; done

venv: $(READY)  ## make .venv: la-core (editable), PyTorch, JAX, and the tools

# pip itself first: it reads dependency groups from 25.1 on. No build isolation: setuptools comes from constraints.txt.
$(READY): pyproject.toml constraints.txt
	@echo 'Setting up .venv (a minute or so)'
	@rm -f $@
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip setuptools
	@$(PIP) --no-build-isolation -e '.[torch,jax,demo,export]' --group test --group lint --group build
	@touch $@

demo: $(READY)  ## learn embeddings of handwritten digits, and draw what was learnt
	$(BIN)/python examples/train_torch.py

demo-quick: $(READY)  ## the same in little time, to see that it runs
	$(BIN)/python examples/train_torch.py --quick

test: lint types tests  ## lint, types and tests: all that must pass before a commit

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow an editable install that maps folders, so it sees the packages laid out as a wheel has them.
types: $(READY)  ## mypy, strict, on the package and the examples
	@rm -rf build/types && mkdir -p build/types
	@cp -Rp la_core build/types/la_core
	@cp -Rp backends build/types/la_core/backends
	cd build/types && $(MYPY) -p la_core
	cd build/types && MYPYPATH=. $(MYPY) ../../examples/*.py

# A process for each core, so a thread for each: those of two processes wait for each other, some tests five times as
# long. Tests of threads say how many they want. Files in their order: those with few tests, which come last otherwise,
# are not the short ones.
tests: $(READY)  ## pytest, on all cores up to four
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

soak: $(READY)  ## kill, cut the power, damage checkpoints, spoil steps, for long: the figures of docs/reliability.md (an hour or two)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m soak

agreement: $(READY)  ## the table: how far each library is from NumPy, function by function
	PYTHONPATH=tests $(BIN)/python -m agreement.table

bench: $(READY)  ## how fast search, step and clustering are, beside other libraries (20 minutes; nothing else running)
	@$(PIP) --group bench
	PYTHONPATH=benchmarks $(BIN)/python -m speed

bench-large: $(READY)  ## clusterings of the size of ImageNet, once each (half an hour to an hour)
	@$(PIP) --group bench
	PYTHONPATH=benchmarks $(BIN)/python -m speed --large

bench-quick: $(READY)  ## make bench at a fiftieth of the size, to see that it runs
	@$(PIP) --group bench
	PYTHONPATH=benchmarks $(BIN)/python -m speed --scale 0.02 --repeats 2

learning: $(READY)  ## what is learnt on four sets of images, beside other methods, and the ablation (five hours)
	@$(PIP) --group bench
	$(BIN)/python benchmarks/learning.py
	$(BIN)/python benchmarks/learning.py --ablation

learning-quick: $(READY)  ## the first of these in little time, to see that it runs
	@$(PIP) --group bench
	$(BIN)/python benchmarks/learning.py --quick

wheel: $(READY)  ## sdist and wheel, in dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove what make has made, .venv too
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
