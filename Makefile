# One line each: what people do here. Every target makes the environment it needs.
.PHONY: env peers demo run estimate compare test lint bench bench-gpu lock
CORES ?= all
# V=1 shows Snakemake's own console, with every job and why it runs.
SNAKEMAKE = PYTHONPATH=workflow/console .venv/bin/snakemake --cores $(CORES) $(if $(V),,--logger dinoquant)

env: .venv/done
.venv/done: envs/pipeline.lock envs/dev.lock
	@python3 envs/install.py .venv envs/pipeline.lock envs/dev.lock && touch $@

peers: .venv-peers/done
.venv-peers/done: envs/peers.lock
	@python3 envs/install.py .venv-peers envs/peers.lock && touch $@

# A first answer first: in one run its timing, which needs all cores, would wait for all jobs that need a single one.
FIRST = results/latency/cpu/int8-smooth/batch1.json
demo: env
	@$(SNAKEMAKE) --configfile config/demo.yaml --max-jobs-per-timespan 100/1s --prioritize $(FIRST) -- models $(FIRST)
	@$(SNAKEMAKE) --configfile config/demo.yaml

run: env
	$(SNAKEMAKE)

# What a run would take: make estimate, or make estimate CONFIG=my.yaml
estimate: env
	@.venv/bin/python workflow/scripts/estimate.py --cores $(CORES) $(if $(CONFIG),--configfile "$(CONFIG)")

compare: env
	@.venv/bin/python workflow/scripts/compare.py $(if $(A),"$(A)") $(if $(B),"$(B)")

test: env
	.venv/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: env
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/snakefmt --check Snakefile workflow && .venv/bin/snakemake --lint

bench: env
	for table in overhead extraction sharding dag runtimes operators stopping repeatability; do PYTHONPATH=workflow/scripts .venv/bin/python tests/bench/$$table.py || exit; done

# On a bare machine with a GPU, by its own Python: see docs/gpu.
bench-gpu:
	PYTHONPATH=workflow/scripts python3 tests/bench/gpu.py

COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock: env
	$(COMPILE) -o envs/pipeline.lock envs/pipeline.in && $(COMPILE) -o envs/dev.lock envs/dev.in && $(COMPILE) -o envs/peers.lock envs/peers.in && .venv/bin/python envs/conda.py > envs/pipeline.yaml
