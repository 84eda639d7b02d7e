"""What makes synthesis fast and changes no result: rewritten networks, kernels, graphs, scheduling.

Imports core, settings, teachers and the objectives; knows no method.
"""
