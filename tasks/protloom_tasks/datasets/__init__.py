"""Readers of task data: each gives plain records, and says which file it needs and where that comes from."""
