"""One chunk at a time through a worker process."""

from __future__ import annotations

import argparse


def main(_args: argparse.Namespace) -> int:
    raise SystemExit("bench_codec: --latency: no worker yet")
