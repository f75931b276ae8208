"""Cool-Fusion: several models write one text together, word by word, without training (arXiv 2407.19807)."""
