"""How things run, whatever they compute: errors, seeds, files, processes, devices, tables.

Imports no other package of Teddy.
"""
