"""Variants of a protein: how tables name them, and how likely a network finds them."""

from protloom.variants.notation import METHODS, STOP, UNCHANGED, Method, Mutation, Variant, make_variants

__all__ = ["METHODS", "STOP", "UNCHANGED", "Method", "Mutation", "Variant", "make_variants"]
