"""Decoding stored blocks with proof: hot ones at once, cold ones on the ladder of workers (DESIGN.md, "Reads").

The ladder of a cold block, whose stored bytes have their XXH3-64: the first worker decodes it, and if its
result does not have the block's BLAKE2b-512 (a device that errs, a bug of an engine), or if it cannot decode, the
reference worker does. The block is damaged only if the reference gives wrong bytes or refuses the payload.
"""

from __future__ import annotations

from collections.abc import Iterator

from nnfs import codec
from nnfs.errors import BlockDamaged, CodecError, CodecUnavailable, ModelMissing, NnfsError, WorkerError, again
from nnfs.proof import WRONG_CONTENT, has_content, wrong_length
from nnfs.store.schema import Block

REFERENCE = "reference"  # the worker with another engine: on the CPU, with one thread


def decode_hot(number: int, block: Block, payload: bytes) -> bytes:
    """Return the plain bytes of a hot block, proved. Raises `BlockDamaged`."""
    wrong = wrong_length(payload, block.stored)
    if wrong:
        raise BlockDamaged(number, wrong)
    try:
        plain = codec.decode(block.codec, payload, block.plain)
    except CodecError as error:
        raise BlockDamaged(number, f"it cannot be decoded: {error}") from error
    if not has_content(plain, block.hash):
        raise BlockDamaged(number, WRONG_CONTENT)
    return plain


class Ladder:
    """The decoding of one cold block. Iterating yields the workers to ask, until one has decoded it.

    ::

        for worker in ladder:
            ladder.judge(worker, <its answer>)
        plain = ladder.result()
    """

    def __init__(self, number: int, block: Block, worker: str) -> None:
        self.number, self.block = number, block
        self.failures: dict[str, NnfsError] = {}  # by worker, in the order in which they were asked
        self.first = worker
        self._plain: bytes | None = None

    def __iter__(self) -> Iterator[str]:
        for worker in dict.fromkeys((self.first, REFERENCE)):
            yield worker
            if self._plain is not None or isinstance(self.failures.get(worker), ModelMissing):
                return

    def judge(self, worker: str, answer: object) -> None:
        """Take in a worker's answer: the plain bytes, or the error without frames (`errors.kept`)."""
        if isinstance(answer, NnfsError):
            self.failures[worker] = answer
        elif has_content(answer, self.block.hash):
            self._plain = answer
        else:
            self.failures[worker] = BlockDamaged(self.number, WRONG_CONTENT)

    @property
    def why(self) -> str:
        """The errors of the workers that have failed, each once, as text."""
        return "; ".join(dict.fromkeys(map(str, self.failures.values())))

    @property
    def has_erred(self) -> bool:
        """Whether the reference has decoded the block after the first worker's answer was wrong."""
        first = self.failures.get(self.first)
        return self._plain is not None and first is not None and not isinstance(first, WorkerError)

    def result(self) -> bytes:
        """Return the plain bytes. Raises `BlockDamaged`, `ModelMissing`; `WorkerError` when no worker could tell."""
        if self._plain is not None:
            return self._plain
        error = list(self.failures.values())[-1]
        if isinstance(error, WorkerError):
            kind = CodecUnavailable if isinstance(error, CodecUnavailable) else WorkerError
            raise kind(f"block {self.number} cannot be decoded: {self.why}")
        if isinstance(error, BlockDamaged | ModelMissing):
            raise again(error)
        raise BlockDamaged(self.number, f"it cannot be decoded: {self.why}")
