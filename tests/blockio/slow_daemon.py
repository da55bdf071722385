"""A daemon whose workers serve the fake codec of `tests.workers.kit`: payloads are plain content turned round.

`python slow_daemon.py STORE MNT OPTIONS` runs in the foreground.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from nnfs.blockio.cold import specs
from nnfs.config import Options
from nnfs.mount import daemon, logs
from nnfs.workers.pool import WorkerSpec
from tests.workers.kit import SERVE


def fake_specs(options: Options) -> list[WorkerSpec]:
    """The workers of a mount, but for what they serve; tests stop them for as long as they want."""
    return [replace(spec, serve=SERVE, hang_s=600.0) for spec in specs(options)]


if __name__ == "__main__":
    daemon.specs = fake_specs  # type: ignore[attr-defined]
    logs.configure(Path(sys.argv[1]), foreground=True)
    options = [word for word in sys.argv[3:] if word != "-o"]
    sys.exit(daemon.run(Path(sys.argv[1]), Path(sys.argv[2]), options, lambda: None))
