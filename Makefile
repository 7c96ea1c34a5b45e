# What CI runs, one target each. All but lint install what they need: into the virtual environment
# that is active, else into .venv.
SHELL := bash

.PHONY: install lint test quickstart

install:
	source train_scripts/environment.sh dev

lint:
	bash tests/lint.sh

test:
	bash tests/run.sh

quickstart:
	QUICKSTART=tiny bash train_scripts/quickstart.sh
