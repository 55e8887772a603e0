"""From a run file and overrides to a typed, resolved run."""

from protloom.config.resolve import Chosen, ChosenObjective, ResolvedRun, choose, load
from protloom.config.schema import run_schema
from protloom.config.source import Override, dump

__all__ = ["Chosen", "ChosenObjective", "Override", "ResolvedRun", "choose", "dump", "load", "run_schema"]
