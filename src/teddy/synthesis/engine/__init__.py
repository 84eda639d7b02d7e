"""What runs batches fast and safely, and changes no result: kernels, graphs, scheduling, resuming.

Imports core, settings, data, teachers and the objectives; knows no method.
"""
