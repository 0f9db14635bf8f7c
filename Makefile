# make serve: install and serve on port 8000.   make test: install and test.   make help: the rest.
#
# Each step of the installation leaves a stamp only when it has succeeded, so that an interrupted one starts again
# and a finished one costs nothing.

PYTHON ?= python3.11
# Where torch and torchvision come from. Empty: PyPI, with CUDA. https://download.pytorch.org/whl/cpu: CPU only, small.
TORCH_INDEX ?=
# Folder with pictures of people, for training and evaluation.
DATA ?= data
# Folder with the public weights that training starts from.
INITIAL ?= initial
# Folder with third-party ONNX nets to compare with.
PEERS ?= peers
# Further arguments of the training and measuring commands.
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help serve test lint format lock audit clean install install-dev \
	train-detector light-detector quantize-detector train-pose train-router calibrate evaluate detection peers load stages bench bench-full scaling faults

help: ## List what can be made.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

# make hands PORT=... and the rest of its command line on in the environment, where settings come from.
serve: install ## Serve on port 8000, or PORT=...
	exec $(RUN) -m app

test: install-dev ## Run the tests, in two processes.
	$(RUN) -m pytest -n 2 --dist loadfile

lint: install-dev ## Check style and types.
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: install-dev ## Put the code into the project's style.
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

install: $(VENV)/serve.stamp

install-dev: $(VENV)/dev.stamp

$(VENV)/torch.stamp: requirements/torch.txt
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r $<
	touch $@

# --no-deps: ultralytics asks for torch, which is there already and must not be looked for again.
$(VENV)/serve.stamp: requirements/serve.txt $(VENV)/torch.stamp
	$(PIP) install --no-deps --require-hashes -r $<
	$(PIP) check
	touch $@

# What the benchmark measures the service against.
$(VENV)/bench.stamp: requirements/bench.txt $(VENV)/dev.stamp
	$(PIP) install --no-deps --require-hashes -r $<
	$(PIP) check
	touch $@

# What makes requests from the API's description.
$(VENV)/faults.stamp: requirements/faults.txt $(VENV)/dev.stamp
	$(PIP) install --no-deps --require-hashes -r $<
	$(PIP) check
	touch $@

# What makes networks of int8.
$(VENV)/quantize.stamp: requirements/quantize.txt $(VENV)/dev.stamp
	$(PIP) install --no-deps --require-hashes -r $<
	$(PIP) check
	touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/serve.stamp
	$(PIP) install --no-deps --require-hashes -r $<
	$(PIP) check
	touch $@

# A package taken out of the lock stays installed until the environment is made anew.
clean: ## Remove the environment.
	rm -rf $(VENV) .venv-lock

PIP_COMPILE := CUSTOM_COMPILE_COMMAND="make lock" .venv-lock/bin/pip-compile --quiet $(LOCK_FLAGS)
# pip-compile ends its file with a warning about the packages that are left out on purpose.
DROP_WARNING := sed -i -e '/^\# WARNING: The following packages/,$$d'

lock: ## Write requirements/ anew from pyproject.toml; LOCK_FLAGS=--upgrade for newer releases.
	test -x .venv-lock/bin/pip-compile || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install pip-tools==7.6.2; }
	$(PIP_COMPILE) --extra cli -o requirements/serve.txt pyproject.toml
	$(DROP_WARNING) requirements/serve.txt
	$(PIP_COMPILE) --extra dev -c requirements/serve.txt -o requirements/dev.txt pyproject.toml
	$(DROP_WARNING) requirements/dev.txt
	$(PIP_COMPILE) --extra dev --extra bench -c requirements/dev.txt -o requirements/bench.txt pyproject.toml
	$(DROP_WARNING) requirements/bench.txt
	$(PIP_COMPILE) --extra dev --extra faults -c requirements/dev.txt -o requirements/faults.txt pyproject.toml
	$(DROP_WARNING) requirements/faults.txt
	$(PIP_COMPILE) --extra dev --extra quantize -c requirements/dev.txt -o requirements/quantize.txt pyproject.toml
	$(DROP_WARNING) requirements/quantize.txt

AUDIT := .venv-lock/bin/pip-audit --disable-pip --no-deps --progress-spinner off

audit: ## Ask PyPI for known holes in the locked packages.
	test -x .venv-lock/bin/pip-audit || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet pip-audit==2.10.1; }
	$(AUDIT) -r requirements/torch.txt; first=$$?; $(AUDIT) -r requirements/dev.txt && exit $$first

train-detector: install-dev ## Train the person detector on DATA.
	$(RUN) -m training.detector $(DATA) --initial $(INITIAL)/yolov8s.safetensors $(ARGS)

light-detector: install-dev ## Give the trained detector a cheaper class branch, taught by its own on DATA.
	$(RUN) -m training.light_head $(DATA) --teacher runs/detector-teacher.safetensors $(ARGS)

quantize-detector: $(VENV)/quantize.stamp ## Make the detector's int8 form with pictures of DATA.
	$(RUN) -m training.quantize $(DATA) $(ARGS)

train-pose: install-dev ## Train the small and the large pose net on DATA.
	$(RUN) -m training.pose $(DATA) --initial $(INITIAL) $(ARGS)

train-router: install-dev ## Train the router on DATA with the trained pose nets.
	$(RUN) -m training.router $(DATA) $(ARGS)

calibrate: install-dev ## Score the people of DATA (pictures, a video, COCO) and write a calibration file.
	$(RUN) -m calibration.thresholds $(DATA) $(ARGS)

evaluate: install-dev ## Measure AP and recovered gain of the pair on DATA.
	$(RUN) -m calibration.evaluate $(DATA) $(ARGS)

detection: install-dev ## Measure the detector on DATA.
	$(RUN) -m calibration.detection $(DATA) $(ARGS)

peers: install-dev ## Measure the bundled nets beside the ONNX nets of PEERS on DATA.
	$(RUN) -m benchmarks.peers $(DATA) --peers $(PEERS) $(ARGS)

load: install-dev ## Load a running service with the pictures of DATA.
	$(RUN) -m benchmarks.load $(DATA) $(ARGS)

stages: install-dev ## Measure the stages on DATA without queues and HTTP.
	$(RUN) -m benchmarks.stages $(DATA) $(ARGS)

BENCH := -m benchmarks.bench $(DATA) --peers $(PEERS) --initial $(INITIAL)

bench: $(VENV)/bench.stamp ## Measure the service beside what its networks allow and what else could be used, in half an hour.
	$(RUN) $(BENCH) $(ARGS)

bench-full: $(VENV)/bench.stamp ## The same with more clients, rounds, seconds and pictures, in some hours.
	$(RUN) $(BENCH) --clients 1 2 4 8 16 32 64 --seconds 20 --rounds 10 --accuracy-pictures 5000 $(ARGS)

scaling: install-dev ## Measure the service against clients, people a picture and megapixels.
	$(RUN) -m benchmarks.scaling $(DATA) $(ARGS)

faults: $(VENV)/faults.stamp ## Break the service in every way, in half an hour; SOAK_MINUTES=1 for ten minutes.
	$(RUN) -m pytest tests/faults -m "" $(ARGS)
