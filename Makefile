# Work in this repository. Each task first makes .venv and builds the C++ engine where that is still to be done, so any
# of them can be the first command in a fresh clone: Python 3.10 or newer, a C++ compiler and make are enough.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# Where torch brings no triton, which its builds for CPUs do not: there is none but for Linux.
TRITON ?= triton==3.6.0; sys_platform == "linux"
MATRIX ?= 3.6.0 3.7.1 3.8.0 3.9.0
ARGS ?=

BIN := .venv/bin
CXX_FILES := $(sort $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h))
C_FILES := $(wildcard bench/gpu/desk/*.c)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-fast test-isas soak matrix bench lint format clean install engine venv

help:
	@echo 'make demo       train a small language model with fastrnn and with torch, side by side'
	@echo 'make test       run the tests'
	@echo 'make test-fast  run those for after each edit, in a minute'
	@echo 'make test-isas  run those of the C++ engine with each instruction set that this CPU has'
	@echo 'make soak       run the C++ engine for 20 minutes under sanitizers, threads, signals, without memory'
	@echo 'make matrix     prove the Triton kernels with each of triton $(MATRIX)'
	@echo 'make bench      measure fastrnn against torch on this CPU'
	@echo 'make lint       check style and types; make format mends the style'
	@echo 'make clean      remove what was built; .venv stays'
	@echo 'ARGS="..." is passed on; PYTHON=... and TORCH=... say what .venv is made with ($(PYTHON), $(TORCH))'

demo: .venv/built
	@$(BIN)/python -m bench workloads language_model --seconds 90 $(ARGS)

# Triton either interprets kernels in a process or compiles them, hence two of them; 5 says that one had no tests to run.
PROVE = $(1) $(ARGS); plain=$$?; TRITON_INTERPRET=1 $(1) $(ARGS); case $$plain$$? in 00|05|50) ;; *) exit 1;; esac

# As many processes as cores, up to what memory is there for; one that has nothing left to do takes of another's.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

test: .venv/built
	@$(call PROVE,$(BIN)/python -m pytest $(PARALLEL))

test-fast: .venv/built
	@$(call PROVE,$(BIN)/python -m pytest $(PARALLEL) --fast)

test-isas: .venv/built
	@$(BIN)/python tests/isas.py $(PARALLEL) $(ARGS)

soak: .venv/built
	@$(BIN)/python tests/soak/run.py $(ARGS)

matrix: $(MATRIX:%=.venv-triton-%/made)
	@$(foreach version,$(MATRIX),echo 'triton $(version)'; ($(call PROVE,.venv-triton-$(version)/bin/python -m pytest \
	  $(PARALLEL) -m triton)) || exit 1;)

bench: .venv/built
	@$(BIN)/python -m bench cpu $(ARGS)

lint: .venv/built
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES) $(C_FILES)
	@rm -rf build/types/fastrnn && mkdir -p build/types/fastrnn
	@cd build/types/fastrnn && ln -sfn ../../../fastrnn/* ../../../kernels .
	@cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml

format: .venv/built
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format
	@$(BIN)/clang-format -i $(CXX_FILES) $(C_FILES)

clean:
	rm -rf .venv-triton-* build dist fastrnn.egg-info fastrnn/_C.*.so .venv/built .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +

# Edits of Python code need no build, edits of C++ code compile what they touch, new requirements are installed.
.venv/built: pyproject.toml setup.py $(CXX_FILES)
	@$(MAKE) --no-print-directory $(if $(filter pyproject.toml,$?),install,engine)
	@touch $@

install:
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(MAKE) --no-print-directory venv
	@echo 'Installing $(TORCH) and the tools, building the C++ engine (the first time, this takes minutes).'
	@$(BIN)/python -m pip install -q '$(TORCH)'
	@$(BIN)/python -c 'import triton' 2> /dev/null || $(BIN)/python -m pip install -q '$(TRITON)'
	@$(BIN)/python -m pip install -q 'setuptools>=77' ninja
	@$(BIN)/python -m pip install -q --no-build-isolation -e '.[bench,test,lint]'

engine:
	@echo 'Building the C++ engine.'
	@mkdir -p build
	@$(BIN)/python setup.py -q build_ext --inplace > build/log 2>&1; status=$$?; \
	  sed -e '/^\[[0-9]/d' -e '/^ninja: build stopped/q' build/log; exit $$status

venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'fastrnn needs Python 3.10 or newer as $(PYTHON); name another: make PYTHON=/path/to/python' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo '$(PYTHON) cannot make virtual environments (Debian and Ubuntu: install python3-venv)' >&2; exit 1; }
	@echo 'Making .venv with $(PYTHON).'
	@$(PYTHON) -m venv .venv

# An environment with another triton and, by way of a .pth, all that .venv has: torch is large enough once.
.venv-triton-%/made: | .venv/built
	@echo 'Making .venv-triton-$*.'
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@$(BIN)/python -m pip --python $(@D)/bin/python install -q --no-deps 'triton==$*'
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	@touch $@
