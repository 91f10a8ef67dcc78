PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-gpu check quick types lint docs coverage bench release wheels clean

setup: $(VENV)/.ready

# Published metrics that tests compare with; without torchvision, which they import and tests do not
# need (tests/validate/oracles.py).
ORACLES := DISTS-pytorch lightning-utilities lpips pytorch-msssim torch-fidelity torchmetrics

# The package is installed for its metadata and command, then its copy is replaced by a link to this
# folder: the repository root is the package, which setuptools' editable finder cannot express.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[export,rtx,report,openvino,distributed,mlflow,docs,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt $(ORACLES)
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		rm -rf "$$site/arvg_trt" build *.egg-info && ln -s "$(CURDIR)" "$$site/arvg_trt"
	touch $@

# A tokenizer in INT8, a generator at W8A8 and a model of one's own, each with its report; the first's
# engines in one signed file; and a page that leads to all of it.
demo: setup
	$(BIN)/arvg-trt run cosmos-mini-int8
	$(BIN)/arvg-trt run var-w8a8
	$(BIN)/arvg-trt generate out/var-mini/engines/w8a8/onnxruntime --labels 0-9 --count 4 --batch-size 20 -o out/var-mini/images --force
	$(BIN)/python -m arvg_trt.demo.own_model out/own/files
	$(BIN)/arvg-trt export onnx out/own --graph out/own/files/encoder.onnx --graph out/own/files/decoder.onnx
	$(BIN)/arvg-trt calibrate out/own --feeds out/own/files/calibration.npz --samples 16
	$(BIN)/arvg-trt quantize out/own --name int8
	$(BIN)/arvg-trt build out/own --name int8
	$(BIN)/arvg-trt validate out/own --name int8 --feeds out/own/files/held_out.npz --gate 'output_sqnr_db>=18'
	test -f out/demo-ci.key || $(BIN)/arvg-trt keygen out/demo-ci
	$(BIN)/arvg-trt bundle out/demo --name int8 --key out/demo-ci.key --with-reference -o out/demo-int8.tar
	$(BIN)/arvg-trt verify out/demo-int8.tar --require-key out/demo-ci.pub
	$(BIN)/arvg-trt index out/demo out/var-mini out/own out/demo-int8.tar -o out/demo/index.html

PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(BIN)/python -m pytest -q $(PARALLEL)

# What needs an NVIDIA GPU; elsewhere every one of them is skipped with the reason.
test-gpu: setup
	$(BIN)/python -m pytest -q -n 0 -rs -m gpu

# The daily loop: style, types, who imports whom, options, pure numerics, every stage on a tiny graph.
check: setup
	$(MAKE) -j 2 quick types

quick: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_rooms.py tests/test_end_to_end.py tests/numerics \
		tests/recipe/test_descriptions.py tests/recipe/test_reference.py

types: setup
	$(BIN)/mypy -p arvg_trt

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The site of the documentation, in out/site; a warning is an error.
docs: setup
	$(BIN)/python -m sphinx -q -E -a -W --keep-going -c docs . out/site

# Lines and branches, also of processes that tests start; the pages go to out/coverage.
coverage: setup
	$(BIN)/python -m pytest -q $(PARALLEL) --cov --cov-report=term --cov-report=html:out/coverage

bench: setup
	$(BIN)/python -m arvg_trt.benchmarks.real_width
	$(BIN)/python -m arvg_trt.benchmarks.tokenizer_bits
	$(BIN)/python -m arvg_trt.benchmarks.generate
	$(BIN)/python -m arvg_trt.benchmarks.generate.rar
	$(BIN)/python -m arvg_trt.benchmarks.calibration
	$(BIN)/python -m arvg_trt.benchmarks.diagnosis.diagnosed
	$(BIN)/python -m arvg_trt.benchmarks.fuzz

# Both wheels and the sdist into dist/, if the commit is a release; `wheels` builds any tree.
release: setup
	$(BIN)/python -m arvg_trt.release.distributions --output dist

wheels: setup
	$(BIN)/python -m arvg_trt.release.distributions --output dist --unreleased

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache
