"""Training: the corpus, the trainer, the quantiser. Run by hand (``python -m nnfs.train``), never by a mount."""

from __future__ import annotations
