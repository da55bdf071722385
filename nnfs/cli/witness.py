"""The end of a daemon, judged by its store, since the daemon is not a child of the command that waits for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnfs.cli import client
from nnfs.constants import DATA_FILE
from nnfs.errors import DaemonError, MountError, NotAStore, StoreBusy

ASK_S = 10.0  # for what the daemon tells; an unmount does without it


class Witness:
    """The facts that a daemon told about its store while it lived, and the judgement when it has ended."""

    def __init__(self, store: Path, *, ask: bool = True) -> None:
        self._told: dict[str, Any] = {}
        if ask:
            try:
                self._told = client.ask(store, "status", timeout=ASK_S)
            except (DaemonError, OSError):
                pass
        self._store = Path(self._told.get("store") or store)

    def check_lost(self) -> None:
        """Raise `MountError` if the daemon knew that its data file was gone."""
        if self._told.get("lost"):
            raise self._gone()

    def _gone(self) -> MountError:
        return MountError(
            f"{self._store / DATA_FILE} was deleted or replaced while it was mounted: its content is lost, "
            f"except for what nnfs backup has saved before"
        )

    def check(self) -> None:
        """Raise `MountError` if the daemon has not written everything, or if the file that it wrote to is gone."""
        from nnfs.store.env import Store
        from nnfs.store.whereabouts import identity

        if self._told.get("read_only") == "mounted read-only":
            return
        file = self._store / DATA_FILE
        try:
            is_same = self._told.get("data_file") in (None, identity(os.stat(file)))
            if is_same:
                opened = Store.open(self._store, readonly=True)
        except StoreBusy:
            return  # mounted again already
        except (FileNotFoundError, NotADirectoryError, NotAStore):
            is_same = False
        if not is_same:
            raise self._gone()
        is_clean = opened.state.clean_commit == opened.state.commit
        is_older = opened.state.commit < int(self._told.get("commit", 0))
        opened.close()
        if is_older:
            raise MountError(
                f"{file} was overwritten while it was mounted: what the mount stored is lost, "
                f"except for what nnfs backup has saved before{where_log(self._store, self._told.get('log', ''))}"
            )
        if not is_clean:
            raise MountError(
                f"{self._store}: the daemon could not write everything, or was killed: what was not synced is lost"
                f"{where_log(self._store, self._told.get('log', ''))}"
            )


def where_log(store: Path, told: str = "") -> str:
    """Return the place of a daemon's log, as it told or else the default one, as the end of a message."""
    from nnfs.mount import logs

    if not told:
        file = logs.file_of(store, foreground=False, file=None)
        is_journal = file is None and os.path.exists(logs.JOURNAL_SOCKET)
        told = logs.JOURNAL if is_journal else os.fspath(file) if file is not None and file.exists() else ""
    if told == logs.NOWHERE:
        return ""
    return f"; see its log: {logs.shown(told)}" if told else "; see the log that it was given with --log or -f"
