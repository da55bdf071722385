"""A codec is measured by a process of its own: what it has loaded, and its memory, is no other codec's."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

from bench.codec.sample import Piece


def told(module: str, task: dict[str, Any], path: Path) -> tuple[dict[str, Any] | None, bool]:
    """Run a module with a task on its standard input. Return the figures that it prints, and whether it has not failed.

    None: there are no figures, and standard output says why. The traceback of one that fails is on the terminal.
    """
    try:
        answer = run(module, task)
    except (subprocess.CalledProcessError, ValueError) as why:
        print(f"  ! {task['codec']} on {path}: failed: {why}", flush=True)
        return None, False
    if "missing" in answer:
        print(f"  - {task['codec']}: skipped: {answer['missing']}", flush=True)
        return None, True
    return answer, True


def run(module: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run a module with a task on its standard input. Return the JSON that it prints. Raises `CalledProcessError`."""
    done = subprocess.run(
        [sys.executable, "-m", module], input=json.dumps(task), stdout=subprocess.PIPE, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def task_of(name: str, chosen: list[Piece], args: argparse.Namespace) -> dict[str, Any]:
    """Return the task of `bench.codec.child` for one codec."""
    return {"codec": name, "pieces": [astuple(p) for p in chosen], "device": args.device, "threads": args.threads}
