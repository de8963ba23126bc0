# The two commands of a newcomer: `make demo` and `make test`. Each uses the active virtual environment, or makes .venv.
SHELL := /bin/bash
.PHONY: demo test install quality style clean

VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
PY := $(VENV)/bin/python
EXTRAS := train,eval,generate,ray,serve,dev
STAMP := $(VENV)/.pvchat-installed

demo: install
	$(PY) -m pvchat demo $(ARGS)

test: install
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 $(PY) -m ruff check .
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 $(PY) -m pytest -q -n 2 --dist loadfile $(ARGS)

install: $(STAMP)

$(STAMP): setup.py constraints.txt
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

quality: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

style: install
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf .venv runs build dist *.egg-info
