"""What a recipe says: read and checked, resolved to numbers, planned tensor by tensor; no weight is read."""
