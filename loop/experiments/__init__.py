"""Experiments: the same rounds under different settings and seeds, what they have in common done once, and what came out."""
