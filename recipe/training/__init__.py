"""The training loop: packed data set, Trainer, callbacks, checkpoints."""
