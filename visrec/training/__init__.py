"""The training loop, its batches, optimizer and checkpoints, and the Ray Train wiring."""
