# make demo       sets up .venv, then trains forecaster -> SAC -> hybrid on the embedded sample
# make test       sets up what tests need, then runs the default suite
# make test-all   everything this machine can run; starts with make test
# make cluster-test  brings up a SLURM on this host, runs sweeps through failures on it, takes it down; Debian, root
# make bench      times the stages; README says how the other benchmarks are run
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CPU_INDEX := https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-all cluster-test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/python train.py stage=hybrid model=sac

# Without a GPU the CUDA build of torch is gigabytes for nothing: the CPU index first, else what the configured one offers.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then \
	    echo "GPU found: installing the default build of torch"; \
	    $(BIN)/pip install --quiet 'torch>=2.11,<=2.13.0'; \
	elif $(BIN)/python -c "import urllib.request as u; u.urlopen('$(CPU_INDEX)/torch/', timeout=10)" 2>/dev/null; then \
	    echo "no GPU found: installing the CPU build of torch from $(CPU_INDEX)"; \
	    $(BIN)/pip install --quiet --index-url $(CPU_INDEX) 'torch>=2.11,<=2.13.0'; \
	else \
	    echo "no GPU found, and the PyTorch CPU index cannot be reached: installing torch from the configured index"; \
	    $(BIN)/pip install --quiet 'torch==2.13.0'; \
	fi
	$(BIN)/pip install --quiet --editable .
	@$(BIN)/python -c "import torch; print('torch', torch.__version__, '| CUDA', torch.version.cuda or 'none')"
	@touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread for each of the test processes: two cores are busy either way, and torch's own pool would fight over them.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto -m "not slow and not gpu and not distributed and not slurm and not network"

test-all: test
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto -m "(slow or distributed or slurm) and not gpu and not network"

# What cannot be brought up fails here, where `make test-all` skips it.
cluster-test: $(VENV)/.test-installed
	tests/cluster/packages.sh
	OMP_NUM_THREADS=1 CLUSTER_REQUIRED=1 $(BIN)/pytest tests/cluster -m "slurm or distributed"

bench: $(VENV)/.test-installed
	$(BIN)/python -m benchmarks.stages

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
