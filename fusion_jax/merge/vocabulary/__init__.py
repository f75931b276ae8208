"""Vocabularies of merged models: which tokens the output has, their rows in each model, its tokenizer files."""
