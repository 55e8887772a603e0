"""What plugins offer: finding them, resolving names, explaining what went wrong."""

from protloom.plugins.loader import OWN, Component, PluginInfo
from protloom.plugins.registry import DISABLE_VARIABLE, Registry, split_size

__all__ = ["DISABLE_VARIABLE", "OWN", "Component", "PluginInfo", "Registry", "split_size"]
