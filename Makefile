# lmserve: `make serve` serves, `make test` tests. Both set up .venv first, once.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# Other projects' clients, which pin what our own environment does not.
CLIENTS := .venv-clients

# The torch of a CPU set-up: pinned in pyproject.toml, extra `cpu`.
TORCH := $(shell sed -n 's/^cpu = .*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
HAS_TORCH := from importlib.metadata import version; \
	raise SystemExit(version("torch").partition("+")[0] != "$(subst torch==,,$(TORCH))")
# Where pip takes torch from; empty: where pip is configured to look.
TORCH_INDEX_URL ?=

# Set-up is done again only when the package's description or a source of its kernels changes.
KERNELS     := setup.py $(wildcard lmserve/native/src/*)
SERVE_READY := $(VENV)/.ready-to-serve
DEV_READY   := $(VENV)/.ready-to-develop
LOAD_READY  := $(VENV)/.ready-to-load

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow test-clients check lint format bench bench-proxy bench-conversation bench-reconnect bench-features bench-table loadtest perplexity gpu fuzz fuzz-parsers venv clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(SERVE_READY) ## Set up and serve the default model: make serve ARGS="--server-port 8000"
	$(BIN)/lmserve serve api_server $(ARGS)

test: check ## Set up, check and test: make test ARGS="-k config"
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-slow: $(DEV_READY) ## Run the slow tests, and only those
	$(BIN)/pytest -m "slow and not gpu" $(ARGS)

test-clients: $(DEV_READY) $(CLIENTS)/.ready ## Set up other projects' clients, and run them against the server
	$(BIN)/pytest -m clients $(ARGS)

check: lint ## Lint, formatting, types, import rules
	$(BIN)/mypy
	$(BIN)/lint-imports

lint: $(DEV_READY) ## Lint and formatting only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV_READY) ## Format the code and apply the safe fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(DEV_READY) ## Measure the front end alone: mock engine against a bare handler
	$(BIN)/python bench/frontend.py $(ARGS)

bench-proxy: $(DEV_READY) ## Measure what the distributor adds: proxy against direct and a bare pump
	$(BIN)/python bench/proxy.py $(ARGS)

bench-conversation: $(DEV_READY) ## Time turn 10 of a long conversation: cold, warm, forked, restored, drafted
	$(BIN)/python bench/conversation.py $(ARGS)

bench-reconnect: $(DEV_READY) ## Cut 500 streams at random points and resume them
	$(BIN)/python bench/reconnect.py $(ARGS)

bench-table: $(DEV_READY) ## Compare lmserve with the servers in ARGS over five workloads
	$(BIN)/lmserve bench serve --table \
		--server 'lmserve=$(BIN)/lmserve serve api_server --server-port {port} --log-level warning' $(ARGS)

loadtest: $(LOAD_READY) ## A minute of mixed load, which fails on any error: make loadtest HOST=http://…
	$(BIN)/python loadtest/run.py $(if $(HOST),--host $(HOST)) $(ARGS)

perplexity: $(DEV_READY) ## Compare each way to compute, by perplexity
	$(BIN)/python bench/perplexity.py $(ARGS)

gpu: ## Check and time it on a GPU, in an environment of your own: make gpu PYTHON=…
	$(PYTHON) -m bench.gpu $(ARGS)

fuzz: $(DEV_READY) ## Send random requests for ten minutes: make fuzz FUZZ_S=60
	FUZZ_S=$(or $(FUZZ_S),600) $(BIN)/pytest -m slow tests/hardening/test_schemathesis.py tests/hardening/test_socket_events.py $(ARGS)

fuzz-parsers: $(DEV_READY) ## Look for files and answers that break what reads them: make fuzz-parsers FUZZ_S=60
	$(BIN)/python -m fuzz --seconds $(or $(FUZZ_S),60) $(ARGS)

bench-features: $(DEV_READY) ## Measure structured output, log probabilities, schemas, n=8
	$(BIN)/python bench/features.py $(ARGS)

venv: $(DEV_READY) ## Set up .venv alone

clean: ## Remove the environments, caches and build outputs
	rm -rf $(VENV) $(CLIENTS) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .coverage* lmserve/native/*.so clients/python/*.egg-info \
		clients/python/.ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'lmserve needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # a half .venv would look whole

$(SERVE_READY): pyproject.toml $(KERNELS) | $(BIN)/python
	@if $(BIN)/python -c '$(HAS_TORCH)' 2>/dev/null; then :; \
	elif [ -n '$(TORCH_INDEX_URL)' ]; then set -x; \
		$(BIN)/python -m pip install --index-url '$(TORCH_INDEX_URL)' '$(TORCH)'; \
	else $(BIN)/python -m pip install --quiet 'pip>=23.3' \
		&& $(BIN)/python scripts/torch_size.py '$(TORCH)'; fi
	$(BIN)/python -m pip install --editable '.[cpu]'
	@touch $@

$(CLIENTS)/.ready: tests/ecosystem/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --requirement $<
	@touch $@

$(LOAD_READY): pyproject.toml $(SERVE_READY)
	$(BIN)/python -m pip install --editable '.[cpu,loadtest]'
	@touch $@

$(DEV_READY): pyproject.toml clients/python/pyproject.toml $(SERVE_READY)
	$(BIN)/python -m pip install --editable '.[cpu,dev]' --editable clients/python
	@touch $@
