"""`nnfs model` and `nnfs train`, against a control socket and a training that say what a test wants."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest

from nnfs.errors import ModelMissing, OutOfSpace
from tests.cli.conftest import Run
from tests.cli.kit import FakeDaemon, job

WHOLE, FITTED = "ab" * 64, "ac" * 64
LINES = [
    {"number": 1, "fingerprint": WHOLE, "base": 0, "bytes": 13_900_000, "retired": False, "added": 0, "blocks": 10,
     "plain_bytes": 1 << 20, "stored_bytes": 1 << 18, "copies": "ok"},
    {"number": 2, "fingerprint": FITTED, "base": 1, "bytes": 3000, "retired": True, "added": 0, "blocks": 0,
     "plain_bytes": 0, "stored_bytes": 0, "copies": "1 damaged"},
]  # fmt: skip
LIST: dict[str, Any] = {"models": LINES, "default": WHOLE}


def test_the_list(store: Path, run: Run) -> None:
    with FakeDaemon(store, models=LIST):
        status, out, _ = run("model", "list", store)
        assert json.loads(run("model", "list", store, "--json")[1]) == LIST
    assert status == 0
    head, first, second = out.splitlines()
    assert head.split()[:3] == ["model", "fingerprint", "kind"]
    assert first.split()[:4] == ["1", WHOLE[:16], "whole,", "default"]
    assert "4.00" in first
    assert "fitted to 1, retired" in second
    assert "1 damaged" in second


def test_the_list_of_a_store_without_models(store: Path, run: Run) -> None:
    with FakeDaemon(store, models={"models": [], "default": WHOLE}):
        assert run("model", "list", store)[1] == (
            f"the default model {WHOLE[:16]} comes into the store when it is first used\n"
        )


def test_adding(store: Path, mnt: Path, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with FakeDaemon(store, model_add={"number": 3, "fingerprint": FITTED}) as daemon:
        assert run("model", "add", mnt, file) == (0, f"model 3: {FITTED[:16]}\n", "")
        assert "is encoded with it from now on" in run("model", "add", mnt, file, "--use")[1]
    assert daemon.asked("model_add") == [{"file": str(file)}, {"file": str(file), "ino": mnt.stat().st_ino}]


def test_adding_what_is_none(store: Path, mnt: Path, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "model.safetensors"
    status, _, err = run("model", "add", mnt, file)
    assert status == 2
    assert "is not a file" in err
    file.touch()
    assert "is not a directory on a mount" in run("model", "add", file, file, "--use")[2]
    for error in (ModelMissing("no model file"), OutOfSpace("no space for it")):
        with FakeDaemon(store, model_add=error):
            assert run("model", "add", mnt, file) == (error.exit_code, "", f"nnfs: {error}\n")


def test_retiring(store: Path, run: Run) -> None:
    with FakeDaemon(store, models=LIST, model_retire={}) as daemon:
        assert f"{WHOLE[:16]} is retired; 10 chunks still need it" in run("model", "retire", store, "AB")[1]
        assert run("model", "retire", store, FITTED)[1] == f"{FITTED[:16]} is retired\n"
    assert daemon.asked("model_retire") == [{"fingerprint": WHOLE}, {"fingerprint": FITTED}]


@pytest.mark.parametrize(("text", "message"), [("a", "several models"), ("ff", "no model"), ("", "no model")])
def test_retiring_what_has_no_such_name(text: str, message: str, store: Path, run: Run) -> None:
    with FakeDaemon(store, models=LIST, model_retire={}) as daemon:
        status, _, err = run("model", "retire", store, text)
    assert status == 2
    assert message in err
    assert WHOLE[:16] in err
    assert daemon.asked("model_retire") == []


@pytest.mark.parametrize("args", [["list"], ["retire", "ab"]])
def test_nobody_answers(args: list[str], store: Path, run: Run) -> None:
    status, _, err = run("model", args[0], store, *args[1:])
    assert status == 13
    assert "no daemon answers" in err


@pytest.mark.parametrize("args", [["model"], ["model", "nonsense", "/"], ["model", "add", "/"], ["train"]])
def test_wrong_usage(args: list[str], run: Run) -> None:
    assert run(*args)[0] == 2


# -- train

FOUND = {
    "sample_bytes": 1 << 20, "held_out_bytes": 1000, "base_stored": 100, "fitted_stored": 80, "delta_bytes": 4000,
    "fingerprint": FITTED, "base": WHOLE,
}  # fmt: skip
ADDED = {"number": 2, "fingerprint": FITTED}


class Training:
    """Stand in for `subprocess.run` in `nnfs train`."""

    def __init__(self, answer: object = FOUND, status: int = 0) -> None:
        self.answer, self.status = answer, status
        self.command: list[str] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.command = command
        Path(command[command.index("--out") + 1]).write_bytes(b"delta")
        text = self.answer if isinstance(self.answer, str) else json.dumps(self.answer)
        return subprocess.CompletedProcess(command, self.status, f"a line before it\n{text}\n")


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    training = Training()
    monkeypatch.setattr("nnfs.cli.models.subprocess.run", training)
    return training


def test_what_pays_is_kept(store: Path, mnt: Path, run: Run, training: Training) -> None:
    with FakeDaemon(store, stat={"plain_bytes": 1_000_000}, model_add=ADDED) as daemon:
        status, out, _ = run("train", mnt, "--seconds", 7)
        assert status == 0
        assert "0.800 bits/byte with the default model, 0.640 fitted" in out
        assert "about 19.5 KiB less" in out
        assert "takes 7.81 KiB, 2 copies" in out
        assert "kept as model 2" in out
        answer = json.loads(run("train", mnt, "--json")[1])
    assert (answer["gain"], answer["cost"], answer["kept"], answer["number"]) == (20_000, 8000, True, 2)
    asked = daemon.asked("model_add")[0]
    assert asked["ino"] == mnt.stat().st_ino
    assert not Path(asked["file"]).exists()
    assert daemon.asked("compact") == []
    command = training.command
    assert command[command.index("-m") + 1 :][:2] == ["nnfs.train", "fit"]
    assert Path(command[command.index("--base") + 1]).is_file()
    assert command[-2:] == ["--", str(mnt)]


@pytest.mark.parametrize("below", [1, 399_999])
def test_what_does_not_pay_is_not_kept(below: int, store: Path, mnt: Path, run: Run, training: Training) -> None:
    with FakeDaemon(store, stat={"plain_bytes": below}, model_add=ADDED) as daemon:
        status, out, _ = run("train", mnt, "--wait")
        assert status == 0
        assert "not kept" in out
        assert daemon.asked("model_add") == []
        assert "kept as model 2" in run("train", mnt, "--keep-always")[1]


def test_a_model_that_is_worse_saves_nothing(store: Path, mnt: Path, run: Run, training: Training) -> None:
    training.answer = {**FOUND, "fitted_stored": 120}
    with FakeDaemon(store, stat={"plain_bytes": 10**9}):
        assert "about 0 B less" in run("train", mnt)[1]


def test_waiting_recompresses(store: Path, mnt: Path, run: Run, training: Training) -> None:
    ended = job(state="done")
    answers: dict[str, Any] = {"stat": {"plain_bytes": 10**6}, "model_add": ADDED, "compact": {"job": 3}, "job": ended}
    with FakeDaemon(store, **answers) as daemon:
        status, out, _ = run("train", mnt, "--wait")
        assert status == 0
        assert "compact: 0 chunks" in out
        assert json.loads(run("train", mnt, "--wait", "--json")[1])["compact"] == ended
    asked = {"path": str(mnt), "ino": mnt.stat().st_ino, "all": True, "dry_run": False}
    assert daemon.asked("compact") == [asked] * 2
    with FakeDaemon(store, **{**answers, "job": job(state="failed", error="died", exit=14)}):
        assert run("train", mnt, "--wait")[0] == 14


@pytest.mark.parametrize("answer", ["", "[1]", "{}", {**FOUND, "base_stored": None}, {**FOUND, "delta_bytes": "x"}])
def test_a_training_that_talks_nonsense(answer: object, store: Path, mnt: Path, run: Run, training: Training) -> None:
    training.answer = answer
    with FakeDaemon(store, stat={"plain_bytes": 1000}):
        status, _, err = run("train", mnt)
    assert status == 14
    assert "an answer that is not understood" in err


def test_a_training_that_fails(store: Path, mnt: Path, run: Run, training: Training) -> None:
    training.status = 3
    with FakeDaemon(store, stat={"plain_bytes": 1000}):
        status, _, err = run("train", mnt)
    assert status == 14
    assert "exit status 3" in err


def test_what_cannot_be_learnt_from(store: Path, mnt: Path, run: Run, training: Training) -> None:
    file = mnt / "file"
    file.touch()
    assert "not a directory on a mount" in run("train", file)[2]
    with FakeDaemon(store, stat={"plain_bytes": 0}):
        assert "nothing below" in run("train", mnt)[2]
    training.answer = {**FOUND, "held_out_bytes": 0}
    with FakeDaemon(store, stat={"plain_bytes": 1000}):
        status, _, err = run("train", mnt)
    assert status == 2
    assert "too little to learn from" in err


@pytest.mark.parametrize("why", [True, "the disk is gone"])
def test_where_no_model_can_be_kept_nothing_is_learnt(
    why: object, store: Path, mnt: Path, run: Run, training: Training
) -> None:
    with FakeDaemon(store, stat={"plain_bytes": 1000}, status={"read_only": why}):
        status, _, err = run("train", mnt)
    assert status == 2
    assert "is read-only" in err
    assert training.command == []


def test_sigterm_leaves_nothing(store: Path, mnt: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []
    before = signal.getsignal(signal.SIGTERM)

    def terminated(command: list[str], **_: object) -> NoReturn:
        folders.append(Path(command[command.index("--out") + 1]).parent)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError

    monkeypatch.setattr("nnfs.cli.models.subprocess.run", terminated)
    with FakeDaemon(store, stat={"plain_bytes": 1000}):
        assert run("train", mnt)[0] == 128 + signal.SIGTERM
    assert [folder.exists() for folder in folders] == [False]
    assert signal.getsignal(signal.SIGTERM) is before


def test_seconds_are_a_number(mnt: Path, run: Run) -> None:
    for bad in ("0", "-1", "x", "1.5"):
        assert run("train", mnt, f"--seconds={bad}")[0] == 2
