# A developer's whole interface. Every target makes .venv by itself and uses it again.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo
IMAGES ?= 2000

.DEFAULT_GOAL := help
.PHONY: help install demo test test-plain test-cluster test-slow lint bench docs proto clean

help:
	@echo "install    .venv with btray and all tools (gigabytes: torch, Ray)"
	@echo "demo       a data set, a training and a report in demo/, in minutes"
	@echo "lint test  what CI runs;  test-slow: tests that take minutes each"
	@echo "bench      speed against peers;  docs: API pages;  proto: gRPC stubs;  clean"

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# Real slices in BTRAY_DATA (a folder of class folders), or else the synthetic phantom.
demo: install
	@mkdir -p $(DEMO)
	@if [ -n "$$BTRAY_DATA" ]; then \
	  $(BIN)/btray data import "$$BTRAY_DATA" $(DEMO)/dataset --overwrite; \
	else \
	  $(BIN)/btray data phantom $(DEMO)/dataset --images $(IMAGES) --seed 0 --overwrite; \
	fi
	@$(BIN)/btray data show $(DEMO)/dataset --out $(DEMO)/sheet.png
	@bundle=$$($(BIN)/btray train --config configs/quick.yaml --data $(DEMO)/dataset \
	  --set run.storage=$(DEMO)/runs) && \
	$(BIN)/btray evaluate "$$bundle" $(DEMO)/dataset --split test --out $(DEMO)/report

# Tests that use clusters wait a lot: the others run beside them.
test: install
	$(BIN)/coverage erase
	$(MAKE) --keep-going --jobs=2 --output-sync=target --no-print-directory test-cluster test-plain
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-plain: install
	$(BIN)/coverage run -m pytest --durations=10 -m "not cluster and not slow"

# One lane for all that starts Ray: of two at once one has no agent that takes jobs, and what Ray Train
# leaves to look after a lost controller ends ("Found multiple active Ray instances").
test-cluster: install
	$(BIN)/coverage run -m pytest --durations=30 -m "cluster and not slow"

# Hosts and nodes that go and come back, a fresh installation: minutes each.
test-slow: install
	$(BIN)/python -m pytest --durations=0 -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python benchmarks/train_throughput.py
	$(BIN)/python benchmarks/input_pipeline.py
	$(BIN)/python benchmarks/streaming_memory.py
	$(BIN)/python benchmarks/near_duplicates.py
	$(BIN)/python benchmarks/serve.py --peers fastapi ray

docs: install
	$(BIN)/pdoc --output-directory build/docs btray btray.config btray.core btray.data btray.train btray.evaluate btray.serve
	$(BIN)/btray config schema > build/docs/config.schema.json

# The stubs of gRPC, which are committed; a test holds them to their .proto.
proto: install
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. btray/serve/proto/*.proto

clean:
	rm -rf build dist $(DEMO) *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find btray tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
