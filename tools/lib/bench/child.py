"""One measurement, in a process of its own: `python -m bench.child TABLE FOLDER`, its task and answer in the folder.

The code that measures is always this checkout's; the nnfs that is measured is the one that PYTHONPATH leads to. So
what is measured must exist there by the same name: modules that have moved since are found by `follow_moves`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from bench.table import Answer, Missing, Task

MOVED = {  # modules of today, and where their functions were before
    "nnfs.workers": "nnfs.codec",
    "nnfs.workers.startup": "nnfs.workers.worker",
}


def follow_moves() -> None:
    """Let today's module names find the modules of an older commit."""
    for name, earlier in MOVED.items():
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = importlib.import_module(earlier)


def answered(table: str, task: Task) -> Answer:
    """Measure a case, and return its lines or its problem."""
    try:
        from bench.tables import named

        return Answer(tuple(named(table).measure(task)))
    except (ImportError, Missing) as why:
        return Answer(problem=str(why), is_missing=True)
    except Exception as why:  # noqa: BLE001 - shown in its row, and the next one is measured
        traceback.print_exc()
        return Answer(problem=f"{type(why).__name__}: {why}")


def main() -> None:
    table, folder = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the context managers: unmount, clean up
    follow_moves()
    task: Task = json.loads(Path(folder, "task").read_text())
    Path(folder, "answer").write_text(json.dumps(asdict(answered(table, task))))


if __name__ == "__main__":
    main()
