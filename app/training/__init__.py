"""driver (TorchTrainer) → worker (Ray glue) → loop (torch only) → optim, checkpoint."""
