"""nnfs: a filesystem that compresses cold data with a neural network and proves every read."""

__version__ = "0.1.0"
