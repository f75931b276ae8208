"""Numerical primitives: attention, rotary positions, log-probabilities under a linear head."""
