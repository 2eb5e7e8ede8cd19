# IFKD. `make` alone lists the targets. Each target makes only what is missing.

PYTHON ?= python3
CONFIG ?= configs/demo.toml
RUN    ?= runs/$(basename $(notdir $(CONFIG)))
SCENE  ?= $(RUN)/data/scenes/scene_00.tif
GROUND_TRUTH ?= $(wildcard $(SCENE:.tif=.json))

# TORCH=cpu installs torch without CUDA, about 5 GB less
TORCH  ?=
# what builds engines: tensorrt-rtx without a GPU, or tensorrt for the GPU of this machine
BUILDER ?= tensorrt-rtx
# what runs the bundle's files, as in `make detect BACKEND=tensorrt`; without it, the default of each command
BACKEND ?=
# what `make wheelhouse` collects
EXTRAS ?= cpu,report

BIN  := .venv/bin
IFKD := $(BIN)/ifkd
PIP  := $(BIN)/pip --disable-pip-version-check --quiet
READY := .venv/.ready
READY_DEV := .venv/.ready-dev
ROLES := teacher student distilled
EVALUATIONS := $(ROLES:%=$(RUN)/evaluation/%.json)

.PHONY: help setup wheelhouse demo data train distill evaluate export engine detect bench parity report test test-all fuzz bundles lint types arch check clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## list the targets
	@echo "make TARGET [CONFIG=$(CONFIG)] [RUN=$(RUN)] [SCENE=image.tif] [BUILDER=tensorrt] [BACKEND=tensorrt]"; echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY_DEV) ## create .venv with all dependencies
demo: $(READY) ## run everything on generated data: train, distill, export, detect, benchmark, report
	@rm -f $(RUN)/stages.json
	@$(MAKE) --no-print-directory --jobs 2 STAGES=$(RUN)/stages.json report
	@$(BIN)/python configs/demo_stages.py $(RUN)/stages.json end
	@$(IFKD) report $(RUN)/report/report.json || test -s $(RUN)/report/report.html
data: $(RUN)/data/train.json ## generate the demo's images and scene
train: $(RUN)/teacher/result.json $(RUN)/student/result.json ## train the teacher and the plain student
distill: $(RUN)/distilled/result.json ## train the student from the teacher
evaluate: $(EVALUATIONS) ## compute metrics on the test split
export: $(RUN)/bundle/model.json ## export the distilled student as a bundle of ONNX files
engine: $(RUN)/engines.json ## build engines from the bundle's ONNX files
detect: $(RUN)/detections/run.json ## detect objects in SCENE
bench: $(RUN)/bench.json ## measure the latency of the bundle's files
parity: $(RUN)/parity.json ## compare the bundle's files with the torch reference
report: $(RUN)/report/report.json ## write report.html, report.md and report.json, and the results into the bundle's model card

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(if $(filter cpu,$(TORCH)),$(PIP) install -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch torchvision)
	$(PIP) install -c constraints.txt -e '.[cpu,export,report]'
	@touch $@
$(READY_DEV): $(READY)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
wheelhouse: $(READY) ## collect IFKD and its dependencies, with hashes, for a machine without a network
	rm -rf wheelhouse
	$(PIP) wheel -c constraints.txt --wheel-dir wheelhouse '.[$(EXTRAS)]'
	cd wheelhouse && ../$(BIN)/pip hash *.whl | paste -d ' ' - - | sed 's|^|./|; s|:  *--hash| --hash|' > requirements.txt

# STAGES is set by `make demo`, which prints each stage and runs two jobs at a time: both students train at once, each on
# half of the cores, because two small networks use them better side by side; the evaluations run beside the training of
# the distilled student, which takes longest, and beside the detection; and what is timed, as INT8 in the export, runs alone
stage = $(if $(STAGES),@$(BIN)/python configs/demo_stages.py $(STAGES) $(1))
backend = $(if $(BACKEND),--backend $(BACKEND))
demo_after = $(if $(STAGES),$(1))
half_of_cores = $(if $(STAGES),OMP_NUM_THREADS=$(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 ))))

ifeq ($(CONFIG),configs/demo.toml)
$(RUN)/data/train.json: configs/demo_data.toml | $(READY)
	$(call stage,data)
	$(IFKD) data synth configs/demo_data.toml --out $(RUN)/data
	@touch $@
DATA := $(RUN)/data/train.json
endif

$(RUN)/teacher/result.json: $(DATA) $(CONFIG) | $(READY)
	$(call stage,teacher)
	$(IFKD) train $(CONFIG) --role teacher --out $(RUN)/teacher
	@touch $@
$(RUN)/student/result.json: $(DATA) $(CONFIG) | $(READY) $(call demo_after,$(RUN)/teacher/result.json)
	$(half_of_cores) $(IFKD) train $(CONFIG) --role student --out $(RUN)/student
	@touch $@
