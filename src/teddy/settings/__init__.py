"""What can be set: the parameter files, checked and resolved for every stage and row.

Imports core alone, and never PyTorch, so that settings are refused before anything is loaded.
"""
