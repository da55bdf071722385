"""A daemon's control socket that answers what a test says."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnfs.constants import SOCKET_NAME
from nnfs.errors import NnfsError
from nnfs.mount.control import short_name

Answer = dict[str, Any] | NnfsError

JOB = {
    "job": 3, "kind": "compact", "path": "", "note": "", "state": "running", "phase": "compressing",
    "done_bytes": 0, "total_bytes": 1000,
    "done_chunks": 0, "total_chunks": 10, "stored_before": 0, "stored_after": 0, "cold_chunks": 0, "failed_chunks": 0,
    "seconds": 1.0, "rate": 0.0, "eta": None, "error": "", "exit": 0, "result": {},
}  # fmt: skip


def job(**fields: Any) -> dict[str, Any]:
    """The answer to `job`."""
    return {**JOB, **fields}


class FakeDaemon:
    """Answers each command with the next of its answers, the last one again and again; keeps the requests."""

    def __init__(self, store: Path, **answers: Answer | Sequence[Answer]) -> None:
        self.answers = {
            name: [value] if isinstance(value, (dict, NnfsError)) else [*value] for name, value in answers.items()
        }
        self.answers.setdefault("status", [{}])
        self.requests: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_name(store / SOCKET_NAME) as name:
            self._socket.bind(name)
        self._socket.listen()
        self._path = store / SOCKET_NAME
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> FakeDaemon:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        self._path.unlink()

    def asked(self, command: str) -> list[dict[str, Any]]:
        """The requests of one command, without its name."""
        found = [request for request in self.requests if request["command"] == command]
        return [{name: value for name, value in request.items() if name != "command"} for request in found]

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client, client.makefile("rwb") as stream, contextlib.suppress(BrokenPipeError):
                for line in stream:
                    stream.write(json.dumps(self._answer(json.loads(line))).encode() + b"\n")
                    stream.flush()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        left = self.answers.get(request["command"])
        if left is None:
            return {"ok": False, "error": "not a command of this version of nnfs", "exit": 2}
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, NnfsError):
            return {"ok": False, "error": str(answer), "exit": answer.exit_code}
        return {"ok": True, **answer}
