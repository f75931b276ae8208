"""Pruning without training: which blocks of a model its text needs least, and the model without them."""
