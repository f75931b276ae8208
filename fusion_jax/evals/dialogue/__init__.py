"""Scores of task-oriented dialogue: entity F1, BLEU, recall of retrieval, and whether two systems differ."""
