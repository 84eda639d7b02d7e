"""Soft labels, fresh students trained on a distilled set, and class-incremental learning.

Imports core, settings, data, teachers, synthesis and the objectives.
"""