$(RUN)/distilled/result.json: $(RUN)/teacher/result.json | $(READY)
	$(call stage,students)
	$(half_of_cores) $(IFKD) distill $(CONFIG) --teacher $(RUN)/teacher/best.safetensors --out $(RUN)/distilled
	@touch $@
$(RUN)/evaluation/distilled.json: | $(call demo_after,$(RUN)/bundle/model.json)
$(RUN)/evaluation/%.json: $(RUN)/%/result.json | $(READY) $(call demo_after,$(RUN)/student/result.json)
	$(half_of_cores) $(IFKD) evaluate $(RUN)/$*/best.safetensors --out $@
$(RUN)/bundle/model.json: $(RUN)/distilled/result.json | $(READY) $(call demo_after,$(RUN)/student/result.json)
	$(call stage,export)
	$(IFKD) export $(RUN)/distilled/best.safetensors --out $(RUN)/bundle
$(RUN)/engines.json: $(RUN)/bundle/model.json $(RUN)/.builder
	$(call stage,engine)
	$(IFKD) engine $(RUN)/bundle --builder $(BUILDER) --json > $@
$(RUN)/detections/run.json: $(RUN)/engines.json $(RUN)/.scene $(RUN)/.backend
	$(call stage,detect)
	$(IFKD) detect $(RUN)/bundle $(SCENE) --out $(RUN)/detections $(backend) $(if $(GROUND_TRUTH),--ground-truth $(GROUND_TRUTH))
# bench, parity and report exit 1 when an engine fails; the report states it, so the build continues with their results
$(RUN)/bench.json: $(RUN)/engines.json $(RUN)/teacher/result.json $(RUN)/.backend | $(call demo_after,$(RUN)/detections/run.json $(EVALUATIONS))
	$(call stage,bench)
	$(IFKD) bench $(RUN)/bundle --batch 1 4 $(backend) $(if $(STAGES),--seconds 0.5) --reference $(RUN)/teacher/best.safetensors --out $@ || test -s $@
$(RUN)/parity.json: $(RUN)/engines.json $(RUN)/.backend | $(call demo_after,$(RUN)/bench.json)
	$(call stage,parity)
	$(IFKD) parity $(RUN)/bundle $(backend) --out $@ || test -s $@
$(RUN)/report/report.json: $(RUN)/bundle/model.json $(EVALUATIONS) $(RUN)/bench.json $(RUN)/parity.json $(RUN)/detections/run.json
	$(call stage,report)
	$(IFKD) report --out $(RUN)/report --title "$(notdir $(RUN))" --detection $(RUN)/detections \
		$(foreach role,$(ROLES),--evaluation $(role)=$(RUN)/evaluation/$(role).json) \
		--bench $(RUN)/bench.json --parity $(RUN)/parity.json --model-card $(RUN)/bundle > /dev/null || test -s $@
	@touch -r $(RUN)/bundle/config.toml $(RUN)/bundle/model.json # only the card is new, so nothing is made again

# what was named last time: with another SCENE, BACKEND or BUILDER, the results are made again
remember = @mkdir -p $(@D); echo '$(1)' | cmp -s - $@ || echo '$(1)' > $@
.PHONY: named
named:
$(RUN)/.scene: named
	$(call remember,$(SCENE))
$(RUN)/.backend: named
	$(call remember,$(BACKEND))
$(RUN)/.builder: named
	$(call remember,$(BUILDER))

# files start in the order of collection, which tests/conftest.py sets
PYTEST = $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10
test: $(READY_DEV) ## run all tests except the slow ones
	$(PYTEST) -m "not slow"
test-all: $(READY_DEV) ## run all tests, and check the types of all calls
	$(PYTEST) --jaxtyping-packages=ifkd,export,deploy,beartype.beartype
fuzz: $(READY_DEV) ## read thousands of scrambled annotation, image, scene and map files
	IFKD_FUZZED_FILES=2000 $(BIN)/python -m pytest tests/unit/ifkd/data/check/test_check_fuzz.py \
		tests/unit/ifkd/imagery/test_raster_fuzz.py tests/unit/deploy/scene/read/test_georeference_fuzz.py
bundles: $(READY_DEV) ## export both detectors with every backbone, untrained; build and run all files
	$(BIN)/python benchmarks/engines.py --nano --out runs/bundles
lint: $(READY_DEV) ## check format, style and spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/typos
	$(BIN)/hadolint Dockerfile
types: $(READY_DEV) ## check types
	$(BIN)/mypy
arch: $(READY_DEV) ## check the direction of imports
	$(BIN)/lint-imports
check: lint types arch test-all ## run all checks of CI
clean: ## remove everything made, except .venv
	rm -rf runs build dist wheelhouse .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
