"""The sizes of the mixer, and the state of one chunk."""

from __future__ import annotations

from typing import Any, NamedTuple

from nnfs.mixer.contexts import CONTEXTS

MATCHES = 2
INPUTS = 2 * CONTEXTS + MATCHES + 2
NETWORK = INPUTS - 2  # index of the network's input; the last is constant
SETS = 4
SET_STARTS = (0, 16, 272, 528)
WEIGHTS = 592
REFINED = 256 + 4096
LEAST = (6, 16)  # bytes hashed by the match models
FIND_BITS = 16

# Parameters, a row of int64 per chunk
P_SIZE, P_LANES, P_STRIDE, P_TABLE, P_RATE, P_RATE_LAST, P_MAP_LIMIT, P_REFINE_LIMIT = 0, 1, 2, 3, 4, 5, 6, 7
P_BEGIN = 8  # where the chunk begins in `plain`: behind the model's dictionary, if it has one
PARAMETERS = 9


class Mix(NamedTuple):
    """The state of one chunk; stacked, with one more axis in front, that of many (`nnfs.mixer.state`)."""

    plain: Any  # (begin + size,) uint8: the dictionary, then the chunk's bytes, as far as they are known
    table: Any  # (lines * 16,) uint8: check byte and 15 bit histories per line
    maps: Any  # (CONTEXTS, 256) uint32: probability (22 bits) and count (10) by history
    match_maps: Any  # (MATCHES, 512) uint32: that the expected bit is right, by length and misses
    weights: Any  # (WEIGHTS, INPUTS) int32, 1/65536
    weights_last: Any  # (256, SETS) int32, 1/65536
    refine: Any  # (REFINED, CERTAIN) uint32: as in maps
    find: Any  # (MATCHES, 2^FIND_BITS) int32: position + 1 by hash of the bytes before
    record: Any  # (lanes, RECORD) int64
    hashed: Any  # (lanes, CONTEXTS) int64
    lines: Any  # (lanes, 2 * CONTEXTS) int64: where the histories of each nibble were found, -1: nowhere
    inputs: Any  # (lanes, 8, INPUTS) int32
    seen: Any  # (lanes, 8, CONTEXTS) uint8: bit histories used
    keys: Any  # (lanes, 8, 16) int32: sets chosen, answers of the sets, places in the maps
    partial: Any  # (2, lanes) int64: of a column being decoded, the bits so far and what the network gives them
    parameters: Any  # (PARAMETERS,) int64
