"""Training: state, sharded step, loop, checkpoints, run folder and report."""
