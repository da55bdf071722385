"""An installed package sees to itself: `nnfs prepare`, the first mount, `nnfs integrate`, the mount helpers."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from nnfs import kernelcache
from nnfs.cli import integrating
from nnfs.cli.main import main
from nnfs.kernels import build
from nnfs.workers import prepared
from tests.cli.conftest import Run


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package whose kernels lie in a folder of the test."""
    folder = tmp_path / "a" / "kernels-1"
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(kernelcache, "places", lambda: [os.fspath(folder)])
    monkeypatch.setattr(prepared, "PROJECT", "no such file")
    for name in (kernelcache.ROOT, build.FOLDER):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that were started: in the foreground `run MODULE`, in the background `later`."""
    found: list[str] = []

    class Later:
        def __init__(self, command: list[str], **_: Any) -> None:
            found.append("later")

    monkeypatch.setattr(subprocess, "run", lambda command, **_: found.append(f"run {command[-1]}"))
    monkeypatch.setattr(subprocess, "Popen", Later)
    return found


def test_a_note_holds_for_these_sources_and_this_processor(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not prepared.is_done()
    prepared.note()
    assert prepared.is_done()
    (tmp_path / "cpuinfo").write_text("flags : fewer\n\nflags : fewer\n")
    monkeypatch.setattr(prepared, "CPU_INFO", os.fspath(tmp_path / "cpuinfo"))
    assert not prepared.is_done()
    prepared.note()
    assert prepared.is_done()
    monkeypatch.setattr(build, "sources_digest", lambda: "another")
    assert not prepared.is_done()


@pytest.mark.usefixtures("place")
def test_the_first_mount_compiles_what_readers_would_wait_for(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, "library"])
    monkeypatch.setattr(build, "found", lambda: next(answers))
    prepared.before_a_mount()
    assert started == ["run nnfs.kernels.build", "later"]
    started.clear()
    prepared.note()
    prepared.before_a_mount()
    assert started == []


@pytest.mark.usefixtures("place")
def test_without_a_compiler_the_other_kernels_are_compiled_first(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "found", lambda: None)
    prepared.before_a_mount()
    assert started == ["run nnfs.kernels.build", "run nnfs.workers.prepare"]


@pytest.mark.usefixtures("place")
def test_a_library_that_the_package_brings_costs_a_mount_nothing(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "found", lambda: "library")
    prepared.before_a_mount()
    assert started == ["later"]


@pytest.mark.parametrize("case", ["checkout", "named", "nowhere"])
def test_a_mount_leaves_it_to_others(
    case: str, place: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "checkout":
        monkeypatch.setattr(prepared, "PROJECT", "nnfs")
    elif case == "named":
        monkeypatch.setenv(build.FOLDER, "/tmp")
    else:
        monkeypatch.setattr(os, "access", lambda *_: False)
    prepared.before_a_mount()
    assert started == []


def test_a_library_beside_the_sources_of_a_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(build.FOLDER, raising=False)
    monkeypatch.setattr(build, "SOURCES", os.fspath(tmp_path / "src"))
    assert os.fspath(tmp_path / "built") not in build.folders()
    (tmp_path / "built").mkdir()
    assert build.folders()[0] == os.fspath(tmp_path / "built")


def test_prepare_says_that_it_was_done(place: Path, run: Run) -> None:
    prepared.note()
    assert run("prepare") == (0, "the kernels are compiled already\n", "")


# ------------------------------------------------------------------------------------------------------------ the links


@pytest.fixture
def prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A prefix with the files of a wheel."""
    names = ("bin/nnfs", "bin/mount.nnfs", "bin/umount.nnfs", "lib/systemd/system/nnfs@.service",
             "share/man/man1/nnfs.1",
             "share/man/man8/mount.nnfs.8", "share/bash-completion/completions/nnfs", "share/zsh/site-functions/_nnfs",
             "share/man/man1/other.1")  # fmt: skip
    for name in names:
        path = tmp_path / "prefix" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: os.fspath(tmp_path / "prefix"))
    return tmp_path / "prefix"


def test_links_are_made_and_removed(prefix: Path, tmp_path: Path, run: Run) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert run("integrate", "--root", root)[0] == 0
    assert os.readlink(root / "sbin/mount.fuse.nnfs") == os.fspath(prefix / "bin/mount.nnfs")
    links = {os.fspath(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink()}
    assert links == {
        "sbin/mount.nnfs", "sbin/mount.fuse.nnfs", "sbin/umount.nnfs", "sbin/umount.fuse.nnfs", "usr/local/bin/nnfs",
        "usr/local/share/man/man1/nnfs.1", "usr/local/share/man/man8/mount.nnfs.8",
        "usr/local/share/bash-completion/completions/nnfs", "usr/local/share/zsh/site-functions/_nnfs",
        "usr/local/lib/systemd/system/nnfs@.service",
    }  # fmt: skip
    assert (root / "usr/local/share/man").stat().st_mode & 0o777 == 0o755
    assert run("integrate", "--root", root) == (0, "", "")
    assert run("integrate", "--root", root, "--remove")[0] == 0
    assert not [path for path in root.rglob("*") if path.is_symlink()]


def test_files_of_others_are_left_alone(prefix: Path, tmp_path: Path, run: Run) -> None:
    place = tmp_path / "root/usr/local/bin/nnfs"
    place.parent.mkdir(parents=True)
    place.write_text("somebody's")
    code, _, err = run("integrate", "--root", tmp_path / "root")
    assert (code, "left alone" in err, place.read_text()) == (1, True, "somebody's")
    run("integrate", "--root", tmp_path / "root", "--remove")
    assert place.read_text() == "somebody's"


def test_a_checkout_has_nothing_to_link(run: Run, tmp_path: Path) -> None:
    code, _, err = run("integrate", "--root", tmp_path)
    assert (code, "tools/run makes the links" in err) == (2, True)
    assert integrating.TREES
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "call"), [("mount", "-m nnfs mount /s /m"), ("umount", "-m nnfs umount /m")])
def test_helpers_call_the_python_of_the_package(name: str, call: str, tmp_path: Path) -> None:
    """The commands of a wheel set the variable that tells which it is."""
    recorder = tmp_path / "python"
    recorder.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/call\n')
    recorder.chmod(0o755)
    code = f"import sys; sys.executable = {os.fspath(recorder)!r}; from nnfs.cli import sbin; sbin.{name}()"
    words = ["/s", "/m"] if name == "mount" else ["/m"]
    done = subprocess.run([sys.executable, "-c", code, *words], env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.returncode in (0, 32)
    assert (tmp_path / "call").read_text().strip() == f"-I {call}"


def test_the_new_commands_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("prepare", "integrate"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
    assert "mount helpers" in capsys.readouterr().out
