"""Data: records, JSON lines and other sources, chat rendering, tokenisation, batches, order."""
