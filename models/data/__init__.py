"""Data sets, their images, and the batches and augmentation of training."""
