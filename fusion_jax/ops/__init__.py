"""Numerical primitives: attention, rotary positions, log-probabilities and divergences of linear heads, dropout."""
