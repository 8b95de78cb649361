# The way in. `make` alone prints the targets.
# RECIPE_PYTHON names a Python that already has the locked packages (the image sets it); otherwise .venv is built.

CONFIG ?= recipe/configs/vicuna-7b-p100.toml
RUN ?=
TO ?= hf
# A stage that uses a run takes RUN, or finds the latest run of CONFIG.
FROM = $(if $(RUN),--run $(RUN),--config $(CONFIG))
PYTHON ?= python3.11
DEMO := recipe/configs/demo.toml
DEMO_RUN := runs/demo/latest

ifdef RECIPE_PYTHON
PY := $(RECIPE_PYTHON)
READY :=
else
PY := .venv/bin/python
READY := .venv/.ready
endif

export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup lock pins doctor plan fetch convert corpus train evaluate merge chat report demo test bench gpu-test clean image image-save image-verify shell

help: ## this list
	@echo "usage: make TARGET [CONFIG=recipe/configs/vicuna-7b-p100.toml] [RUN=runs/<name>/latest]"
	@sed -n 's/^\([a-z%-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

setup: $(READY) ## build .venv from the hash-locked requirements (once, and again when a lock changes)

.venv/.ready: docker/requirements.lock docker/requirements-dev.lock
	@found=$$($(PYTHON) --version 2>/dev/null); case "$$found" in "Python 3.11."*) ;; *) false ;; esac || { \
	  echo "error: found $${found:-nothing called $(PYTHON)}, need Python 3.11: torch 2.0.1, the newest torch with CUDA 11 code" \
	  "for the P100, has no wheel for a newer one; install 3.11 and run make PYTHON=/path/to/python3.11" >&2; exit 3; }
	@echo "installing the locked packages into .venv: 2.4 GB to download, 5.4 GB on disk, a few minutes, once"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --progress-bar on --require-hashes --no-deps --only-binary :all: \
	  -r docker/requirements.lock -r docker/requirements-dev.lock
	@touch $@

lock: $(READY) ## resolve docker/requirements*.in into the locks, with hashes
	cd docker && for name in requirements requirements-dev; do \
	  ../.venv/bin/uv pip compile --quiet --no-header --generate-hashes --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 $$name.in --output-file $$name.lock || exit 1; done
	cd tests/bench && ../../.venv/bin/uv pip compile --quiet --no-header --no-deps --generate-hashes --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 trl.in --output-file trl.lock

pins: $(READY) ## is every package the locked one, and does every library carry sm_60 code?
	$(PY) -m recipe.pins

doctor: $(READY) ## is this machine fit for the run? driver, card, memory, disk, files; exit 3: no
	@$(PY) -m recipe.doctor --config $(CONFIG)

plan: $(READY) ## will the run fit into 16 GB, how many hours? (arithmetic, before anyone pays)
	@$(PY) -m recipe.plan --config $(CONFIG)

fetch: $(READY) ## download raw weights or data: make fetch NAME=smollm2-135m-instruct
	$(PY) -m recipe.fetch $(NAME)

convert: $(READY) ## raw weights -> safetensors, tokenizer, manifest
	$(PY) -m recipe.convert --config $(CONFIG)

corpus: $(READY) ## raw conversations -> train.jsonl, val.jsonl, report
	$(PY) -m recipe.corpus --config $(CONFIG)

train: $(READY) ## train the adapter; the same command resumes
	$(PY) -m recipe.train --config $(CONFIG)

evaluate: $(READY) ## held-out loss and answers, base and tuned
	$(PY) -m recipe.evaluate $(FROM)

merge: $(READY) ## adapter into the weights: TO=hf, meta or gguf
	$(PY) -m recipe.merge $(FROM) --to $(TO)

chat: $(READY) ## talk to the tuned model
	@$(PY) -m recipe.chat $(FROM)

report: $(READY) ## the outcome of a run on one page
	@$(PY) -m recipe.report $(FROM)

demo: $(READY) ## the whole recipe on a real small model, on this machine's CPU
	@echo "1/6 fetch: a small LLaMA, 93 MB"
	@$(PY) -m recipe.fetch smollm2-135m-instruct
	@echo "2/6 convert: GGUF -> safetensors"
	@$(PY) -m recipe.convert --config $(DEMO)
	@echo "3/6 corpus: conversations -> samples"
	@$(PY) -m recipe.corpus --config $(DEMO)
	@echo "4/6 train: a LoRA adapter on an int8 base"
	@$(PY) -m recipe.train --config $(DEMO)
	@echo "5/6 evaluate: before and after"
	@$(PY) -m recipe.evaluate --run $(DEMO_RUN)
	@echo "6/6 merge: adapter into the weights"
	@$(PY) -m recipe.merge --run $(DEMO_RUN)
	@echo
	@$(PY) -m recipe.report --run $(DEMO_RUN)

image: ## build the image with docker or podman: make image [ROOT_IMAGE=...]
	@docker/image.sh build

image-save: ## the image as a tarball in dist/, because registries forget
	@docker/image.sh save

image-verify: ## build the image again from nothing: is it the same, digest for digest?
	@docker/image.sh verify

shell: ## a shell in the image, with weights, data and runs mounted
	@docker/image.sh shell

# Only what was said reaches the target inside: on the command line or in the environment.
run-%: ## any target inside the image: make run-train CONFIG=...
	@docker/image.sh run $* $(foreach name,CONFIG RUN TO NAME,$(if $(filter command environment,$(firstword $(origin $(name)))),$(name)='$($(name))'))

test: $(READY) ## lint, types and tests on the very packages that the image ships
	$(PY) -m nox

bench: $(READY) ## speed and memory beside the usual ways, on real conversations: an hour, nothing else running
	@$(PY) tests/bench/run.py

gpu-test: $(READY) ## what only a card can show: REQUIRE_GPU=1 makes a missing one a failure
	$(PY) -m nox -s gpu

clean: ## remove .venv and caches; weights, data and runs stay
	rm -rf .venv .nox .pytest_cache .mypy_cache .ruff_cache .hypothesis
