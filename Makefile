# Two commands for a newcomer: `make demo` and `make test`. Both make the virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

DATA ?= ../shared/data
HOURS ?= 2

.PHONY: demo test test-slow test-gpu test-runtimes fuzz lint docs results format clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/ofqctl train vit_tiny --no-pretrained --num-classes 10 --recipe demo/digits_float \
		--model-kwargs img_size=32 patch_size=8 embed_dim=64 depth=4 num_heads=4 \
		--data digits --val-data digits --output runs/demo/digits-float --overwrite
	$(BIN)/ofqctl train runs/demo/digits-float --recipe demo/digits_ofq_w2a2 \
		--data digits --val-data digits --output runs/demo/digits-w2a2 --overwrite
	$(BIN)/ofqctl evaluate runs/demo/digits-float --data digits
	$(BIN)/ofqctl evaluate runs/demo/digits-w2a2 --data digits
	$(BIN)/ofqctl export runs/demo/digits-w2a2 --onnx --verify-data digits --verify-images 360 --overwrite
	$(BIN)/ofqctl quantize vit_tiny --no-pretrained --recipe deploy/w8a8 --set calibration.images=8 \
		--output runs/demo/vit-tiny-w8a8 --overwrite
	$(BIN)/ofqctl export runs/demo/vit-tiny-w8a8 --onnx --verify-images 8 --overwrite
	$(BIN)/ofqctl bench infer runs/demo/vit-tiny-w8a8/model.onnx --against float --batch-size 1,8 --runs 10
	$(BIN)/ofqctl study run smoke --output runs/demo/smoke
	$(BIN)/ofqctl study report runs/demo/smoke --html runs/demo/smoke.html

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu -rs tests/devices

test-runtimes: $(INSTALLED)
	$(BIN)/python -m pytest -m runtimes -rs tests/export

fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz.harness --count 10000

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy docs/examples
	$(BIN)/lint-imports
	$(BIN)/python docs/generate_cli.py --check
	$(BIN)/python docs/generate_schemas.py --check
	$(BIN)/python docs/generate_methods.py --check
	$(BIN)/python docs/generate_results.py --check

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_schemas.py
	$(BIN)/python docs/generate_results.py

results: $(INSTALLED)
	$(BIN)/python docs/measure_results.py --data $(DATA) --hours $(HOURS)

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) runs site
