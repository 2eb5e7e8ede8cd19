# IFKD. `make` alone lists what can be made. Every step makes only what is missing.

PYTHON ?= python3
CONFIG ?= configs/demo.toml
RUN    ?= runs/$(basename $(notdir $(CONFIG)))
SCENE  ?= $(RUN)/data/scenes/scene_00.tif
TRUTH  ?= $(wildcard $(SCENE:.tif=.json))

BIN  := .venv/bin
IFKD := $(BIN)/ifkd
READY := .venv/.ready

.PHONY: help setup demo data train distill evaluate export engine detect bench parity report test fuzz lint types arch check clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## this list
	@echo "make TARGET [CONFIG=$(CONFIG)] [RUN=$(RUN)] [SCENE=image.tif]"; echo
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY) ## make .venv with everything in it
demo: report ## from nothing to the report: data, teacher, students, engines, scene, figures
	@$(IFKD) report $(RUN)/report/report.json
data: $(RUN)/data/train.json ## the demo's generated images and scene
train: $(RUN)/teacher/result.json $(RUN)/student/result.json ## teacher and plain student
distill: $(RUN)/distilled/result.json ## the student, taught by the teacher
evaluate: $(RUN)/evaluation/teacher.json $(RUN)/evaluation/student.json $(RUN)/evaluation/distilled.json ## metrics on the test split
export: $(RUN)/bundle/model.json ## the distilled student as a bundle of ONNX files
engine: $(RUN)/engines.json ## engines from the bundle's ONNX files
detect: $(RUN)/detections/run.json ## objects of SCENE on the map
bench: $(RUN)/bench.json ## latency of the bundle's files
parity: $(RUN)/parity.json ## the bundle's files against the torch reference
report: $(RUN)/report/report.json ## report.html, report.md and report.json

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

ifeq ($(CONFIG),configs/demo.toml)
$(RUN)/data/train.json: configs/demo_data.toml | $(READY)
	$(IFKD) data synth configs/demo_data.toml --out $(RUN)/data
	@touch $@
DATA := $(RUN)/data/train.json
endif

$(RUN)/teacher/result.json: $(DATA) $(CONFIG) | $(READY)
	$(IFKD) train $(CONFIG) --role teacher --out $(RUN)/teacher
	@touch $@
$(RUN)/student/result.json: $(DATA) $(CONFIG) | $(READY)
	$(IFKD) train $(CONFIG) --role student --out $(RUN)/student
	@touch $@
$(RUN)/distilled/result.json: $(RUN)/teacher/result.json | $(READY)
	$(IFKD) distill $(CONFIG) --teacher $(RUN)/teacher/best.safetensors --out $(RUN)/distilled
	@touch $@
$(RUN)/evaluation/%.json: $(RUN)/%/result.json | $(READY)
	$(IFKD) evaluate $(RUN)/$*/best.safetensors --out $@
$(RUN)/bundle/model.json: $(RUN)/distilled/result.json | $(READY)
	$(IFKD) export $(RUN)/distilled/best.safetensors --out $(RUN)/bundle
$(RUN)/engines.json: $(RUN)/bundle/model.json
	$(IFKD) engine $(RUN)/bundle --json > $@
$(RUN)/detections/run.json: $(RUN)/engines.json
	$(IFKD) detect $(RUN)/bundle $(SCENE) --out $(RUN)/detections $(if $(TRUTH),--ground-truth $(TRUTH))
$(RUN)/bench.json: $(RUN)/engines.json $(RUN)/teacher/result.json
	$(IFKD) bench $(RUN)/bundle --batch 1 4 --reference $(RUN)/teacher/best.safetensors --out $@ \
		|| test -s $@  # an engine that failed is told in the report
$(RUN)/parity.json: $(RUN)/engines.json
	$(IFKD) parity $(RUN)/bundle --out $@ || test -s $@  # a failed verdict belongs in the report, which says so
$(RUN)/report/report.json: $(foreach name,teacher student distilled,$(RUN)/evaluation/$(name).json) \
		$(RUN)/bench.json $(RUN)/parity.json $(RUN)/detections/run.json
	$(IFKD) report --out $(RUN)/report --title "$(notdir $(RUN))" --detection $(RUN)/detections \
		$(foreach name,teacher student distilled,--evaluation $(name)=$(RUN)/evaluation/$(name).json) \
		--bench $(RUN)/bench.json --parity $(RUN)/parity.json > /dev/null || test -s $@

test: $(READY) ## all tests, file by file on several cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
fuzz: $(READY) ## 2,000 scrambled annotation and image files
	IFKD_FUZZED_FILES=2000 $(BIN)/python -m pytest tests/unit/ifkd/test_data_check_fuzz.py
bundles: $(READY) ## both detectors with every backbone, untrained: all ONNX files and portable engines, built and run
	$(BIN)/python benchmarks/engines.py --nano --out runs/bundles
lint: $(READY) ## ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
types: $(READY) ## mypy
	$(BIN)/mypy
arch: $(READY) ## the direction of imports
	$(BIN)/lint-imports
check: lint types arch test ## everything CI checks
clean: ## remove what was made, but not .venv
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
