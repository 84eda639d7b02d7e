"""Distilled sets outside this repository: opened, trained on, packed, checked, converted.

The public API (``teddy.load``, ``teddy.fit``, ``teddy.accuracy``) and the commands of ``teddy``
that are no stages. It may use every package but ``report``, ``theory`` and ``stages``; no stage
may use it, so that a change here makes nothing anew.
"""
