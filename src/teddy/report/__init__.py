"""Records of the stages in; tables, figures, verdicts and the page out.

Imports core and settings alone: it computes nothing but statistics, and never needs PyTorch.
"""
