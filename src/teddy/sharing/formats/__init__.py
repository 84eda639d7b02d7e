"""Distilled sets in other formats, both ways: ``teddy export`` and ``teddy import``.

A module for each format: :mod:`~teddy.sharing.formats.imagefolder`,
:mod:`~teddy.sharing.formats.parquet`, :mod:`~teddy.sharing.formats.trajectories` (``pt``) and
:mod:`~teddy.sharing.formats.fkd`, each with ``write`` and ``read``.
:mod:`~teddy.sharing.formats.converting` is what commands call.
"""
