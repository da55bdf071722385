"""tools/bench_fit [--seconds N] [--base FILE] PATH...: measure the gain of a fitted model for each path's content.

Fits a model to each path on its own, and prints a row: plain bytes, bytes stored with the base and with the fitted
model (each chunk by the classical codec where that is smaller; scaled up from chunks that the fitting has not seen),
the delta, and by how much that is less, the delta counted once and, as a store keeps it, twice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

from nnfs.workers.catalogue import PRESETS, SUFFIX, presets


def fitted(path: str, base: str, seconds: int) -> dict[str, int]:
    """Return the answer of `python -m nnfs.train fit`, whose progress goes to stderr."""
    with tempfile.NamedTemporaryFile(prefix="nnfs-bench-fit-") as delta:
        command = [sys.executable, "-m", "nnfs.train", "fit", "--base", base, "--out", delta.name]
        command += ["--seconds", str(seconds), "--", path]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


def summary(found: dict[str, int]) -> dict[str, float]:
    """Return bytes of all content, scaled up from held-out data, and the saving in percent."""
    plain, delta = found["content_bytes"], found["delta_bytes"]
    base, own = (found[name] * plain // found["held_out_bytes"] for name in ("base_stored", "fitted_stored"))
    once, twice = (100 - 100 * (own + copies * delta) / base for copies in (1, 2))
    return {"plain": plain, "base": base, "fitted": own, "delta": delta, "once": once, "twice": twice}


def row(path: str, found: dict[str, int]) -> str:
    *sizes, once, twice = summary(found).values()
    return f"| {path} | {' | '.join(f'{size:,}' for size in sizes)} | {once:.1f} % | {twice:.1f} % |"


def shipped() -> str:
    """Return the file of the model that is shipped."""
    return f"{PRESETS}/{presets()[0]}{SUFFIX}"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("tools/bench_fit", description=__doc__, formatter_class=raw)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--seconds", type=int, default=1200, help="about how long to fit (default %(default)s)")
    parser.add_argument("--base", help="the model to start from (default: the one that is shipped)")
    arguments = parser.parse_args()
    base = arguments.base or shipped()
    print("| path | plain | stored with base | with fit | delta | less | delta twice |\n|---|---|---|---|---|---|---|")
    for path in arguments.paths:
        print(row(path, fitted(path, base, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
