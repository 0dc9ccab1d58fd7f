# Every verb works in a fresh clone: the environment is made first, from pyproject.toml alone.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
LDM := $(RUN) -m
DEMO := runs/demo
# all but the slow ones: orders of convergence, whole trainings, generators from bundles
QUICK := $(addprefix tests/,commands diffusion io models randomness test_construct.py test_golden.py test_house.py test_style.py)
QUICK += $(addprefix --ignore=tests/,diffusion/test_samplers.py diffusion/test_conf.py)
# bytecode is kept, whatever the shell says: each worker and each command in a process of its own would compile again
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(LDM) pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo serve load quick test page check format bench gpu peers weights faults ranks chaos slurm golden report docs

help:  ## print this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup: $(VENV)/.ready  ## create .venv and install the project with its tools

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ldm needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup  ## train CLIP, autoencoder and U-Net on emoji, sample, evaluate: 15 minutes on 2 cores; resumes if interrupted
	@$(LDM) data_prep.emoji
	@$(LDM) ldm.train +experiment=demo_clip
	@$(LDM) ldm.train +experiment=demo_vae
	@$(LDM) ldm.train +experiment=demo
	@echo "demo: a minute or two left, for samples and numbers"
	@$(LDM) ldm.sample bundle=$(DEMO) out=$(DEMO)/samples
	@test -f $(DEMO)/evaluation/report.md || \
		$(LDM) ldm.evaluate bundle=$(DEMO) protocol.seeds=1 precision=bfloat16 out=$(DEMO)/evaluation
	@echo "pictures: $(DEMO)/samples/sheet.png"
	@echo "report:   $(DEMO)/evaluation/report.md"
	@echo "bundle:   $$(ls -d $(DEMO)/*/bundle | tail -n 1)"
	@printf '%s\n' '' 'What to type next:' \
		"  $(LDM) ldm.sample bundle=$(DEMO) 'prompts=[\"red heart\",\"your own words\"]' per_prompt=4" \
		"  $(LDM) ldm.evaluate bundle=$(DEMO) protocol=quick out=runs/evaluation/quick" \
		"  $(LDM) ldm.train +experiment=emoji    # the same for longer" \
		"  $(LDM) data_prep.folder source=<your pictures> out=data/mine    # then docs/train.md, step 2"

quick: setup  ## what to run at each save: style, import contracts and the tests of the core, in less than a minute
	$(LDM) ruff check --quiet .
	$(VENV)/bin/lint-imports
	$(PYTEST) -q --no-header $(QUICK)

test: setup  ## run the whole test suite: some minutes on 2 cores
	$(PYTEST)

page: setup  ## the page of ldm.serve in a real browser, some minutes; needs Chromium: apt-get install chromium
	$(LDM) pytest tests/serve/browser/page_*.py; status=$$?; cat runs/page/log.txt; exit $$status

check: setup  ## run ruff, mypy --strict on the core, import contracts
	$(LDM) ruff check .
	$(LDM) ruff format --check .
	$(LDM) mypy
	$(VENV)/bin/lint-imports

format: setup  ## let ruff fix what it can
	$(LDM) ruff check --fix .
	$(LDM) ruff format .

serve: setup  ## open a page that generates pictures with the shipped model; Ctrl-C ends it
	@$(LDM) data_prep.emoji  # what the page compares pictures with
	@exec $(LDM) ldm.serve

load: setup  ## ldm.serve under load: bytes, queue, bad clients, memory, throughput beside diffusers: ten minutes
	$(LDM) benchmarks.serve_load

bench: setup  ## compare speed with other libraries: U-Net, training step, attention, pipeline, loader, latents, logging
	$(LDM) benchmarks.unet_vs_diffusers
	$(LDM) benchmarks.training_vs_diffusers --shape tiny base
	$(LDM) benchmarks.attention
	$(LDM) benchmarks.import_time
	$(LDM) benchmarks.loader
	$(LDM) benchmarks.latent_shards
	$(LDM) benchmarks.logging_cost
	$(LDM) benchmarks.pipeline_vs_diffusers

gpu: setup  ## on a machine with one GPU: parity with the CPU, speed, memory, forecasts; at most 8 minutes, no download
	$(LDM) benchmarks.gpu

peers: setup  ## compare metrics with other libraries on 2,000 pictures: 40 minutes
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	$(LDM) benchmarks.metrics_vs_peers

weights: setup  ## compare imported weights, tokenizer and exported pictures with the original libraries: minutes
	$(LDM) benchmarks.weights_at_size
	$(LDM) benchmarks.exported_pictures
	$(LDM) benchmarks.tokenizer_identity

faults: setup  ## inject faults: 143 kinds into data, a dozen into W&B: some minutes
	@$(LDM) data_prep.emoji
	$(LDM) benchmarks.injected_faults
	$(LDM) benchmarks.wandb_faults

ranks: setup  ## kill, stop and cancel ranks of a training: 20 minutes
	@$(LDM) data_prep.emoji
	$(LDM) benchmarks.rank_faults
	$(LDM) benchmarks.metric_faults
	$(LDM) benchmarks.cancels

chaos: setup  ## kill 320 saves and 60 trainings, fill disks, resume in every way: half an hour
	$(LDM) benchmarks.chaos --out chaos.json

slurm: setup  ## run trainings and a sweep on a SLURM cluster on this machine: half an hour
	@CLUSTER_GPUS=2 slurm/cluster.sh up
	@eval "$$(slurm/cluster.sh env)"; LDM_SLURM=1 $(LDM) pytest tests/slurm/test_cluster.py; status=$$?; \
		slurm/cluster.sh jobs; slurm/cluster.sh down; exit $$status

golden: setup  ## rewrite tests/golden/*.json: only with a reason in the commit message
	LDM_GOLDEN=write $(LDM) pytest tests/test_golden.py

docs: setup  ## build the documentation into site/: no network after the first time, no warnings
	@$(RUN) -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || \
		$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(LDM) mkdocs build --strict --quiet
	@echo "open site/index.html, or: $(RUN) -m http.server --directory site"

report: setup  ## make experiments/README.md and its figures from stored results
	$(LDM) experiments.report
