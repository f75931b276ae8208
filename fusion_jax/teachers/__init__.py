"""Distributions of other models: what they say of a text, stored once, aligned and fused into targets."""
