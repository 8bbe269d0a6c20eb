"""Training on torch alone: the loop, one step, the optimizer, parallelism and checkpoints."""
