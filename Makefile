# Every way to start something. `make` alone lists the targets.
# RECIPE_PYTHON names a Python that already has the locked packages (the image sets it); without it, .venv is built.

CONFIG ?= recipe/configs/vicuna-7b-p100.toml
RUN ?=
TO ?= hf
NAME ?=
GPUS ?=
AGAINST ?=
A ?=
B ?=
PYTHON ?= python3.11
DEMO := recipe/configs/demo.toml
DEMO_RUN := runs/demo/latest

# Values can come from a stranger's script, so they are plain text: `value` keeps make from expanding a $(...) in them,
# and the recipes read them as quoted "$$CONFIG" from the environment, so that the shell does not evaluate them either.
VALUES := CONFIG RUN TO NAME AGAINST A B GPUS ROOT_IMAGE IMAGE NETWORK
# What the caller set, on the command line or in the environment: only this is passed on to a container.
GIVEN := $(foreach name,CONFIG RUN TO NAME AGAINST A B GPUS,$(if $(filter command environment,$(firstword $(origin $(name)))),$(name)))
$(foreach name,$(VALUES),$(eval override $(name) := $$(value $(name))))
export $(VALUES)
# Stages that use a run: RUN, or the latest run of CONFIG.
FROM = $(if $(RUN),--run="$$RUN",--config="$$CONFIG")

# One process for each GPU; the port is that of no other run on this machine, as it comes from the shell's process id.
TORCHRUN = -m torch.distributed.run --nproc_per_node="$$GPUS" --master_port=$$((20000 + $$$$ % 10000))

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
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(MAKEFILE_LIST))

help: ## list the targets
	@echo "usage: make TARGET [CONFIG=recipe/configs/vicuna-7b-p100.toml] [RUN=runs/<name>/latest]"
	@sed -n 's/^\([a-z%-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: $(READY) ## build .venv from the hash-locked requirements (once, and again when a lock changes)

.venv/.ready: docker/requirements.lock docker/requirements-dev.lock
	@found=$$($(PYTHON) --version 2>/dev/null); case "$$found" in "Python 3.11."*) ;; *) false ;; esac || { \
	  echo "error: found $${found:-no program $(PYTHON)}, expected Python 3.11 (torch 2.0.1, the newest torch with CUDA 11" \
	  "and P100 code, has no wheels for newer ones): install it and run make setup PYTHON=/path/to/python3.11" >&2; exit 3; }
	@echo "installing the locked packages into .venv: downloads 2.4 GB, takes 5.4 GB of disk and a few minutes, once"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --progress-bar on --require-hashes --no-deps --only-binary :all: \
	  -r docker/requirements.lock -r docker/requirements-dev.lock
	@touch $@

lock: $(READY) ## resolve docker/requirements*.in into lock files with hashes
	cd docker && for name in requirements requirements-dev requirements-cluster; do \
	  ../.venv/bin/uv pip compile --quiet --no-header --generate-hashes --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 $$name.in --output-file $$name.lock || exit 1; done
	cd tests/bench && for name in trl llamafactory; do \
	  ../../.venv/bin/uv pip compile --quiet --no-header --no-deps --generate-hashes --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 $$name.in --output-file $$name.lock || exit 1; done
	cd tests/demo && ../../.venv/bin/uv pip compile --quiet --no-header --no-deps --generate-hashes --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 lm_eval.in --output-file lm_eval.lock

pins: $(READY) ## check every installed file against the lock, and every CUDA library for sm_60 code
	$(PY) -m recipe.pins

doctor: $(READY) ## check driver, GPU, memory, disk and files for CONFIG
	@$(PY) -m recipe.doctor --config="$$CONFIG"

plan: $(READY) ## estimate memory and run time of CONFIG (no GPU needed)
	@$(PY) -m recipe.plan --config="$$CONFIG"

rehearse: $(READY) ## measure memory and speed of CONFIG on this device, without its weights
	@$(PY) -m recipe.rehearse --config="$$CONFIG"

fetch: $(READY) ## download raw weights or data: make fetch NAME=smollm2-135m-instruct
	$(PY) -m recipe.fetch $(if $(NAME),-- "$$NAME")

weights: $(READY) ## download the raw weights that CONFIG reads, or those of NAME
	$(PY) -m recipe.fetch --weights $(if $(NAME),-- "$$NAME",--config="$$CONFIG")

data: $(READY) ## download the raw conversations that CONFIG reads, or those of NAME
	$(PY) -m recipe.fetch --data $(if $(NAME),-- "$$NAME",--config="$$CONFIG")

