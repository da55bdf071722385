"""The commands `nnfs model` and `nnfs train`: the models that a store keeps."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnfs import names
from nnfs.cli import client, progress, tables
from nnfs.cli.ending import cleared_up
from nnfs.cli.locate import Place, check_answers, locate
from nnfs.errors import UsageError, WorkerError
from nnfs.mount.table import resolve

COPIES = 2  # of every model in a store
DIGITS = 16  # of a fingerprint that are shown


def list_models(args: argparse.Namespace) -> int:
    """Print the models of the store, and how much was encoded with each."""
    answer = client.ask(locate(args.path).store, "models")
    if args.json:
        tables.printed_json(answer)
        return 0
    lines, default = answer["models"], answer["default"]
    rows = [
        [
            str(line["number"]), line["fingerprint"][:DIGITS], _kind(line, default), tables.size(line["bytes"]),
            str(line["blocks"]), tables.size(line["plain_bytes"]), tables.size(line["stored_bytes"]),
            tables.ratio(line["plain_bytes"], line["stored_bytes"]), line["copies"],
        ]
        for line in lines
    ]  # fmt: skip
    if rows:
        head = ["model", "fingerprint", "kind", "bytes", "chunks", "plain", "stored", "ratio", "copies"]
        print(tables.table(head, rows, left=3))
    if default and default not in {line["fingerprint"] for line in lines}:
        print(f"the default model {default[:DIGITS]} comes into the store when it is first used")
    return 0


def _kind(line: dict[str, Any], default: str) -> str:
    words = [f"fitted to {line['base']}" if line["base"] else "whole"]
    words += ["retired"] if line["retired"] else ["default"] if line["fingerprint"] == default else []
    return ", ".join(words)


def add(args: argparse.Namespace) -> int:
    """Put the file of a model into the store."""
    place = locate(args.path, follow=True)
    check_answers(args.file)
    file = Path(resolve(args.file))
    if not file.is_file():
        raise UsageError(f"{args.file} is not a file: give the file of a model, as tools/train makes it")
    answer = client.ask(place.store, "model_add", timeout=None, file=os.fspath(file), **_directory(place, args.use))
    use = f"; {names.printable(place.path)} is encoded with it from now on" if args.use else ""
    print(f"model {answer['number']}: {answer['fingerprint'][:DIGITS]}{use}")
    return 0


def _directory(place: Place, wanted: bool) -> dict[str, int]:
    if not wanted:
        return {}
    if not place.is_inside or not place.path.is_dir():
        raise UsageError(f"{place.path} is not a directory on a mount: --use needs one")
    return {"ino": progress.ino_of(place)}


def retire(args: argparse.Namespace) -> int:
    """Retire a model: nothing more is encoded with it, and its files go with the last block that needs it."""
    place = locate(args.path)
    line = _named(client.ask(place.store, "models")["models"], args.fingerprint)
    client.ask(place.store, "model_retire", fingerprint=line["fingerprint"])
    name = line["fingerprint"][:DIGITS]
    if line["blocks"]:
        path = names.shell(args.path)
        print(f"{name} is retired; {line['blocks']} chunks still need it: nnfs compact {path} --all recompresses them")
    else:
        print(f"{name} is retired")
    return 0


def _named(lines: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """Return the model whose fingerprint begins with `text`. Raises `UsageError`."""
    found = [line for line in lines if line["fingerprint"].startswith(text.lower())] if text else []
    if len(found) != 1:
        known = ", ".join(line["fingerprint"][:DIGITS] for line in lines) or "none"
        raise UsageError(f"{text!r} names {'several models' if found else 'no model'} of the store; it has: {known}")
    return found[0]


@dataclass(frozen=True)
class Fit:
    """The result of a training run on data that was held out. All fields are in bytes."""

    held_out: int
    base_stored: int
    fitted_stored: int
    delta: int
    below: int  # plain bytes below the directory

    @property
    def gain(self) -> int:
        """Return the bytes that the fitted model would save below the directory."""
        return (self.base_stored - self.fitted_stored) * self.below // self.held_out

    @property
    def cost(self) -> int:
        """Return the bytes that the model itself takes."""
        return COPIES * self.delta


def train(args: argparse.Namespace) -> int:
    """Fit the default model to the files below a directory, and keep it if it saves more than it takes."""
    place = locate(args.path, follow=True)
    if not place.is_inside or not place.path.is_dir():
        raise UsageError(f"{args.path} is not a directory on a mount: give one whose files are alike")
    read_only = client.ask(place.store, "status").get("read_only")
    if read_only:
        why = "" if read_only is True else f" ({read_only})"
        raise UsageError(f"the mount of {args.path} is read-only{why}: no model can be kept there")
    below = int(client.ask(place.store, "stat", timeout=None, ino=progress.ino_of(place))["plain_bytes"])
    if not below:
        raise UsageError(f"there is nothing below {args.path} to learn from")
    with cleared_up(), tempfile.TemporaryDirectory(prefix="nnfs-train-") as folder:
        delta = os.path.join(folder, "delta.safetensors")
        found = _fitted(place.path, delta, args.seconds)
        fit = _measured(found, below)
        kept = args.keep_always or fit.gain > fit.cost
        if kept:
            answer = client.ask(place.store, "model_add", timeout=None, file=delta, ino=progress.ino_of(place))
            found = {**found, **answer}
    if not args.json:
        _say(fit, found, kept, place)
    task = None
    if kept and args.wait:
        request = {"ino": progress.ino_of(place), "all": True, "dry_run": False}
        task = progress.follow(place, client.ask(place.store, "compact", path=os.fspath(place.path), **request)["job"])
    if args.json:
        answer = {**found, "plain_bytes": below, "gain": fit.gain, "cost": fit.cost, "kept": kept, "compact": task}
        tables.printed_json(answer)
    elif task is not None and task["state"] == "done":
        print(progress.summary(task, place))
    return progress.end_of(task) if task is not None else 0


def _say(fit: Fit, found: dict[str, Any], kept: bool, place: Place) -> None:
    before, after = (tables.bits(fit.held_out, stored) for stored in (fit.base_stored, fit.fitted_stored))
    print(f"held out: {tables.size(fit.held_out)}, {before} bits/byte with the default model, {after} fitted")
    path, gain = names.printable(place.path), tables.size(max(fit.gain, 0))
    print(f"below {path}: {tables.size(fit.below)}; about {gain} less")
    print(f"the model takes {tables.size(fit.cost)}, {COPIES} copies")
    if kept:
        print(
            f"kept as model {found['number']}; nnfs compact {progress.shell(place)} --all recompresses the files there"
        )
    else:
        print("not kept: it takes more than it saves (--keep-always keeps it anyway)")


def _fitted(path: Path, delta: str, seconds: int) -> dict[str, Any]:
    """Run the training as a child process, which prints its progress on stderr. Raises `WorkerError`."""
    from nnfs.cli.mounting import environment
    from nnfs.workers.catalogue import PRESETS, SUFFIX, presets

    shipped = presets()
    if not shipped:
        raise WorkerError("this nnfs has no shipped model: there is nothing to start from")
    base = os.path.join(PRESETS, shipped[0] + SUFFIX)
    command = [sys.executable, "-P", "-m", "nnfs.train", "fit", "--base", base, "--out", delta]
    command += ["--seconds", str(seconds), "--", os.fspath(path)]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise WorkerError(f"the training failed (exit status {done.returncode}): it says why above")
    try:
        found = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise WorkerError("the training gave an answer that is not understood")
    return found


def _measured(found: dict[str, Any], below: int) -> Fit:
    try:
        fields = ("held_out_bytes", "base_stored", "fitted_stored", "delta_bytes")
        held_out, before, after, delta = (int(found[name]) for name in fields)
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerError("the training gave an answer that is not understood") from error
    if held_out <= 0:
        raise UsageError("there is too little to learn from: no data could be held out")
    return Fit(held_out, before, after, delta, below)
