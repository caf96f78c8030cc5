# Every target is enough on its own in a fresh clone: it makes .venv and builds the extension when that has not been done.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
NATIVE := $(shell find csrc -type f) CMakeLists.txt

.PHONY: demo fashion-mnist test check lint fix native sanitize bench tables gpu soak clean

# The options of `sslfast demo`: make demo DEMO="--data imagefolder:photos --seed 1"
DEMO ?=
demo: fashion-mnist $(VENV)/.built
	$(VENV)/bin/sslfast demo $(DEMO)
	@echo "(source $(VENV)/bin/activate puts sslfast on the path)"

# Debian packages the data set; elsewhere, and without root, sslfast downloads it when it is needed.
fashion-mnist:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ! -d /usr/share/datasets/fashion-mnist ]; then \
	  echo "installing Debian's package dataset-fashion-mnist"; \
	  { apt-get update -qq && apt-get install -qq -y dataset-fashion-mnist; } >/dev/null 2>&1 || echo "not to be had; it will be downloaded"; \
	fi

test: $(VENV)/.built $(VENV)/.peers
	$(PY) -m pytest -m "not soak" tests

check: lint $(VENV)/.peers
	$(PY) -m pytest -q -m "not slow and not soak" tests

lint: $(VENV)/.built
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $$(find csrc -type f)

fix: $(VENV)/.built
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $$(find csrc -type f)

native: $(VENV)/.built

# The C++ under AddressSanitizer and UndefinedBehaviorSanitizer: any report fails.
sanitize: $(VENV)/.built
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) .ci/inplace.py build/sanitize -DSSLFAST_CUDA=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DSSLFAST_SANITIZE=address,undefined --sanitize

# Times every operator on an otherwise idle machine: make bench BENCH="nt_xent --minutes 8". It measures what the file does not
# hold for this build, so that the same command goes on where it was stopped; then it holds the rows against the bars.
BENCH ?=
RESULTS ?= bench/results/cpu.jsonl
bench: $(VENV)/.built $(VENV)/.peers
	$(VENV)/bin/sslfast bench $(BENCH) --json $(RESULTS)
	$(PY) -P -m sslfast.bench.bars $(RESULTS)

# Fills the tables of README.md and docs/ from bench/results/*.jsonl.
tables: $(VENV)/.built
	$(PY) -P -m sslfast.bench.tables

# On a machine with a GPU, with its own python3, torch and nvcc; needs no network. OUT: where the JSON goes;
# STEPS=benchmarks MINUTES=8 goes on with the benchmarks alone, STEPS=search times the head search alone.
gpu:
	OUT="$(OUT)" $(PYTHON) .ci/gpu.py

# Every count that an issue names; tests state theirs with record_property. TESTS=tests/pretrain runs those of a folder anew
# and keeps the others' results.
soak: $(VENV)/.built $(VENV)/.peers
	OUT="$(OUT)" TESTS="$(TESTS)" $(PY) .ci/soak.py

$(VENV)/.installed: pyproject.toml
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then echo "sslfast needs Python >= 3.11; set PYTHON=python3.12, say" >&2; exit 1; fi
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -q --upgrade "pip>=24"
	@echo "installing the dependencies into $(VENV) (about two minutes)"
	$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(PY) -m pip install --disable-pip-version-check -q -r /dev/stdin
	touch $@

# No build isolation: an isolated build would download torch a second time.
$(VENV)/.built: $(VENV)/.installed setup.py $(NATIVE)
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pip install --disable-pip-version-check -q --no-build-isolation -e ".[dev]"
	touch $@

# What the losses are compared with. The last solo-learn on the index names a torch of 2021 and packages that its losses do not need.
$(VENV)/.peers: pyproject.toml | $(VENV)/.built
	@echo "installing the packages that the losses are compared with"
	$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["peers"], sep="\n")' \
	  | $(PY) -m pip install --disable-pip-version-check -q -r /dev/stdin
	$(PY) -m pip install --disable-pip-version-check -q --no-deps "solo-learn==1.0.2"
	touch $@

clean:
	rm -rf build dist *.egg-info sslfast/*.so
