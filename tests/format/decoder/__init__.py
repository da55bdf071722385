"""A second decoder, written from the FORMAT documents alone: plain Python, numpy for arrays, nothing of nnfs.

It is the proof that the documents stand alone, so it is slow and says what they say in their order: section numbers in
the comments are those of `nnfs/codec/FORMAT.md`. `payloads` decodes a payload, `store` reads a store.
"""
