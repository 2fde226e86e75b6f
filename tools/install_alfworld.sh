#!/bin/sh
# Installs the stock ALFWorld engine without spaCy, for the system tests and the benchmark: install_alfworld.sh PYTHON
set -eu
pip="$1 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --constraint constraints.txt"
$pip --editable '.[alfworld]'
$pip --no-deps 'alfworld>=0.4.2,<0.5' textworld==1.7.0 jericho==3.3.1
$pip 'tatsu==5.8.3' networkx more_itertools hashids mementos termcolor prompt_toolkit tqdm numpy
