"""Downstream tasks by name: what was asked for, running it, results that last, comparisons of them."""
