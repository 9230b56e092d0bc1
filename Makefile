# Everything sets itself up: `make demo` and `make test` need Python >= 3.10 and nothing else.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo benchmark benchmark-real test test-all chaos fuzz lint clean

demo: $(VENV)/ready  ## train a small DiffCast on synthetic storms, score it and draw its forecasts
	@echo "1 of 4, up to a minute: 120 synthetic events, and a packed cache of them"
	@test -f demo/sevir/CATALOG.csv || $(RUN) -m dataset synthetic --out demo/sevir --events 120 --seed 1
	@$(RUN) -m dataset pack --data_path demo/sevir --img_size 32
	@echo "2 of 4, two to five minutes: train the backbone"
	@$(RUN) run.py @resources/demo.args --lr 4e-3 --training_steps 1000 --resume --no_eval
	@echo "3 of 4, three to eight minutes: train DiffCast around it. 4 of 4, one to five minutes: evaluate it with 8 members"
	@$(RUN) run.py @resources/demo.args --lr 6e-3 --training_steps 500 --resume --use_diff --freeze_backbone \
	    --backbone_ckpt Exps/demo/Singleconvgru_sevir/checkpoints/best.safetensors

benchmark: $(VENV)/ready  ## what DiffCast adds to each backbone, or to one: make benchmark BACKBONE=simvp
	$(RUN) -m benchmarks.skill $(if $(BACKBONE),--backbones $(BACKBONE))

benchmark-real: $(VENV)/pysteps  ## forecasts of real radar next to STEPS: make benchmark-real RADAR=pysteps-data/radar HOURS=8
	$(RUN) -m benchmarks.skill.real --radar $(RADAR) $(if $(KM),--km $(KM)) $(if $(HOURS),--hours $(HOURS))

test: $(VENV)/ready  ## the fast tests, one process per core: minutes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile

test-all: $(VENV)/pysteps  ## all tests but those of `make chaos`
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile -m "not chaos"

chaos: $(VENV)/ready  ## kill trainings by the dozen and see that nothing is lost
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m chaos -s tests/chaos

fuzz: $(VENV)/ready  ## feed ten thousand damaged files to each reader
	FUZZ_INPUTS=10000 OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not chaos" -s tests/fuzz

lint: $(VENV)/ready
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

clean:
	rm -rf $(VENV) demo Exps/demo

$(VENV)/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed.")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch and some forty packages into $(VENV): one to ten minutes"
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/pysteps: requirements-pysteps.txt $(VENV)/ready
	@echo "compiling pysteps: about a minute"
	$(RUN) -m pip install --disable-pip-version-check -r requirements-pysteps.txt
	touch $@