convert: $(READY) ## convert raw weights to safetensors, with a tokenizer and a manifest
	$(PY) -m recipe.convert --config="$$CONFIG"

corpus: $(READY) ## clean and split raw conversations into training and validation samples
	$(PY) -m recipe.corpus --config="$$CONFIG"

train: $(READY) ## train the LoRA adapter; run it again to resume (GPUS=2: on two GPUs of this machine)
	$(PY) $(if $(GPUS),$(TORCHRUN)) -m recipe.train --config="$$CONFIG"

evaluate: $(READY) ## compare the base and the tuned model: validation loss and answers
	$(PY) -m recipe.evaluate $(FROM)

merge: $(READY) ## merge the adapter into the base weights: TO=hf, meta, gguf, gguf-q8_0, gguf-q4_0 or gguf-lora
	$(PY) -m recipe.merge $(FROM) --to="$$TO"

formats: $(READY) ## compare the validation loss of the formats that merge wrote
	$(PY) -m recipe.evaluate $(FROM) --exports

chat: $(READY) ## chat with the tuned model
	@$(PY) -m recipe.chat $(FROM)

serve: $(READY) ## serve the base and the tuned model as a page and an OpenAI-compatible API, on this machine only
	@$(PY) -m recipe.serve $(FROM)

report: $(READY) ## a run on one page, report.html; AGAINST=DIR compares it with another run
	@$(PY) -m recipe.report $(FROM) $(if $(AGAINST),--against="$$AGAINST")

runs: $(READY) ## list all runs: state, losses, hours, size, settings that differ
	@$(PY) -m recipe.report --all

runs-diff: $(READY) ## say in what two runs differ, and what can change a result: make runs-diff A=DIR B=DIR
	@$(PY) -m recipe.provenance diff -- "$$A" "$$B"

replay: $(READY) ## rebuild corpus and run in a clean folder, and compare them bit for bit
	@$(PY) -m recipe.provenance replay $(FROM)

bundle: $(READY) ## pack a run for a reviewer, beside it: files, manifests, SBOM, in-toto, RO-Crate, a verifier
	@$(PY) -m recipe.provenance bundle $(FROM)

demo: $(READY) ## run the whole recipe on a real small model, on the CPU
	@echo "1/6 fetch: a small LLaMA, 93 MB"
	@$(PY) -m recipe.fetch smollm2-135m-instruct
	@echo "2/6 convert: GGUF -> safetensors"
	@$(PY) -m recipe.convert --config $(DEMO)
	@echo "3/6 corpus: conversations -> samples"
	@$(PY) -m recipe.corpus --config $(DEMO)
	@echo "4/6 train: a LoRA adapter on an int8 base"
	@$(PY) -m recipe.train --config $(DEMO)
	@echo "5/6 evaluate: the base and the tuned model"
	@$(PY) -m recipe.evaluate --run $(DEMO_RUN)
	@echo "6/6 merge: the adapter into the base weights"
	@$(PY) -m recipe.merge --run $(DEMO_RUN)
	@echo
	@$(PY) -m recipe.report --run $(DEMO_RUN)

image: ## build the image with docker or podman: make image [ROOT_IMAGE=NAME]
	@docker/image.sh build

image-save: ## export the image to dist/ (registries delete old tags)
	@docker/image.sh save

image-verify: ## rebuild the image without cache and compare digests
	@docker/image.sh verify

shell: ## open a shell in the image, without network unless NETWORK=1
	@docker/image.sh shell

run-%: export TARGET = $*
run-%: ## run a step in the image: make run-train CONFIG=my.toml
	@docker/image.sh run "$$TARGET" $(foreach name,$(GIVEN),$(name)="$$$(name)")

test: $(READY) ## run lint, type checks and tests with the packages that the image ships
	$(PY) -m nox

bench: $(READY) ## measure speed and memory beside other ways, in parts (110 minutes on an idle machine)
	@$(PY) tests/bench/run.py

race: $(READY) ## race ways of training to one validation loss (hours); run it again to continue
	@$(PY) tests/bench/race.py

reproduce: $(READY) ## train the reference run on public data, and say whether its loss is inside the band
	@$(PY) tests/reproduce/reference.py

claims: $(READY) ## rerun the numbers of README.md that this machine can make in half an hour, and mark the rest
	@$(PY) tests/claims/claims.py

gpu-test: $(READY) ## run the tests that need a GPU (REQUIRE_GPU=1: fail where there is none)
	$(PY) -m nox -s gpu

clean: ## remove .venv and caches; keep weights, data and runs
	rm -rf .venv .nox .pytest_cache .mypy_cache .ruff_cache .hypothesis
