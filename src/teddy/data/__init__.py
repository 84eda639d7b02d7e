"""From raw files to tensors and views of them; distilled sets are data too.

Imports core and settings.
"""
