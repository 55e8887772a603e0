"""Throughput of training, measured so that it can be believed: variants in turns, medians, paired ratios."""
