"""Comparing recipes under a matched budget: trained alike, evaluated on the same tasks, wins and losses counted.

:mod:`~protloom.compare.plan` reads what is to be compared and refuses what cannot be, :mod:`~protloom.compare.claim`
holds a folder to one comparison, :mod:`~protloom.compare.runner` trains and goes on where it was killed,
:mod:`~protloom.compare.evaluation` asks the tasks, :mod:`~protloom.compare.analysis` turns results into differences
with intervals, :mod:`~protloom.compare.tables` writes them down.
"""
