#!/bin/sh
# PyYAML 6.0.4 resolves YAML merges by the length of a key's name; ruamel.yaml, and so DVC, does not.
#
# DVC reads params.yaml with ruamel.yaml, scripts often with PyYAML. We expected both to give a row
# that merges others (`<<`) the same values: of a list the first wins, and a mapping's own keys win
# over merged ones (yaml.org/type/merge.html).
#
# Seen on 2026-11-27 (Linux, Python 3.11), for a key of one letter (k) and of two (lr):
#   PyYAML 6.0.3, ruamel.yaml 0.19.1: first of a list wins, own key wins
#   PyYAML 6.0.4: of a list the first k wins, but the last lr;
#                 an own k that overrides a merged one is lost when its mapping is merged in turn,
#                 an own lr is kept
# 6.0.4 leaves out keys that it has seen by the identity of their text, and Python keeps one string
# for each single character. Merges of lists are reported upstream (yaml/pyyaml, issue 953); the lost
# override of a chain of single merges is the other face of it.
#
# So: the same parameter file may mean one thing to `dvc` and another to a script beside it. Merge by
# names of your own before PyYAML does, or require another version. Exits with 1 if any of it
# behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/rows.yaml" <<'YAML'
one: &one {k: 1, lr: 1}
two: &two {k: 2, lr: 2}
listed: {<<: [*one, *two]}
own: &own {<<: *one, k: 5, lr: 5}
chained: {<<: *own}
YAML
cat > "$folder/read.py" <<'PY'
import sys

import yaml
from ruamel.yaml import YAML

with open(sys.argv[1]) as file:
    text = file.read()
for name, rows in (("PyYAML", yaml.safe_load(text)), ("ruamel", YAML(typ="safe").load(text))):
    print(name, *(rows[row][key] for row in ("listed", "chained") for key in ("k", "lr")))
PY
status=0
try() { # version of PyYAML; k and lr of the list, k and lr of the chain: PyYAML's, ruamel.yaml's
    "$folder/venv/bin/python" -m pip install --quiet "pyyaml==$1" ruamel.yaml==0.19.1 2> /dev/null
    seen=$("$folder/venv/bin/python" "$folder/read.py" "$folder/rows.yaml" | tr '\n' ' ')
    echo "PyYAML $1: $seen"
    [ "$seen" = "PyYAML $2 ruamel $3 " ] || status=1
}
try 6.0.3 "1 1 5 5" "1 1 5 5"
try 6.0.4 "1 2 1 5" "1 1 5 5"
exit $status
