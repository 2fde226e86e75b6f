#!/bin/sh
# Installs OpenEnv into a folder of its own, to be named in PYTHONPATH: install_openenv.sh PYTHON FOLDER
# It brings gradio, which wants older versions of two packages than constraints.txt has.
set -eu
rm -rf "$2"
mkdir -p "$2"
grep -v -e '^pillow==' -e '^tomlkit==' -e '^torch==' constraints.txt > "$2/constraints.txt"
exec "$1" -m pip install --quiet --disable-pip-version-check --no-warn-conflicts \
  --constraint "$2/constraints.txt" --target "$2" openenv
