"""Features of protein sequences from a frozen network, for one model or a whole corpus, cached and in files."""

from protloom.embedding.embedder import WINDOW, Embedder, LongPolicy, Pool

__all__ = ["WINDOW", "Embedder", "LongPolicy", "Pool"]
