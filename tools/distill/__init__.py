"""Distil images of your own: ``make distill DATA=folder``, or ``python -m tools.distill folder``.

Class folders, a list of files, arrays or Parquet in; distilled images, their labels, a contact
sheet, a bundle and a short table out. All of it lies in a folder of its own, which is a small
checkout: settings chosen by the size of the data, and whatever the stages make of them. The same
command goes on where it was stopped, and makes nothing twice.
"""

import teddy.stages  # noqa: F401  # before PyTorch is loaded: says how its threads wait
