"""tools/run and the link to the command, in a copy of the checkout where stand-ins play the tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.tools.kit import REPO, STAND_INS, Checkout

TORCH = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]["neural"][0]


def test_first_call_installs_and_second_does_nothing(checkout: Checkout) -> None:
    steps = checkout.set_up("run")
    assert [step.split()[0] for step in steps] == ["venv", "pip"]
    assert steps[1].endswith(f"--editable {checkout.root}")
    assert checkout.set_up("run") == []
    assert checkout.set_up("test")[0].endswith(f"--editable {checkout.root}[test]")
    assert checkout.set_up("test") == []
    assert checkout.set_up("run") == []


def test_a_changed_project_or_place_is_noticed(checkout: Checkout, tmp_path: Path) -> None:
    checkout.set_up("run")
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert [step.split()[0] for step in checkout.set_up("run")] == ["pip"]

    moved = tmp_path / "moved"
    checkout.root.rename(moved)
    checkout.root, checkout.calls = moved, moved / "calls"
    assert checkout.set_up("run")[0] == "venv"  # the scripts of a venv name its place


def test_without_a_gpu_cuda_is_never_downloaded(checkout: Checkout) -> None:
    (checkout.root / "offline").touch()  # so that every source is tried
    tries = [step for step in checkout.set_up("test") if "torch=" in step]
    assert len(tries) == 2
    assert all(step.endswith(f" {TORCH}+cpu") for step in tries)


def test_without_a_gpu_only_tests_want_torch(checkout: Checkout) -> None:
    assert not any("torch=" in step for step in checkout.set_up("run"))
    assert any("torch=" in step for step in checkout.set_up("test"))
    assert checkout.set_up("run") == []


def test_with_a_gpu_cuda_is_chosen(checkout: Checkout) -> None:
    (checkout.root / "gpu").touch()
    tries = [step for step in checkout.set_up("run") if "torch=" in step]
    assert tries == [f"pip install {TORCH.replace('==', '===')}"]


def test_a_choice_of_torch_is_kept(checkout: Checkout) -> None:
    assert not any("torch=" in step for step in checkout.set_up("run", "none"))
    (checkout.root / "gpu").touch()
    assert not any("torch=" in step for step in checkout.set_up("test"))
    assert any("+cpu" in step for step in checkout.set_up("run", "cpu"))
    assert any("===" in step for step in checkout.set_up("run", "cuda"))
    assert checkout.set_up("run", "cuda") == []


def test_a_failed_torch_is_no_obstacle_and_not_tried_each_time(checkout: Checkout) -> None:
    (checkout.root / "offline").touch()
    assert checkout.set_up("test") != []
    assert checkout.set_up("test") == []
    (checkout.root / "offline").unlink()
    assert any("torch=" in step for step in checkout.set_up("run", "cpu"))


def test_two_calls_at_once_install_once(checkout: Checkout) -> None:
    os.mkfifo(checkout.root / "ready")
    os.mkfifo(checkout.root / "go")
    paused = STAND_INS + 'eval "real_$(declare -f make_venv)"\n'
    paused += "make_venv() { echo >ready; read -r <go; real_make_venv; }\n"

    def start(script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(["bash", "-c", script], cwd=checkout.root, text=True, stderr=subprocess.PIPE)

    first = start(paused + "set_up run")
    second = None
    try:
        (checkout.root / "ready").read_text()
        second = start(STAND_INS + "set_up run")
        assert second.stderr is not None
        assert "waiting for another set-up" in second.stderr.readline()
        (checkout.root / "go").write_text("\n")
        assert [first.wait(), second.wait()] == [0, 0]
    finally:
        for process in filter(None, (first, second)):
            process.kill()
            process.communicate()
    assert [step.split()[0] for step in checkout.calls_of("setup")] == ["venv", "pip"]


@pytest.mark.parametrize("args", [["--torch", "gpu"], ["--torch=gpu"], ["--torch"]])
def test_an_unknown_torch_is_refused(checkout: Checkout, args: list[str]) -> None:
    done = subprocess.run([checkout.root / "tools/run", *args], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: tools/run" in done.stderr
    assert checkout.calls_of("python") == []


def test_arguments_reach_nnfs(checkout: Checkout) -> None:
    checkout.set_up("run", "none")
    subprocess.run([checkout.root / "tools/run", "--torch", "none", "mount", "a b", "-o", "ro"], check=True)
    assert checkout.calls_of("python") == ["-m nnfs.workers.prepare", "-P -m nnfs mount a b -o ro"]


def test_missing_packages_are_named(checkout: Checkout) -> None:
    script = ". tools/lib/setup.sh; missing_packages 'false || true|there' 'command -v nowhere|missing' 'false|too'"
    done = subprocess.run(["bash", "-c", script], cwd=checkout.root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["missing", "too"]


class Installed:
    """A checkout in which root has set nnfs up, and its command in a folder that all can enter."""

    def __init__(self, base: Path, *, closed: bool) -> None:
        self.base = base
        self.checkout = Checkout(base / "a checkout")
        self.command = base / "usr local" / "bin" / "nnfs"
        script = self.checkout.root / "tools/lib/setup.sh"
        script.write_text(re.sub(r"helper_links=\(.*\)", f"helper_links=('{self.command}')", script.read_text()))
        (self.checkout.root / ".venv/bin").mkdir(parents=True)
        (self.checkout.root / ".venv/bin/python").symlink_to("/bin/sh")
        program = self.checkout.root / ".venv/bin/nnfs"
        program.write_text('#!/bin/sh\necho "ran $*"\n')
        program.chmod(0o755)
        self.checkout.root.chmod(0o700 if closed else 0o755)

    def install(self) -> str:
        done = subprocess.run(
            ["bash", "-c", ". tools/lib/setup.sh; install_helpers"],
            cwd=self.checkout.root, check=True, text=True, stderr=subprocess.PIPE,
        )  # fmt: skip
        return done.stderr

    def run(self, *user: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*user, self.command, "df", "a b"], capture_output=True, text=True, cwd="/")


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture
def entered() -> Iterator[Path]:
    """A folder that everybody can enter."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    base = harness.work_dir()
    yield base
    shutil.rmtree(base)


