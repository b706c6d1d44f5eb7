# Everything there is to do with Tidegate, one word each. `make` lists them.
# Needs python3 (3.11 or newer) with pip and venv, make and git; the rest is installed here.

PYTHON ?= python3
BIN := .venv/bin
ENGINE_BIN := .venv-engine/bin
SCRIPTS := deploy/*.py loadtest/*.py tests/quality/evaluate.py

# Its own: with ENGINE_URL the engine's environment is left out of `make run`, never out of tests.
SETUP := $(PYTHON) deploy/setup_environments.py

# Every test says in a sentence what it holds; fakes and other helpers speak by their names.
SENTENCES := $(BIN)/interrogate --fail-under 100 --whitelist-regex '^test_'

# A file stays in one process: its tests share a running orchestrator.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help run test test-unit simulation test-integration test-contract check loadtest soak chaos chaos-red report costs relay trace-costs \
        overload seed-attack engine-kills crash-kills upload-loop ingest engine-options false-kills before-after plans bench-gpu test-gpu audit licences nasty quality answers search-sizes \
        setup setup-dev tools model lock docs clean safeguards fuzz

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make run takes MODEL=<Hugging Face id or folder> EMBEDDING_MODEL=<the same>"
	@echo "  ENGINE_URL=<an OpenAI-compatible server that runs already> TOKENIZER=<of its model>"
	@echo "  PORT=8080 ENGINE_PORT=8000 CONTROL_PORT=8081 DATA_DIR=.data DEVICE=<cpu or gpu>"
	@echo "  OCR=1 (read pages that are pictures)"

run: setup ## start model_server, vLLM and the orchestrator; Ctrl-C stops them
	@exec $(BIN)/python -m deploy.run_stack

test: setup-dev model ## every test, real vLLM included, fast ones first
	@failed=""; \
	for stage in test-unit simulation test-integration test-contract test-gpu; do \
	    $(MAKE) $$stage || failed="$$failed $$stage"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi; \
	echo "all tests passed"

test-unit: setup-dev ## no socket, no sleep: seconds
	@echo "== unit"
	@$(BIN)/pytest -q $(SIDE_BY_SIDE) tests/unit

simulation: setup-dev ## the gate against a model of an engine, in virtual time; prints the table
	@echo "== simulation"
	@$(BIN)/pytest -q -s tests/simulation

test-integration: setup-dev tools ## real processes and loopback sockets
	@echo "== integration"
	@$(BIN)/pytest -q $(SIDE_BY_SIDE) tests/integration

test-contract: setup-dev model ## real vLLM on this machine, the openai client
	@echo "== contract"
	@$(BIN)/pytest -q tests/contract

test-gpu: setup-dev model ## what needs an NVIDIA GPU; skipped, with the reason, where there is none
	@echo "== gpu"
	@$(BIN)/pytest -q -m gpu tests/gpu

safeguards: setup-dev ## take out each of the ten safeguards, and show that a test notices
	@exec $(BIN)/python -m tests.safeguards

fuzz: setup-dev ## random requests by the OpenAPI document: no 5xx, every answer as documented: SECONDS=600 SEED=
	@exec $(BIN)/python -m tests.fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

check: setup-dev ## format, lint, types, import contracts, test sentences, containers, docs
	@$(BIN)/ruff format --quiet --check . || { echo "fix with: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/mypy --explicit-package-bases $(wildcard $(SCRIPTS))
	@$(BIN)/lint-imports --no-logo
	@$(SENTENCES) --quiet tests || { $(SENTENCES) -vv tests | grep MISSED; exit 1; }
	@$(BIN)/hadolint deploy/*.Dockerfile
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	@$(BIN)/pytest -q tests/unit/test_docs.py
	@$(BIN)/pytest -qq --collect-only tests > /dev/null || { $(BIN)/pytest -q --collect-only tests | tail -20; exit 1; }
	@echo "all checks passed"

loadtest: setup-dev $(if $(TARGET),,$(if $(filter simulator,$(ENGINE)),,model)) ## people on locust: SHAPE=constant|step|burst|soak|attack USERS= MINUTES=10 ENGINE=vllm|simulator TARGET=<url> TRACE=<file> SPEED=
	@exec $(BIN)/python -m loadtest.people_run $(if $(SHAPE),--shape $(SHAPE)) \
	    $(if $(ENGINE),--engine $(ENGINE)) $(if $(TARGET),--target "$(TARGET)") \
	    $(if $(USERS),--users $(USERS)) $(if $(MINUTES),--minutes $(MINUTES)) \
	    $(if $(KILL_ENGINE_S),--kill-engine-s $(KILL_ENGINE_S)) \
	    $(if $(TRACE),--trace "$(TRACE)") $(if $(SPEED),--speed $(SPEED)) \
	    $(if $(THINK_S),--think-s $(THINK_S)) $(if $(QUESTIONS),--questions "$(QUESTIONS)") \
	    $(if $(PDFS),--pdfs "$(PDFS)") $(foreach limit,$(OBJECTIVES),--objective $(limit))

# 40 people ask 1.1 questions a second, which is what vLLM answers on two cores without AMX.
soak: ## an hour of people at twice what the engine can; it is killed every five minutes: USERS=40 MINUTES=60
	@$(MAKE) loadtest SHAPE=soak MINUTES=$(or $(MINUTES),60) \
	    USERS=$(or $(USERS),$(if $(TARGET)$(filter simulator,$(ENGINE)),,40)) \
	    $(if $(TARGET)$(filter simulator,$(ENGINE)),,KILL_ENGINE_S=$(or $(KILL_ENGINE_S),300))

chaos: setup-dev tools $(if $(filter vllm,$(ENGINE)),model) ## pull plugs under load, and hold what comes against what is promised: ENGINE=simulator PLUGS="engine killed,storm"
	@exec $(BIN)/python -m loadtest.chaos $(if $(ENGINE),--engine $(ENGINE)) \
	    $(if $(PLUGS),--plugs "$(PLUGS)") $(if $(OUT),--out "$(OUT)")

chaos-red: setup-dev tools ## each plug with a safeguard taken out: show that a promise is broken then
	@exec $(BIN)/python -m tests.chaos_red

report: setup-dev ## docs/performance.md from what `make overload` wrote: FROM="<json> <json>"
	@test -n "$(FROM)" || { echo 'say from what: make report FROM="reports/overload.json"'; exit 2; }
	@exec $(BIN)/python -m loadtest.performance_page $(FROM)

costs: setup-dev model ## what /ask adds, pages a second (PDFS=<folder>), start-up times
	@exec $(BIN)/python -m loadtest.costs $(if $(PDFS),--pdfs "$(PDFS)")

relay: setup-dev ## chunks a second that one core relays, from an engine to its clients
	@exec $(BIN)/python -m loadtest.relay

trace-costs: setup-dev ## processor time of an ask, with traces and without: REPEATS=3
	@exec $(BIN)/python -m loadtest.trace_costs $(if $(REPEATS),--repeats $(REPEATS))

overload: setup-dev $(if $(filter vllm,$(ENGINE)),model) ## tidegate against baselines: ENGINE=simulator|vllm SCENARIO=all REPEATS=3 SECONDS=60 LOADS=0.5,0.9,1,2,10 ALONE=1 NAIVE=1 BESIDE="name=http://…" MODEL=<folder> CLIENTS=
	@exec $(BIN)/python -m loadtest.overload --engine $(or $(ENGINE),simulator) \
	    $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(REPEATS),--repeats $(REPEATS)) \
	    $(if $(SECONDS),--seconds $(SECONDS)) $(if $(LOADS),--loads $(LOADS)) $(if $(OUT),--out "$(OUT)") \
	    $(if $(ALONE),--alone) $(if $(NAIVE),--naive) $(if $(BESIDE),--beside "$(BESIDE)") \
	    $(if $(MODEL),--model "$(MODEL)") $(if $(CLIENTS),--clients $(CLIENTS))

engine-kills: setup-dev model ## kill -9 of the engine's processes under load, each KILLS=20 times
	@exec $(BIN)/python -m loadtest.engine_kills $(if $(KILLS),--kills $(KILLS)) \
	    $(if $(OUT),--out "$(OUT)")

engine-options: setup-dev model ## what prefix caching and ngram speculation do: PDFS=<folder> QUESTIONS=<file> ROUNDS=2 ASKS=24
	@[ -n "$(PDFS)" ] && [ -n "$(QUESTIONS)" ] || \
	    { echo "say on what: make engine-options PDFS=<folder> QUESTIONS=<file>"; exit 2; }
	@exec $(BIN)/python -m loadtest.engine_options --pdfs "$(PDFS)" --questions "$(QUESTIONS)" \
	    $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ASKS),--asks $(ASKS)) $(if $(OUT),--out "$(OUT)")

false-kills: setup-dev model ## 5x the load and the longest prompts, and no engine taken for hung: MINUTES=30 PREFILLS=10
	@exec $(BIN)/python -m loadtest.false_kills $(if $(MINUTES),--minutes $(MINUTES)) \
	    $(if $(PREFILLS),--prefills $(PREFILLS))

crash-kills: setup-dev ## kill -9 of the orchestrator while documents come and go: KILLS=500 PDFS=<folder>
	@exec $(BIN)/python -m loadtest.crash_kills $(if $(KILLS),--kills $(KILLS)) \
	    $(if $(PDFS),--pdfs "$(PDFS)") $(if $(OUT),--out "$(OUT)")

upload-loop: setup-dev ## uploads and deletions in a loop: memory and disk stay flat: ROUNDS=1000 PDFS=<folder>
	@exec $(BIN)/python -m loadtest.upload_loop $(if $(ROUNDS),--rounds $(ROUNDS)) \
	    $(if $(PDFS),--pdfs "$(PDFS)") $(if $(OUT),--out "$(OUT)")

ingest: setup-dev ## pages/s against the embedder alone, cost by size, questions beside uploads: PDFS=<folder>
	@test -n "$(PDFS)" || { echo "say which files: make ingest PDFS=<folder>"; exit 2; }
	@exec $(BIN)/python -m loadtest.ingest --pdfs "$(PDFS)" $(if $(REPEATS),--repeats $(REPEATS)) \
	    $(if $(PARTS),--parts $(PARTS)) $(if $(OUT),--out "$(OUT)")

plans: setup-dev ## what fits of seven public models on cards of 8, 24 and 80 GB; none over its budget
	@exec $(BIN)/python -m loadtest.plans

bench-gpu: setup-dev model ## plan against reality and tokens/s on a real GPU: MODEL=<folder> OUT=reports/bench-gpu.json
	@exec $(BIN)/python -m loadtest.bench_gpu $(if $(MODEL),--model "$(MODEL)") \
	    $(if $(OUT),--out "$(OUT)")

before-after: setup-dev model ## the naive service and tidegate under one memory limit: MEMORY_GIB=4 ASKS=1,2,3,10 UPLOADS=10
	@exec $(BIN)/python -m loadtest.before_after $(if $(MEMORY_GIB),--memory-gib $(MEMORY_GIB)) \
	    $(if $(ASKS),--asks $(ASKS)) $(if $(UPLOADS),--uploads $(UPLOADS)) \
	    $(if $(OUT),--out "$(OUT)")

seed-attack: setup-dev $(if $(filter vllm,$(ENGINE)),model) ## ten long questions at once, and who suffers: ENGINE=simulator|vllm or URL=
	@exec $(BIN)/python -m loadtest.seed_attack --engine $(or $(ENGINE),simulator) \
	    $(if $(URL),--url "$(URL)")

search-sizes: setup-dev ## what a search takes, and recall, in small and large collections: SIZES=1000,100000,1000000
	@exec $(BIN)/python -m loadtest.search_sizes $(if $(SIZES),--sizes "$(SIZES)") \
	    $(if $(OUT),--out "$(OUT)")

nasty: setup-dev ## upload files made to be endless, and those of PDFS=<folder>: count the outcomes
	@exec $(BIN)/python -m loadtest.nasty --bombs $(if $(PDFS),--pdfs "$(PDFS)")

quality: setup-dev ## gold page in the first 1, 5 and 10: PDFS=<folder> QUESTIONS=<file> ABLATE=1
	@test -n "$(PDFS)" -a -n "$(QUESTIONS)" || \
	    { echo "say on what: make quality PDFS=<folder> QUESTIONS=<file>"; exit 2; }
	@exec $(BIN)/python -m tests.quality.evaluate --pdfs "$(PDFS)" --questions "$(QUESTIONS)" \
	    $(if $(ABLATE),--ablate) $(if $(OUT),--json "$(OUT)")

answers: setup-dev model ## whole answers, checked without a judge: PDFS=<folder> QUESTIONS=<file> ENGINE=vllm|simulator
	@test -n "$(PDFS)" -a -n "$(QUESTIONS)" || \
	    { echo "say on what: make answers PDFS=<folder> QUESTIONS=<file>"; exit 2; }
	@exec $(BIN)/python -m tests.quality.answers --pdfs "$(PDFS)" --questions "$(QUESTIONS)" \
	    --engine $(or $(ENGINE),vllm) $(if $(OUT),--json "$(OUT)")

setup: ## the environments that `make run` needs
	@$(SETUP)

setup-dev: ## the environments with tests and checks
	@ENGINE_URL= $(SETUP) --dev

tools: ## programs from Debian that tests use, unpacked under .tools; none where there is no apt
	@$(PYTHON) deploy/debian_programs.py prometheus

model: setup-dev ## the bundled model, as the engine reads it
	@$(ENGINE_BIN)/python deploy/prepare_model.py >/dev/null

lock: setup-dev ## resolve requirements/*.in again; UPGRADE=1 takes newer versions
	@exec $(BIN)/python deploy/lock_requirements.py

docs: setup-dev ## write docs/configuration.md, the dashboard and the sample PDF from the code
	@$(BIN)/python -m deploy.configuration_page
	@$(BIN)/python -m deploy.grafana_dashboard
	@$(BIN)/python -m tests.pdfs docs/samples/handbook.pdf

audit: setup-dev ## bandit over the code, known weaknesses of what is locked (where advisories can be reached)
	@exec $(BIN)/python -m deploy.audit

licences: setup-dev ## write docs/licences.md: the licence of everything that is locked
	@exec $(BIN)/python -m deploy.licences_page

clean: ## remove environments, models and caches; DATA_DIR stays
	@rm -rf .venv .venv-engine .venv-frameworks .models .tools build reports .pytest_cache .mypy_cache .ruff_cache \
	    .hypothesis .import_linter_cache *.egg-info
	@find orchestrator model_server tests deploy loadtest -name __pycache__ -type d -prune \
	    -exec rm -rf {} +
