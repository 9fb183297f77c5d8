# Each verb installs what it needs into .venv, and again when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
HOST ?= 127.0.0.1
# With a GPU, the libraries that compile our CUDA kernel are installed too.
GPU := $(or $(wildcard /dev/nvidia0),$(shell command -v nvidia-smi))

.DEFAULT_GOAL := help
.PHONY: help install serve test lint format bench loadtest verify-gpu dashboards rules schemas containers ray image clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.serve ## install the service into .venv

serve: $(VENV)/.serve ## serve the shipped models on http://$(HOST):$(PORT), on a GPU if there is one
	SKIPNET_HOST=$(HOST) SKIPNET_PORT=$(PORT) exec $(BIN)/skipnet serve

test: $(VENV)/.test build/moto/.installed lint ## run every test in parallel (ARGS='-n 0 -x tests/models/test_macs.py': one file, one test at a time)
	$(BIN)/python -m pytest --numprocesses auto --max-worker-restart 0 --durations 10 $(ARGS)

lint: $(VENV)/.test ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test ## measure time and MACs of the engines on this machine (ARGS=--help lists the options)
	$(BIN)/skipnet bench $(ARGS)

verify-gpu: $(VENV)/.test ## check the GPU engines' results, speed and energy on this machine (ARGS=--help)
	$(BIN)/skipnet verify-gpu $(ARGS)

loadtest: $(VENV)/.test build/peers/.installed ## run a load test of the service and other servers on this machine (ARGS=--help)
	$(BIN)/python -m service.benchmark $(ARGS)

dashboards: $(VENV)/.test ## write deploy/grafana/dashboards from deploy/dashboards
	$(BIN)/python -m deploy.dashboards

rules: $(VENV)/.test ## write the rules of deploy/prometheus as a resource for Kubernetes
	$(BIN)/python -m deploy.tools.prometheus_rules

schemas: build/crds/.installed ## write the schemas of KEDA's, KServe's and the Prometheus operator's resources for the tests
	build/crds/bin/python -m deploy.tools.crd_schemas

containers: $(VENV)/.containers ## check Dockerfile and compose files with a linter and schemas
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker-compose.gpu.yml

ray: $(VENV)/.test build/ray/.installed ## test deploy/ray on a Ray cluster that it starts on this machine
	$(BIN)/python -m pytest -m ray -n 0 tests/ray $(ARGS)

image: $(VENV)/.test ## build and test the image without a container engine (as root; needs buildah, debootstrap)
	$(BIN)/python -m pytest -m image --log-cli-level INFO tests/image

clean: ## remove the installation and all build results
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed. Choose one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.$(if $(GPU),[cuda])'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[training,test]'
	touch $(VENV)/.serve $@

# The other servers of the comparison, in a separate environment. The report names those that cannot be installed.
build/peers/.installed: service/benchmark/peers/requirements.txt
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --quiet --requirement $<
	touch $@

# A local S3 server for the tests, in a separate environment: it needs older versions of some of our packages.
build/moto/.installed: tests/service/repository/moto.txt
	$(PYTHON) -m venv build/moto
	build/moto/bin/python -m pip install --quiet --requirement $<
	touch $@

# Packages with the definitions of custom resources. KServe's files are only parsed, so its dependencies are not
# installed.
build/crds/.installed: deploy/tools/crds.txt
	$(PYTHON) -m venv build/crds
	build/crds/bin/python -m pip install --quiet --requirement $<
	build/crds/bin/python -m pip install --quiet --no-deps kserve==0.21.0
	touch $@

# Ray, in an environment of its own: it wants older versions of some of our packages. It finds the service and what
# that needs in .venv.
build/ray/.installed: deploy/ray/requirements.txt | $(VENV)/bin/python
	$(PYTHON) -m venv build/ray
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$(build/ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/service.pth
	build/ray/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/.containers: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[containers]'
	touch $@
