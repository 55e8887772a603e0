"""Heads that torch trains on frozen features, and low-rank updates that it trains with them."""
