"""Task-oriented dialogue over a knowledge base: turns, entities, their texts and tags, and which entities match."""
