"""Selection of candidates: decides which files are cold, and which chunks a task takes up."""

from __future__ import annotations

import functools
from collections.abc import Callable

from nnfs.background.encoder import ColdEncoder
from nnfs.background.flight import Aim
from nnfs.background.modelreader import ModelReader
from nnfs.codec.base import FIRST_COLD, NEURAL
from nnfs.config import Options
from nnfs.constants import Policy
from nnfs.fs import policy
from nnfs.fs.candidates import Ages, Look, Walk
from nnfs.fs.policy import Rules
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
        """Go by other options from the next walk on."""
        self._options = options
        self._ages = Ages(int(options.write_age * 1e9), int(options.read_age * 1e9), self._last_read)

    def walk(self, ino: int, aim: Aim) -> Walk:
        """Return a walk over what a task may take up, at and below an inode."""
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
            cold = block.codec >= FIRST_COLD
            if aim.thaw or rules.policy is Policy.HOT:
                return cold
            tried = aim.tries and block.was_tried(number_of_round)
            if not cold:
                return not tried and self._encoder.may_gain(block)
            if block.codec == NEURAL:
                if block.model in retired:
                    return True
                wanted = wanted_model(rules.model)
                other = bool(wanted) and block.model != numbers.get(wanted)
                return other and not tried and (aim.everything or bool(rules.model))
            # The classical codec: where the network may do it, it is given a try, once.
            if not (self._options.neural and wanted_model(rules.model)):
                return False
            may = rules.policy is Policy.COLD or self._encoder.is_fast(NEURAL)
            return not tried and (aim.everything or may)

        return Walk(self._store, ino, rules, functools.partial(_wanted, aim=aim, ages=self._ages), fits)


def _wanted(inode: Inode, rules: Rules, now: int, *, aim: Aim, ages: Ages) -> Look:
    is_settled = bool(inode.flags & Inode.FLAG_SETTLED)
    if aim.marks and is_settled:
        return Look.NO
    if aim.thaw or aim.everything or rules.policy is Policy.HOT or ages.cold(inode, now):
        return Look.YES
    return Look.LATER if is_settled else Look.NO
