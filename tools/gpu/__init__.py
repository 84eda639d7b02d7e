"""What a GPU that is at hand for a few minutes is to be asked, prepared so that none is lost.

``python -m tools.gpu pack`` puts data and wheels into slices for a machine without a network,
``receive`` puts them together there, ``run`` runs everything within a budget, and ``decide`` turns
what came back into records and verdicts. ``run --rehearse --device cpu`` is the same in small.
"""
