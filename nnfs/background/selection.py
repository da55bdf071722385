"""Selection of candidates: decides which files are cold, and which chunks a task takes up."""

from __future__ import annotations

import functools
from collections.abc import Callable

from nnfs.background.encoder import ColdEncoder
from nnfs.background.flight import Aim
from nnfs.background.modelreader import ModelReader
from nnfs.codec.base import FIRST_COLD, NEURAL, rung
from nnfs.config import Options
from nnfs.constants import ROOT_INO, Policy
from nnfs.fs import policy
from nnfs.fs.candidates import Ages, Look, Walk
from nnfs.fs.policy import Rules
from nnfs.fs.swapping import ALL_RUNGS
from nnfs.store import modelfiles
from nnfs.store.env import Store
from nnfs.store.schema import Block, Inode


class Selection:
    """Joins ages, policies and models. `last_read` gives the time of an inode's last read in this mount, in ns."""

    def __init__(
        self, store: Store, known: ModelReader, encoder: ColdEncoder, options: Options, last_read: Callable[[int], int]
    ) -> None:
        self._store, self._models, self._encoder, self._last_read = store, known, encoder, last_read
        self.set_options(options)
        self.retired: set[int] = set()  # models whose blocks are to be recompressed, at the time of the last walk

    def set_options(self, options: Options) -> None:
        """Take over other options, from the next walk on."""
        self._options = options
        self._ages = Ages(int(options.write_age * 1e9), int(options.read_age * 1e9), self._last_read)

    def walk(self, ino: int, aim: Aim) -> Walk:
        """Return a walk over the candidates of a task at and below an inode."""
        mount = Rules(Policy(self._options.policy))
        with self._store.read() as snapshot:
            rules, _ = policy.inherited(snapshot, ino, mount, aim.parent)
            known = modelfiles.models(snapshot)
        numbers = {model.fingerprint: number for number, model in known.items()}
        self.retired = retired = {number for number, model in known.items() if model.retired}

        wanted_model = functools.cache(self._models.wanted)
        number_of_round = self._store.state.round

        def fits(block: Block, rules: Rules) -> bool:
            """Return whether a block should have another codec or model."""
            is_cold = block.codec >= FIRST_COLD
            if aim.thaw or rules.policy is Policy.HOT:
                return is_cold
            is_final = not aim.rung or aim.rung >= top(rules)
            if block.model in retired:
                return is_final
            if (aim.tries and block.was_tried(number_of_round)) or not aim.band.has(block):
                return False
            if not is_cold:
                return self._encoder.may_gain(block)
            if block.codec == NEURAL:
                wanted = wanted_model(rules.model)
                other = bool(wanted) and block.model != numbers.get(wanted)
                return other and is_final and (aim.everything or bool(rules.model))
            return rung(block.codec) < min(aim.rung or ALL_RUNGS, top(rules))

        @functools.cache
        def top(rules: Rules) -> int:
            return self._encoder.top(rules, everything=aim.everything)

        def wanted(inode: Inode, rules: Rules, now: int) -> Look | None:
            return self._look(inode, rules, now, aim, top(rules))

        kept = ino == ROOT_INO and not aim.thaw and rules.policy is not Policy.NEVER
        return Walk(self._store, ino, rules, wanted, fits, kept=kept)

    def _look(self, inode: Inode, rules: Rules, now: int, aim: Aim, top: int) -> Look | None:
        """Return how a task treats a file; `top` is the slowest rung that its chunks may get."""
        marked = ALL_RUNGS if inode.flags & Inode.FLAG_SETTLED else inode.rung
        if aim.marks and marked >= (aim.rung or ALL_RUNGS):
            return None
        to_hot = aim.thaw or rules.policy is Policy.HOT
        if not (to_hot or aim.everything or self._ages.cold(inode, now)):
            return Look(now=False) if marked and not aim.marks else None
        kept = marked if aim.marks or aim.everything else 0
        if not aim.band.is_last:  # some of its chunks are left out
            return Look(now=True, rung=kept)
        is_all = to_hot or not aim.rung or aim.rung >= top
        return Look(now=True, rung=ALL_RUNGS if is_all else max(kept, aim.rung))
