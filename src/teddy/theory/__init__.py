"""The paper's propositions checked numerically, the unrolled problem, Figures 1 and 5.

Imports everything but students and stages.
"""
