# Two commands on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Two processes, and each file in one of them: its tests share what it prepares.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test test-all check bench bench-verdict bench-data bench-train bench-exam bench-serve bench-vision docs lock clean

quickstart: .venv/ready
	$(BIN)/luthier quickstart

test: .venv/ready
	$(PYTEST)

test-all: .venv/ready
	$(PYTEST) -m "slow or not slow" --hypothesis-profile=new

check: .venv/ready
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

bench: bench-verdict bench-data bench-train bench-exam bench-serve bench-vision

bench-verdict: .venv/ready
	$(BIN)/python benchmarks/verdict/run.py

# The peers' libraries are of the same releases as ours; what only they need comes into a place of their own.
bench-data: .venv/ready .venv-peers/ready
	$(BIN)/python benchmarks/data/run.py --python .venv-peers/bin/python

.venv-peers/ready: benchmarks/data/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet -r benchmarks/data/peers.txt
	touch .venv-peers/ready

bench-train: .venv/ready .venv-trl/ready .venv-unsloth/ready
	$(BIN)/python benchmarks/train/run.py

# TRL takes torch and transformers from ours, which are of the releases that it is made for.
.venv-trl/ready: benchmarks/train/peers-trl.txt .venv/ready
	$(PYTHON) -m venv .venv-trl
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
	  $$(.venv-trl/bin/python -c "import site; print(site.getsitepackages()[0])")/ours.pth
	.venv-trl/bin/pip install --quiet -r benchmarks/train/peers-trl.txt
	touch .venv-trl/ready

.venv-unsloth/ready: benchmarks/train/peers-unsloth.txt
	$(PYTHON) -m venv .venv-unsloth
	.venv-unsloth/bin/pip install --quiet -r benchmarks/train/peers-unsloth.txt
	.venv-unsloth/bin/pip install --quiet --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9
	touch .venv-unsloth/ready

bench-exam: .venv/ready .venv-lm-eval/ready
	$(BIN)/python benchmarks/exam/run.py

# The harness takes torch, transformers and peft from ours, so both sides compute with the same releases.
.venv-lm-eval/ready: benchmarks/exam/peers.txt .venv/ready
	$(PYTHON) -m venv .venv-lm-eval
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
	  $$(.venv-lm-eval/bin/python -c "import site; print(site.getsitepackages()[0])")/ours.pth
	.venv-lm-eval/bin/pip install --quiet -r benchmarks/exam/peers.txt
	touch .venv-lm-eval/ready

bench-serve: .venv/ready
	$(BIN)/python benchmarks/serve/run.py

bench-vision: .venv/ready .venv-trl/ready
	$(BIN)/python benchmarks/vision/run.py

docs: .venv/ready
	$(BIN)/python -m luthier.recipedocs > docs/recipe.md
	$(BIN)/python -m luthier.stepdocs > docs/steps.md
	$(BIN)/python docs/mediapictures.py

lock:
	uv pip compile requirements.in --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
	  --no-header --python-version 3.11 -o requirements.lock

# The stamp is written last, so an interrupted install is made again.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch .venv/ready

clean:
	rm -rf .venv .venv-peers .venv-trl .venv-unsloth .venv-lm-eval tables quickstart-run* build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
