"""How fast parts of this package are, beside what they replace, on this machine.

``python -m benchmarks --help`` lists the benchmarks, one module each. Each prints a table and
writes its record as JSON, the table and a figure to ``metrics/bench``. No stage reads them.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the stages; before PyTorch is imported
os.environ.setdefault(
    "KINETO_LOG_LEVEL", "99"
)  # PyTorch's profiler reports a missing GPU as an error
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
