"""The architecture of a network: the numbers that training, inference and the model file share."""

from __future__ import annotations

import dataclasses
import json
from typing import Self

from nnfs.errors import ModelMissing

BYTES = 256
START = 256  # the input "byte" at the start of a lane

# Candidates: bytes that the chunk's own past proposes. One for each order of context, then one from the match model.
ORDERS = (1, 2, 3, 4, 6)
RUN_BUCKETS = 4  # how often in a row this byte followed the context: 1, 2, 3-5, 6 and more
MATCH_BUCKETS = 16  # length of the match, see `features.match_bucket`
CANDIDATES = len(ORDERS) + 1
AGES = 18  # log2 of the bytes of the chunk that are known

# Rows of the table of input embeddings: the last byte, the age, one block for each candidate (its row 0: no candidate).
AGE_ROW = BYTES + 1
ORDER_ROW = AGE_ROW + AGES
ORDER_ROWS = 1 + BYTES * RUN_BUCKETS
MATCH_ROW = ORDER_ROW + len(ORDERS) * ORDER_ROWS
INPUT_ROWS = MATCH_ROW + 1 + BYTES * MATCH_BUCKETS
INPUTS = 2 + CANDIDATES  # rows that are summed for one position

# Rows of the vector of output biases: one for each bucket of each candidate; row 0 is "no candidate" and stays 0.
MATCH_BIAS = 1 + len(ORDERS) * RUN_BUCKETS
BIASES = MATCH_BIAS + MATCH_BUCKETS

# The most that float32 sums exactly: inputs of a product, 127 * 127 each; positions of attention, 2047 * 127 each
MOST_INPUTS = 1040
MOST_WINDOW = 64
HEAD, WINDOW = 32, 64  # the sizes that the attention kernels are compiled for
MOST_NGRAM_BITS = 24

# Hashed n-grams, by which tables of embeddings are looked up. "word" hashes the letters since the last non-letter.
NGRAMS = ("2", "3", "4", "6", "word")


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of one network. Saved with its weights; a change of meaning raises `profile`."""

    width: int = 256  # of the residual stream
    layers: int = 4
    heads: int = 8  # of queries
    kv_heads: int = 2  # of keys and values, each shared by heads // kv_heads queries (grouped-query attention)
    head: int = 32  # width of one head
    window: int = 64  # positions that attention sees, its own included
    hidden: int = 1024  # width inside the feed-forward part
    ngram_bits: int = 15  # log2 of the rows of each n-gram table
    ngram_widths: tuple[int, ...] = (64, 64, 64, 32, 32)  # side by side they fill `width`
    profile: int = 1  # of the integer arithmetic and the features

    def __post_init__(self) -> None:
        """Raise `ModelMissing` for a network that this nnfs cannot run."""
        if self.profile != 1:
            raise ModelMissing(
                f"the model wants numeric profile {self.profile}, this nnfs knows 1: install a newer nnfs"
            )
        sizes = (self.width, self.layers, self.heads, self.kv_heads, self.head, self.window, self.hidden)
        if not all(type(size) is int and 0 < size <= MOST_INPUTS for size in sizes + self.ngram_widths):
            raise ModelMissing("a size of the network is no number, or out of range")
        if type(self.ngram_bits) is not int or not 0 < self.ngram_bits <= MOST_NGRAM_BITS:
            raise ModelMissing("the network's n-gram tables have an impossible size")
        if sum(self.ngram_widths) != self.width or len(self.ngram_widths) != len(NGRAMS):
            raise ModelMissing("the widths of the n-gram tables do not fill the network's width")
        if self.heads % self.kv_heads or self.heads * self.head > MOST_INPUTS or self.window > MOST_WINDOW:
            raise ModelMissing("the network's sizes do not keep its sums exact in float32")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the architecture that `text` describes. Raises `ModelMissing` for one that this nnfs cannot run."""
        try:
            fields = json.loads(text)
            fields["ngram_widths"] = tuple(fields["ngram_widths"])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ModelMissing(f"not the description of a network: {error}") from error
