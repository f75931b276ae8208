"""Recipes carried out: models read ahead, merged tensor by tensor, written; estimates, reports, unfinished work."""
