"""Offline pages about runs and comparisons: one HTML file that needs no network, no server and no script.

:mod:`~protloom.report.run_facts` reads run folders, :mod:`~protloom.report.run_warnings` says in words what to look at,
:mod:`~protloom.report.figures` turns logged lines into panels that :mod:`~protloom.report.charts` draws as SVG,
:mod:`~protloom.report.run_page` and :mod:`~protloom.report.comparison_page` put pages together, and
:mod:`~protloom.report.page` writes them down. Equal input gives the same bytes.
"""
