"""``python -m teddy``: see :mod:`teddy.stages.commands`."""

from teddy.stages.commands import main

main()
