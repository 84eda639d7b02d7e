"""One thin entrypoint per pipeline stage: read, call, write.

Paths come from the command line and numbers from ``params.yaml``, so ``dvc.yaml`` shows the data
flow and every stage also runs by hand: ``python -m teddy.stages.<stage> --help``.
"""

import os

# Threads that wait must sleep, not spin: with spinning, one other busy process on the machine makes
# small networks fifty times slower. OpenMP reads this once, when PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
