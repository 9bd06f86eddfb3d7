# make train   make .venv, install, train an agent; again: resumes. AGENT= and ARGS= choose.
# make demo    the same with no extras, then a few minutes' tour that ends in one page.
# make test    install the tools too, then ruff, mypy, the quick tests and the published results.
# make test-all  the whole fault battery (docs/reliability.md): an hour or more; again: continues.
# Everything lands in .venv; nothing outside this directory is changed but pip's cache.

PYTHON ?= python3
AGENT ?= dueling_dqn_atari
BENCH ?= replay
ARGS ?=

venv_python := .venv/bin/python
agents := $(sort $(basename $(notdir $(wildcard agents/*.py))))
benchmarks := $(sort $(basename $(notdir $(wildcard benchmarks/*.py))))

.DEFAULT_GOAL := help
.PHONY: help train demo test lint test-slow test-all bench docs check-docs clean

help:
	@echo "make train      install into .venv, then run agents/AGENT.py; again: resumes"
	@echo "                AGENT=$(AGENT) (of: $(agents))"
	@echo "                ARGS='--help' lists what the agent can be told"
	@echo "make demo       solve a cube, find a key, balance a pole: minutes, then runs/demo/report.html"
	@echo "make test       ruff, mypy and the quick tests"
	@echo "make lint       ruff and mypy only"
	@echo "make test-slow  the slow tests (those that need a GPU skip without one)"
	@echo "make test-all   every case of the fault battery, counted in docs/reliability.md; again: continues"
	@echo "                ARGS='kills damage' chooses groups"
	@echo "make bench      run benchmarks/BENCH.py; BENCH=$(BENCH) (of: $(benchmarks)), ARGS= as above"
	@echo "make docs       the documentation as a site, in build/site"
	@echo "make check-docs run the command blocks of README and docs that are marked so, in a fresh clone"
	@echo "                ARGS='--kinds fast minutes' takes those of minutes too"
	@echo "make clean      remove .venv, caches and build products; runs/ stays"
	@echo "PYTHON=$(PYTHON) is the Python that makes .venv: 3.11 or later, with venv and pip"

# A command alone on its line replaces make's shell: Ctrl-C reaches the program directly, and make
# ends with 130 once the program has saved its checkpoint and gone.
train: require-agent .venv/.stamp-run
	$(venv_python) agents/$(AGENT).py $(ARGS)

demo: .venv/.stamp-demo
	$(venv_python) runs/demo.py $(ARGS)

# Two processes, each with one thread for arithmetic; a file's tests share what they set up. The
# published results last: the cheap ones are played again.
test: lint
	OMP_NUM_THREADS=1 $(venv_python) -m pytest -n 2 --dist loadfile -m "not slow and not gpu"
	.venv/bin/classicrl verify --fast --threads 1

lint: .venv/.stamp-test
	$(venv_python) -m ruff check .
	$(venv_python) -m mypy

test-slow: .venv/.stamp-test
	$(venv_python) -m pytest -m slow

test-all: .venv/.stamp-test
	$(venv_python) tests/battery/run.py $(ARGS)

bench: require-benchmark .venv/.stamp-bench
	$(venv_python) benchmarks/$(BENCH).py $(ARGS)

docs: .venv/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(venv_python) -m mkdocs build --strict

check-docs: .venv/.stamp-test
	$(venv_python) tests/run_docs.py $(ARGS)

clean:
	rm -rf .venv build dist classicrl.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find classicrl agents benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A misspelt name should not cost an install first.
.PHONY: require-agent require-benchmark
require-agent:
	@[ -f 'agents/$(AGENT).py' ] || \
	    { echo "There is no agents/$(AGENT).py; AGENT can be: $(agents)" >&2; exit 2; }
require-benchmark:
	@[ -f 'benchmarks/$(BENCH).py' ] || \
	    { echo "There is no benchmarks/$(BENCH).py; BENCH can be: $(benchmarks)" >&2; exit 2; }

# Each stamp says that one set of extras is installed as setup.cfg and constraints.txt want it.
.venv/.stamp-demo: extras :=
.venv/.stamp-run: extras := atari,minatar,mujoco,plots
.venv/.stamp-test: extras := dev
.venv/.stamp-docs: extras := docs
.venv/.stamp-bench: extras := atari,minatar,plots,bench

# .venv/.unfinished stands from before the first file is written until pip has succeeded. A .venv
# that has it was interrupted, may hold half a package that pip takes for a whole one, and is
# made anew; pip's cache keeps the downloads.
.venv/.stamp-demo .venv/.stamp-run .venv/.stamp-test .venv/.stamp-docs .venv/.stamp-bench: setup.cfg constraints.txt
	@set -e; \
	if [ -e .venv/.unfinished ] || ! $(venv_python) -m pip --version >/dev/null 2>&1; then \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || \
	        { echo "classicrl needs Python 3.11 or later, and '$(PYTHON)' is not one:" \
	               "name one with PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	    $(PYTHON) -c 'import ensurepip, venv' >/dev/null 2>&1 || \
	        { echo "'$(PYTHON)' lacks venv or pip: install them (Debian, Ubuntu: python3-venv)" \
	               "or name another Python with PYTHON=" >&2; exit 2; }; \
	    if [ -e .venv ]; then echo "The last install into .venv was cut short: starting afresh."; fi; \
	    echo "Making the virtual environment .venv with $$($(PYTHON) --version) ..."; \
	    rm -rf .venv; mkdir .venv; touch .venv/.unfinished; \
	    $(PYTHON) -m venv .venv; \
	fi; \
	echo "Installing classicrl$(if $(extras), [$(extras)]) into .venv; the first time torch alone takes minutes ..."; \
	touch .venv/.unfinished; \
	$(venv_python) -m pip install --disable-pip-version-check -c constraints.txt -e '.$(if $(extras),[$(extras)])'; \
	rm .venv/.unfinished; \
	touch $@; \
	echo "Installed."
