"""Tools around the method: reports, visualization, prediction, export, benchmarks and studies.

Importing the package alone imports nothing else, see :mod:`aid_tools.command`.
"""
