"""The library is compiled whole or not at all, found again without a compiler, and its level can be chosen."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.errors import BuildFailed, CodecError
from nnfs.kernels import build
from nnfs.kernels import library as native
from nnfs.model import selftest
from nnfs.model.engines import open_model
from nnfs.model.native import NativeModel
from tests.kernels.kit import EMULATED, library


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for libraries that has none, and a process that has loaded none."""
    monkeypatch.setenv(build.FOLDER, str(tmp_path))
    native.library.cache_clear()
    selftest.native_level.cache_clear()
    yield tmp_path
    native.library.cache_clear()
    selftest.native_level.cache_clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One level, not optimised."""
    monkeypatch.setattr(build, "LEVELS", {})
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O0"))


def test_what_was_compiled_is_found_without_a_compiler(
    fresh: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.found() is None
    path = build.build()
    assert os.path.dirname(path) == str(fresh)
    assert os.listdir(fresh) == [os.path.basename(path)]
    monkeypatch.setattr(build, "run", lambda command: pytest.fail(f"ran {command}"))
    assert build.found() == path
    there = native.library()
    assert there is not None
    assert there.levels == ("portable",)


def test_another_compiler_gets_a_library_of_its_own(fresh: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.build()
    wrapper = fresh / "mycc"
    wrapper.write_text('#!/bin/sh\n[ "$1" = --version ] && echo mine && exit\nexec cc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", str(wrapper))
    assert build.build() != first


def test_changed_sources_are_compiled_anew(fresh: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.build()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DCHANGED"))
    assert build.found() is None
    assert build.build() != first


def test_a_build_that_fails_leaves_nothing(fresh: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(BuildFailed):
        build.build()
    assert os.listdir(fresh) == []
    assert build.main() == 1


def test_a_level_that_the_compiler_does_not_know_is_left_out(
    fresh: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platform

    monkeypatch.setattr(build, "LEVELS", {platform.machine(): {"avx2": ("-mno-such-flag",)}})
    assert native.Library(build.build()).levels == ("portable",)


def test_without_a_library_the_other_engines_go_on(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert native.library() is None
    assert native.library() is None
    assert caplog.text.count("no native kernels") == 1
    assert not isinstance(open_model(selftest.weights()), NativeModel)


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "anybody's"])
def test_a_library_that_is_not_what_was_written_is_made_again(
    fresh: Path, quick: None, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Loading one that was cut ends the process (SIGBUS): every worker, each time."""
    path = Path(build.build())
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = {"cut": whole[:middle], "empty": b"", "flipped": whole[:middle] + b"?" + whole[middle + 1 :]}
    path.write_bytes(changed.get(how, whole))
    path.chmod(0o777 if how == "anybody's" else 0o755)
    assert native.library() is None
    assert f"{path} is damaged, or somebody else's" in caplog.text
    assert build.build() == str(path)
    assert build.found() == str(path)


def test_a_home_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (build.FOLDER, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    assert not any(folder.startswith(str(tmp_path)) for folder in build.folders())


def test_a_library_that_cannot_be_loaded_is_as_none(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    (fresh / f"{build.PREFIX}{build.sources_digest()}-0{build.SUFFIX}").write_bytes(
        b"no library" + hashlib.blake2b(b"no library", digest_size=build.DIGEST).digest()
    )
    assert native.library() is None
    assert "cannot be loaded" in caplog.text
    assert not isinstance(open_model(selftest.weights()), NativeModel)


def test_a_level_can_be_forced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A variable that names none that runs here must not make damage of what is stored."""
    library()
    usual = native.level()
    monkeypatch.setenv(native.VARIABLE, "portable")
    assert native.level() == native.LEVELS.index("portable")
    monkeypatch.setenv(native.VARIABLE, "none")
    assert native.level() is None
    missing = next(name for name in native.LEVELS if name not in library().levels)
    for wrong, why in (("sse9", "no level sse9"), (missing, "cannot run here")):
        with pytest.raises(CodecError, match=why):
            native.level(wrong)
        monkeypatch.setenv(native.VARIABLE, wrong)
        assert native.level() == usual
        assert why in caplog.text


def test_the_environment_chooses_the_engine() -> None:
    library()
    code = (
        "from nnfs.model import selftest; from nnfs.model.engines import open_model\n"
        "m = open_model(selftest.weights()); print(type(m).__name__, getattr(m, 'level', ''))"
    )
    for value, expected in (("portable", f"NativeModel {native.LEVELS.index('portable')}"), ("none", "Model")):
        environment = {**os.environ, native.VARIABLE: value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert expected in done.stdout
        assert (value == "none") != ("NativeModel" in done.stdout)


def test_a_level_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library()
    native.library.cache_clear()
    selftest.native_level.cache_clear()
    right = selftest.digest
    there = native.library()
    assert there is not None
    broken = native.LEVELS.index(there.levels[0])
    monkeypatch.setattr(selftest, "digest", lambda model: "wrong" if model.level == broken else right(model))
    try:
        assert selftest.native_level() == there.levels[1]
        assert "do not compute what they should" in caplog.text
        selftest.native_level.cache_clear()
        monkeypatch.setenv(native.VARIABLE, there.levels[0])
        with pytest.raises(CodecError, match="do not compute"):
            selftest.native_level()
    finally:
        selftest.native_level.cache_clear()


@pytest.mark.parametrize("level", EMULATED)
def test_emulated_levels_pass_the_self_test(level: str) -> None:
    assert selftest.digest(NativeModel(selftest.weights(), level, library("emulated-"))) == selftest.DIGEST
