"""The integer arithmetic of profile 1: the unit of each stored or intermediate integer.

Every sum is exact in int32, and in float32 too (|sum| < 2^24), so products may run on any unit of any device, in any
order, with any batch. All the rest is adds, shifts, multiplications that fit 32 or 64 bits, floor divisions of
integers and one correctly rounded float64 square root.

================  =============================================================================
integers          one step is worth
================  =============================================================================
embedding         1/64 (EMBEDDING_UNIT)
residual stream   1/1024 (RESIDUAL_UNIT), clamped to 18 bits so that its squares sum exactly
norm, q, k, v     1/32 (ACT_UNIT), +-127
score             1/4096 nat (SCORE_UNIT): q . k has 1/1024, and a quarter of it is the score
hidden            1/64 (HIDDEN_UNIT), 0..255, squared and shifted to 1/8 (SQUARE_UNIT), 0..127
logit             1/256 nat (LOGIT_UNIT)
attention weight  2047 for the greatest score of the window (64 * 2047 * 127 < 2^24)
frequency         2^20 for the likeliest byte, plus 1
================  =============================================================================
"""

from __future__ import annotations

import math

ACT_UNIT = 32
ACT_LIMIT = 127
EMBEDDING_UNIT = 64
EMBEDDING_SHIFT = 4  # embedding to residual
EMBEDDING_LIMIT = 127 / EMBEDDING_UNIT
RESIDUAL_UNIT = 1024
RESIDUAL_LIMIT = (1 << 18) - 1
SCORE_UNIT = 4096
HIDDEN_UNIT = 64
HIDDEN_LIMIT = 255
SQUARE_UNIT = 8
SQUARE_SHIFT = 9  # (1/64)^2 to 1/8
LOGIT_UNIT = 256

# Tables of exp(-i / 64), i < TABLE: stored with the model, indexed by differences shifted to 1/64 nat.
TABLE = 1024
SCORE_SHIFT = 6
LOGIT_SHIFT = 2
ATTENTION_TOP = 2047
FREQUENCY_TOP = 1 << 20

# A product's sums become the next integers as ((sum + half) >> pre) * multiplier, rounded and shifted right by `shift`:
# |sum| >> pre is below 2^16 and the multiplier below 2^15, so it all fits int32.
MULTIPLIER_LIMIT = (1 << 15) - 1
MAX_SHIFT = 24


def pre_shift(inputs: int) -> int:
    """Return how far a sum of `inputs` products of +-127 is shifted before it is multiplied."""
    return max(0, (inputs * 127 * 127).bit_length() - 16)


def norm_numerator(width: int) -> int:
    """Return the constant that a norm divides by a root: ACT_UNIT sqrt(width) 2^32."""
    return math.isqrt(ACT_UNIT**2 * width << 64)
