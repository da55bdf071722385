"""A second decoder, as the FORMAT documents say: plain Python, numpy for arrays, nothing of nnfs.

It shows that the documents stand alone, so it does what they say in their words and is slow: section numbers in the
comments are those of `nnfs/codec/FORMAT.md`. `payloads` decodes a payload, `store` reads a store.
"""
