"""Damage: bytes of a store flipped, cut off, replaced. Right bytes or an error, never wrong ones."""
