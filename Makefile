# make demo   the main job end to end, on real input (five to seven minutes on two cores)
# make test   every test; what needs a GPU or ComfyUI skips with its reason
# make study-base   fetches the study's clips and trains the small base that its arms share (25 minutes on a core)
# make study  the fidelity study: results, report and plots (ARGS="--budget 3600" stops in time, the next call goes on)
# make study-heads  the study of head patterns on that base (40 minutes on a core), also stopped and gone on with
# make study-msfp   the study of 4-bit floating point on that base (80 minutes on a core), also stopped and gone on with
# make gpu-smoke   on a machine with a CUDA card, run this first: every kernel once, checked, in three minutes
# make gpu    what needs a CUDA card: benchmark, tests, head tables, 4-bit layers, whole step, training step, sanitizer
#             (BUDGET=seconds, PARTS=bench,tests,heads,train,...)
# make wheels what the benchmark can use beside torch, as wheels for a machine without network, into .wheels/
#
# The GPU targets also run where there is no virtual environment and no network: make gpu RUN=python3
# STANDIN=1 runs them on a CPU, to try the path; RESULTS=folder puts their results elsewhere.

PYTHON ?= python3
VENV   ?= .venv
# Any torch works that suits the machine: for example make demo TORCH="torch --index-url <your wheel index>"
TORCH  ?= torch==2.13.0
# A RUN from outside is used as it is: nothing is installed for the GPU targets then.
GPU_NEEDS := $(if $(filter undefined,$(origin RUN)),$(VENV)/.tests)
RUN    ?= $(VENV)/bin/python
PIP    := $(RUN) -m pip install --quiet --disable-pip-version-check
CLIP   ?=
ARGS   ?=
BUDGET ?= 1500
PARTS  ?=
RESULTS ?=
STANDIN ?=
SUITE  := --budget $(BUDGET) $(if $(PARTS),--parts $(PARTS)) $(if $(RESULTS),--results $(RESULTS)) $(if $(STANDIN),--standin)

.PHONY: demo study-base study study-heads study-msfp test lint gpu gpu-smoke wheels embedded clean

demo: $(VENV)/.trainer
	$(RUN) -m training.demo $(if $(CLIP),--clip $(CLIP)) $(ARGS)

study-base: $(VENV)/.trainer
	$(RUN) -m training.studies clips
	$(RUN) -m training.run --config training/configs/study-base.toml --resume auto

study: $(VENV)/.trainer
	$(RUN) -m training.studies run $(ARGS)

study-heads: $(VENV)/.trainer
	$(RUN) -m training.studies heads $(ARGS)

study-msfp: $(VENV)/.trainer
	$(RUN) -m training.studies msfp $(ARGS)

test: $(VENV)/.tests
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest -n auto --dist loadfile $(ARGS)

lint: $(VENV)/.tests
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

gpu-smoke: $(GPU_NEEDS)
	$(RUN) tests/gpu/suite.py --smoke $(SUITE) $(ARGS)

gpu: $(GPU_NEEDS)
	$(RUN) tests/gpu/suite.py $(SUITE) $(ARGS)

wheels:
	$(PYTHON) tests/gpu/wheels.py

# Trains the shipped tiny VAE and the tiny base again, from the clip alone (about an hour on two cores).
embedded: $(VENV)/.trainer
	$(RUN) -c "from fpsattention.training.data.demo_clip import demo_clip; demo_clip('.cache/clip/bigbuckbunny.mp4')"
	$(RUN) -m training.tiny_vae --clip .cache/clip/bigbuckbunny.mp4 --out training/assets/wan2.1-tiny-vae.safetensors
	$(RUN) -m training.run --config training/configs/tiny-base.toml --resume auto
	cp output/tiny-base/wan2.1-tiny-t2v.safetensors training/assets/

clean:
	rm -rf $(VENV) output .cache

$(VENV)/.torch:
	@echo "installing torch into $(VENV) ..."
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -c "import torch" 2>/dev/null || $(PIP) $(TORCH)
	touch $@

# The exact torch is pinned on every later install, so that nothing replaces it.
$(VENV)/.trainer: $(VENV)/.torch requirements.txt training/requirements.txt
	@echo "installing the trainer into $(VENV) ..."
	$(RUN) -c "import torch; print('torch==' + torch.__version__.split('+')[0])" > $(VENV)/constraints.txt
	$(PIP) -c $(VENV)/constraints.txt -r requirements.txt -r training/requirements.txt
	touch $@

$(VENV)/.tests: $(VENV)/.trainer tests/requirements.txt
	@echo "installing the tests' tools into $(VENV) ..."
	$(PIP) -c $(VENV)/constraints.txt -r tests/requirements.txt
	touch $@