def test_the_command_is_a_link_where_all_can_enter(entered: Path) -> None:
    installed = Installed(entered, closed=False)
    assert installed.install() == ""
    assert installed.command.is_symlink()
    for user in ((), NOBODY):
        assert installed.run(*user).stdout == "ran df a b\n"


@pytest.mark.parametrize("what", ["checkout", "python"])
def test_the_command_explains_itself_where_others_cannot_enter(entered: Path, what: str) -> None:
    installed = Installed(entered, closed=what == "checkout")
    closed = installed.checkout.root
    if what == "python":
        closed = entered / "pyenv" / "python"
        closed.parent.mkdir(mode=0o700)
        shutil.copy("/bin/sh", closed)
        (installed.checkout.root / ".venv/bin/python").unlink()
        (installed.checkout.root / ".venv/bin/python").symlink_to(closed)
    for _ in range(2):
        assert f"cannot enter {closed}" in installed.install()
    assert installed.run().stdout == "ran df a b\n"
    done = installed.run(*NOBODY)
    assert done.returncode == 126
    assert str(closed) in done.stderr
    assert "sudo" in done.stderr
    # opened by hand, it becomes a link again
    installed.checkout.root.chmod(0o755)
    closed.parent.chmod(0o755)
    installed.install()
    assert installed.command.is_symlink()
    assert installed.run(*NOBODY).stdout == "ran df a b\n"


def test_a_command_of_somebody_else_is_left_alone(entered: Path) -> None:
    installed = Installed(entered, closed=True)
    installed.command.parent.mkdir(parents=True)
    installed.command.write_text("#!/bin/sh\necho mine\n")
    assert "leaving" in installed.install()
    assert "mine" in installed.command.read_text()


def test_root_chooses_a_python_that_others_can_execute(entered: Path) -> None:
    checkout = Checkout(entered / "checkout")
    for name, mode in (("first", 0o700), ("second", 0o755)):
        folder = entered / name
        folder.mkdir()
        python = folder / ("python3" if name == "first" else "python3.12")
        python.write_text(f'#!/bin/sh\necho "{python}"\n')
        python.chmod(0o755)
        folder.chmod(mode)
    script = ". tools/lib/setup.sh; PATH=$1:$2:/usr/bin:/bin; find_python"
    words = ["bash", "-c", script, "bash", str(entered / "first"), str(entered / "second")]

    def chosen(**env: str) -> str:
        done = subprocess.run(
            words, cwd=checkout.root, check=True, text=True, stdout=subprocess.PIPE, env={**os.environ, **env}
        )
        return done.stdout.strip()

    assert not chosen().startswith(str(entered / "first"))
    assert chosen(NNFS_PYTHON=str(entered / "first/python3")) == str(entered / "first/python3")
    checkout.root.chmod(0o700)
    assert chosen() == str(entered / "first/python3"), "others cannot enter the checkout anyway"


@pytest.mark.parametrize(("status", "said"), [(0, ""), (100, "without chromium: some tests are skipped")])
def test_what_only_some_tests_need_is_no_obstacle(checkout: Checkout, status: int, said: str) -> None:
    checkout.recorder(checkout.root / "bin/apt-get", "apt-get", status)
    script = 'PATH=$PWD/bin:$PATH; . tools/lib/setup.sh; PATH=$root/bin:$PATH; install_wishes chromium; echo "rc $?"'
    done = subprocess.run(["bash", "-c", script], cwd=checkout.root, capture_output=True, text=True, check=True)
    assert done.stdout == "rc 0\n"
    if os.geteuid() == 0:
        assert said in done.stderr
        assert checkout.calls_of("apt-get")[0].endswith("install --no-install-recommends chromium")


def test_promtool_is_unpacked_and_not_installed(checkout: Checkout) -> None:
    """Its package would start a server."""
    checkout.set_up("run")
    checkout.recorder(checkout.root / "bin/apt-get", "apt-get")
    unpack = (
        '#!/bin/sh\nmkdir -p "$3/usr/bin" && echo promtool >"$3/usr/bin/promtool" && chmod +x "$3/usr/bin/promtool"\n'
    )
    (checkout.root / "bin/dpkg").write_text(unpack)
    (checkout.root / "bin/dpkg").chmod(0o755)
    script = (
        ". tools/lib/setup.sh; PATH=$root/bin:/usr/bin:/bin; command() { return 1; }; unpack_promtool; unpack_promtool"
    )
    subprocess.run(["bash", "-c", script], cwd=checkout.root, check=True)
    assert (checkout.root / ".venv/bin/promtool").read_text() == "promtool\n"
    assert checkout.calls_of("apt-get") == ["download prometheus"]
    (checkout.root / ".venv/bin/promtool").unlink()
    checkout.recorder(checkout.root / "bin/apt-get", "apt-get", 100)
    done = subprocess.run(
        ["bash", "-c", f"{script}; pwd"], cwd=checkout.root, capture_output=True, text=True, check=True
    )
    assert "without promtool" in done.stderr
    assert done.stdout == f"{checkout.root}\n"
