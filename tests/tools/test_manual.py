"""Manual pages and completion, made from the parser, and the wheel that brings them."""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from nnfs.cli.main import build_parser
from tests.tools.kit import REPO, lib

MISSING = [name for name in ("argparse_manpage", "shtab") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (the extra test)")
COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_nnfs
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix with all files."""
    prefix = tmp_path_factory.mktemp("prefix")
    for name, text in lib("manual").texts().items():
        path = prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return prefix


def commands() -> list[str]:
    """All commands, aliases left out."""
    (action,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return [one.dest for one in action._choices_actions]


def test_the_manual_has_every_command_and_its_examples(files: Path) -> None:
    page = (files / "share/man/man1/nnfs.1").read_text()
    for name in commands():
        assert f"nnfs {name}".replace("-", "\\-") in page
    assert page.count("\nexamples:\n") >= len(commands())
    assert "write_age=2h" in page
    assert "@@" not in page
    assert "==SUPPRESS==" not in page


def test_groff_reads_the_pages_without_a_warning(files: Path) -> None:
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("man or groff is not installed (Debian: man-db, groff)")
    for page in sorted(files.rglob("*.[18]")):
        done = subprocess.run(
            ["man", "--warnings", "-E", "UTF-8", "-l", page], capture_output=True, text=True, cwd=files / "share/man",
            env=os.environ | {"LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), page


def test_lines_that_roff_would_take_for_its_own() -> None:
    verbatim = lib("manual").verbatim(".git is hidden\n'quoted'\n  a-b \\n")
    assert verbatim == ".PP\n.nf\n\\&.git is hidden\n\\&'quoted'\n  a\\-b \\en\n.fi\n"


@pytest.mark.parametrize(
    ("words", "some", "none"),
    [
        (["nnfs", "sna"], {"snapshot"}, {"mount"}),
        (["nnfs", "snapshot", ""], {"create", "prune"}, {"mount"}),
        (["nnfs", "compact", "--"], {"--wait", "--all", "--dry-run"}, {"--deep"}),
        (["nnfs", "policy", "/", "c"], {"cold"}, {"hot"}),
        (["nnfs", "mount", "{prefix}/sha"], {"{prefix}/share"}, set()),
    ],
)  # fmt: skip
def test_bash_completes(files: Path, words: list[str], some: set[str], none: set[str]) -> None:
    words = [word.format(prefix=files) for word in words]
    script = files / "share/bash-completion/completions/nnfs"
    done = subprocess.run(["bash", "-c", COMPLETE, "bash", script, *words], capture_output=True, text=True, check=True)
    found = {word.rstrip() for word in done.stdout.splitlines()}
    assert {word.format(prefix=files) for word in some} <= found, done
    assert not none & found


def test_zsh_accepts_its_completion(files: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    script = files / "share/zsh/site-functions/_nnfs"
    assert script.read_text().startswith("#compdef nnfs")
    subprocess.run(["zsh", "-n", script], check=True)


def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The build backend, with a stand-in for flit, which only a build has."""
    flit, api = types.ModuleType("flit_core"), types.ModuleType("flit_core.buildapi")
    for kind in ("wheel", "sdist", "editable"):
        for hook in ("build_{}", "get_requires_for_build_{}", "prepare_metadata_for_build_{}"):
            setattr(api, hook.format(kind), lambda *_: [])
    vars(flit)["buildapi"] = api
    monkeypatch.setitem(sys.modules, "flit_core", flit)
    monkeypatch.setitem(sys.modules, "flit_core.buildapi", api)
    return lib("wheelbackend")


def test_a_wheel_has_the_files_in_its_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = backend(monkeypatch)
    assert made.get_requires_for_build_wheel() == made.REQUIRES
    wheel = tmp_path / "nnfs-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nnfs/__init__.py", "")
        archive.writestr("nnfs-9.9.dist-info/RECORD", "nnfs/__init__.py,,\nnnfs-9.9.dist-info/RECORD,,\n")
    files = made.data_files()
    assert {"share/man/man1/nnfs.1", "lib/systemd/system/nnfs@.service"} <= files.keys()
    assert {f"lib/systemd/system/{unit.name}" for unit in (REPO / "systemd").iterdir()} <= files.keys()
    made.complete(wheel, files)
    assert os.listdir(tmp_path) == [wheel.name]
    with zipfile.ZipFile(wheel) as archive:
        record = {line[0]: line[1] for line in csv.reader(archive.read("nnfs-9.9.dist-info/RECORD").decode().split())}
        assert set(record) == set(archive.namelist())
        for name in files:
            data = archive.read(f"nnfs-9.9.data/data/{name}")
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert record[f"nnfs-9.9.data/data/{name}"] == f"sha256={digest}"
