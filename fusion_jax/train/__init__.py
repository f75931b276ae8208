"""Training: objectives, sharded step, loop, checkpoints, reference. Nothing here that does not train."""
