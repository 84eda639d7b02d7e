"""One module per stage of the pipeline: its ``main`` reads, calls and writes.

Paths come from the command line and all else from a settings file, so ``dvc.yaml`` shows the data
flow and every stage also runs by hand: ``teddy <stage> --help``. May import every package.
"""

import os

# Threads that wait must sleep, not spin: with spinning, one other busy process on the machine makes
# small networks fifty times slower. OpenMP reads this once, when PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
