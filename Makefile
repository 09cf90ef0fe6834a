# Every target sets up what it needs. `make demo` and `make test` work in a fresh clone with Python 3.11+ and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Test processes side by side; each loads the embedded model and takes up to 3 GB.
WORKERS ?= 2

# Ports of `make up`, where others are to be taken: PORTS='--server-port 4300 --mlflow-port 5001'.
PORTS ?=

.PHONY: setup demo up down status test test-system soak drills bench bench-optimizers check lock docs site

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] < (3, 14), "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12 …" % sys.version_info[:2]'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --no-build --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/dspy-toolkit fetch-model
	touch $@

# Prepare, probe, train, prove, promote: the router on the embedded model, fine-tuned, in about ten minutes on two cores. With
# another model, which DSPY_TOOLKIT_LM__MODEL names, what `auto` takes: prompts have more to find there, and it may be a remote one.
demo: setup
	$(BIN)/python -m flows.optimize_program --project router $(if $(DSPY_TOOLKIT_LM__MODEL),,--optimizer finetune --budget 8m)

# Everything on this machine, running by itself: Prefect's server with a password, a worker, the deployments of prefect.yaml, alerts,
# MLflow's and our own pages, serving. Again is as good as once. Afterwards `.venv/bin/prefect` finds the server from any shell here.
up: setup
	@$(BIN)/python -m deployments.bootstrap up $(PORTS)

# Cancels what runs, then ends all that `make up` started.
down: setup
	@$(BIN)/python -m deployments.bootstrap down

status: setup
	@$(BIN)/python -m deployments.bootstrap status

# The ordinary suite, with the real embedded model.
test: setup
	$(BIN)/python -m pytest -m "not system and not soak" -n $(WORKERS)

# What takes more than pip: README.md's and docs/' shell blocks in a fresh clone, a Prefect server and worker, the wheel in an
# environment of its own, a CPU build of torch.
test-system: setup
	$(BIN)/python -m pytest -m "system and not soak" -n $(WORKERS) --dist loadfile

# Long: load, kills, many nights; then all drills.
soak: setup
	$(BIN)/python -m pytest -m soak --ignore tests/drills
	$(BIN)/python -m tests.drills

# All drills, and the table of them in docs/reliability.md.
drills: setup
	$(BIN)/python -m tests.drills

# The engine against other ways of running the same model; an hour on 2 idle cores. A peer that is missing is named,
# with the command that installs it.
bench: setup
	$(BIN)/python -m benchmarks.lm $(BENCH)

# The optimizers alone, raced and chosen, on eight tasks with three seeds; many hours on 2 cores. Started again, it goes on.
# Three tasks need reasoning-gym; where it is missing they are named, with the command that installs it.
bench-optimizers: setup
	$(BIN)/python -m benchmarks.optimizers --home .dspy-toolkit/bench-optimizers $(BENCH)

# Lint, format, types, the order of imports and documentation; no tests.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/build.py --check

docs: setup
	$(BIN)/python docs/build.py

# The documentation as a searchable site in site/, in an environment of its own: the lock has no mkdocs.
site: setup
	test -x $(VENV)/site/bin/mkdocs || $(BIN)/python -m venv $(VENV)/site
	$(BIN)/uv pip install --quiet --no-build --python $(VENV)/site/bin/python 'mkdocs-material>=9.6,<10'
	NO_MKDOCS_2_WARNING=1 $(VENV)/site/bin/mkdocs build --strict --quiet
	@echo 'Look at it: $(BIN)/python -m http.server --directory site --bind 127.0.0.1 8001'

# Resolve anew, for macOS arm64 and Linux, with hashes and no index address.
lock:
	test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv; }
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet \
		--extra blas --extra flows --extra serve --extra agents --extra landscapes --group dev --upgrade pyproject.toml -o requirements.lock
