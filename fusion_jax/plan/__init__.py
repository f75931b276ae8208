"""Ahead of time and without a TPU: what a program needs on a named slice, by the TPU compiler's own output."""
