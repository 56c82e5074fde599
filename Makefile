# Each target makes the .venv that it needs, once; PYTHON=... chooses another interpreter.

CANDIDATES := python3.13 python3.12 python3.11 python3
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	if $$python -c '$(SUITABLE)' 2>/dev/null; then echo $$python; break; fi; done)

BIN := .venv/bin
CONSTRAINTS := $(wildcard constraints.txt)
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=-c %) -e

.PHONY: demo fuzz test check serve clean campaign campaign-mutants
.NOTPARALLEL:

demo: .venv/.installed-demo
	@$(BIN)/remediator demo $(SCENARIO)

test: .venv/.installed-test
	$(BIN)/pytest -n 2 --dist loadfile

# Mutated bodies for each of the three doors; SEED=N makes the same ones again.
BODIES ?= 20000

fuzz: .venv/.installed-test
	FUZZ_BODIES=$(BODIES) FUZZ_SEED=$(SEED) $(BIN)/pytest -n 2 -rP tests/e2e/test_fuzzed_doors.py

# Crashes, stalls and bad networks against real servers; SEEDS=0 goes on until it is stopped.
SEEDS ?= 25
FIRST ?= 1
STORE ?= both
# Who is not root mounts small disks in a namespace of their own, where the kernel permits it.
UNSHARE = unshare --user --map-current-user --keep-caps --mount
OWN_MOUNTS = $(shell [ `id -u` = 0 ] || ! $(UNSHARE) true 2>/dev/null || echo $(UNSHARE))
CAMPAIGN = $(OWN_MOUNTS) $(BIN)/python -m tests.campaign --first $(FIRST)

campaign: .venv/.installed-test
	$(CAMPAIGN) --seeds $(SEEDS) --store $(STORE) $(if $(UPGRADE),--upgrade) $(if $(REPORT),--report $(REPORT))

# Engines that lack a part: each has to break its promise within 50 seeds.
campaign-mutants: .venv/.installed-test
	@for mutant in apply_before epoch lock observe once approval room clock; do \
	  $(CAMPAIGN) --seeds 50 --mutant $$mutant || exit 1; done

check: .venv/.installed-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

serve: .venv/.installed-serve
	@$(BIN)/remediator serve

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed-demo: extras = [demo]
.venv/.installed-test: extras = [test]
.venv/.installed-check: extras = [check,test]
.venv/.installed-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	@echo "Installing into .venv, once ..."
	@$(INSTALL) '.$(extras)'
	@touch $@

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv was not found (tried: $(CANDIDATES));" \
		"install it (on Debian: python3 and python3-venv) or run: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
