"""Runs the command line: ``python -m protloom`` is ``protloom``, which torchrun needs."""

from protloom.cli import console

console()
