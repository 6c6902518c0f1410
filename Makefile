.PHONY: setup demo docs test test-all test-gpu lint model bench-tools bench-learner bench-rollouts bench-evaluation bench-start study

setup:  ## environment in .venv; seconds when nothing changed
	@deploy/setup

demo: setup  ## the main run: AXPO on the embedded model and task
	.venv/bin/axpo train deploy/recipes/demo.yaml

test: lint  ## lint and the tests, the real stack included
	.venv/bin/pytest --durations=15

test-all: lint  ## the slow ones too: runs killed and resumed at every moment, storms of faults, the attack list from the command line
	.venv/bin/pytest --durations=15 -m "not gpu"

test-gpu:  ## the GPU paths, on a machine with a GPU, into benchmarks/results/gpu.json; AXPO_GPU_DRY_RUN=1 tries the tests on a CPU
	$(or $(PYTHON),.venv/bin/python) -m pytest tests/gpu -m gpu -s -rs --durations=0

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-cache
	.venv/bin/mypy

docs:  ## the site of the documents, into build/site; its packages are in an environment of their own
	@mkdir -p build
	$(or $(PYTHON),python3) -m venv build/docs-env
	@build/docs-env/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > build/docs-env/requirements.txt
	build/docs-env/bin/python -m pip install -qq --requirement build/docs-env/requirements.txt --constraint constraints.txt
	build/docs-env/bin/python docs/site/build.py

model: setup  ## rebuilds the embedded model
	.venv/bin/axpo model build

bench-tools: setup  ## measures the tool server into benchmarks/results/tools.json
	.venv/bin/python -m benchmarks.tools

bench-learner: setup  ## measures the learner into benchmarks/results/learner.json; needs TRL, the peer it is compared with
	.venv/bin/python -m pip install -qq --editable ".[bench]" --constraint constraints.txt
	.venv/bin/python -m benchmarks.learner

bench-rollouts: setup  ## measures rollouts, resampling, weight transfer and scale into benchmarks/results/rollouts.json
	.venv/bin/python -m benchmarks.rollouts

bench-evaluation: setup  ## measures what an evaluation costs beside the engine into benchmarks/results/evaluation.json
	.venv/bin/python -m benchmarks.evaluation

bench-start: setup  ## measures the start of a run and the demo against an earlier commit into benchmarks/results/start.json
	.venv/bin/python -m benchmarks.start

study: setup  ## runs what is left of the study for MINUTES, then its table and figures into benchmarks/study
	@.venv/bin/python -m pip install -qq --editable ".[bench]" --constraint constraints.txt
	.venv/bin/python -m benchmarks.study --minutes $(or $(MINUTES),60)
