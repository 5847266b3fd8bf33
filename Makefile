# Two commands for a newcomer: `make demo` and `make test`. Both make the virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint docs format clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/digits_float.py runs/demo/digits-float
	$(BIN)/ofqctl quantize local-dir:runs/demo/digits-float --wbits 4 --abits 4 --calib-data digits \
		--data digits --output runs/demo/digits-w4a4 --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate_cli.py --check

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/generate_cli.py

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) runs site
