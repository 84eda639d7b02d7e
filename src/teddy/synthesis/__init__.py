"""Methods that make distilled images; Algorithm 1 and the gradient of Eq. 7.

Imports core, settings, data, teachers and the objectives; what makes it fast is in its engine.
"""
