#!/bin/sh
# Triton 3.6's interpreter cannot run a loop to a bound that is an argument under NumPy 2.4 or later.
#
# TRITON_INTERPRET=1 is how kernels are tested where there is no GPU. PyTorch 2.11 brings Triton
# 3.6.0 and a resolver picks the newest NumPy beside it. We expected a loop `for i in range(n)` over
# a scalar argument to run there as on a GPU, and warnings at most.
#
# Seen on 2026-11-27 (Linux, x86-64, Python 3.11):
#   Triton 3.6.0, NumPy 2.3.5: runs
#   Triton 3.6.0, NumPy 2.4.6: InterpreterError, "only 0-dimensional arrays can be converted to
#                              Python scalars"
#   Triton 3.9.0, NumPy 2.4.6: runs
# The interpreter holds a scalar as an array of one element, and takes int() of it for the bound;
# NumPy 2.4 ended that conversion of arrays with dimensions, which it had deprecated in 1.25.
#
# So: under Triton 3.6 test interpreted kernels with NumPy below 2.4. Compiled kernels are not
# concerned. Exits with 1 if any of the three behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/loop.py" <<'PY'
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def kernel(n):
    for i in range(n):
        tl.static_assert(True)


try:
    kernel[(1,)](3)
except InterpreterError as error:
    print("only 0-dimensional" if "only 0-dimensional arrays" in str(error) else error)
else:
    print("runs")
PY
status=0
try() { # Triton, NumPy, what is expected
    "$folder/venv/bin/python" -m pip install --quiet "triton==$1" "numpy==$2" 2> /dev/null
    seen=$(TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/loop.py")
    echo "Triton $1, NumPy $2: $seen"
    [ "$seen" = "$3" ] || status=1
}
try 3.6.0 2.3.5 "runs"
try 3.6.0 2.4.6 "only 0-dimensional"
try 3.9.0 2.4.6 "runs"
exit $status
