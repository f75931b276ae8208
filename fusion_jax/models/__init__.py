"""Model ports: one configurable decoder, families that map Hugging Face names to it, folder in and folder out."""
