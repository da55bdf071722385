"""tools/run, the mount helpers and the import contracts, in a copy of the checkout where stand-ins play the tools."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.conftest import why_no_mount

REPO = Path(__file__).resolve().parents[2]
TORCH = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]["neural"][0]

# Writes its arguments to calls/NAME, one line per call.
RECORDER = """#!/bin/sh
echo "$*" >>"{calls}/{name}"
exit {status}
"""

# Stand-ins for what set-up would do to the machine; each notes that it was called.
STAND_INS = """
. tools/lib/setup.sh
note() { echo "$*" >>calls/setup; }
missing_packages() { :; }
has_gpu() { [[ -e gpu ]]; }
has_cuda_build() { :; }
make_venv() { note venv && mkdir -p .venv/bin && cp fake-python .venv/bin/python && echo "$root" >.venv/place; }
pip() { note pip "$@" && [[ ! -e offline || $* != *torch=* ]]; }
"""


class Checkout:
    """A copy of what set-up needs, at *root*."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = root / "calls"
        self.calls.mkdir(parents=True)
        shutil.copytree(REPO / "tools", root / "tools")
        shutil.copytree(REPO / "nnfs/kernels/src", root / "nnfs/kernels/src")
        shutil.copy(REPO / "pyproject.toml", root)
        self.recorder(root / "fake-python", "python")
        script = root / "tools/lib/setup.sh"
        text, links = script.read_text(), "helper_links=(/sbin/{u,}mount{.fuse,}.nnfs /usr/local/bin/nnfs)"
        assert links in text
        script.write_text(text.replace(links, f"helper_links=('{root}/sbin/mount.nnfs' '{root}/sbin/umount.nnfs')"))

    def recorder(self, path: Path, name: str, status: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORDER.format(calls=self.calls, name=name, status=status))
        path.chmod(0o755)

    def set_up(self, *args: str) -> list[str]:
        """The steps that `set_up ARGS` took."""
        log = self.calls / "setup"
        log.unlink(missing_ok=True)
        script = STAND_INS + f"set_up {' '.join(args)}"
        subprocess.run(["bash", "-c", script], cwd=self.root, check=True, stderr=subprocess.DEVNULL)
        return log.read_text().splitlines() if log.exists() else []

    def calls_of(self, name: str) -> list[str]:
        path = self.calls / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


# ------------------------------------------------------------------------------------------------------------ tools/run


def test_first_call_installs_and_second_does_nothing(checkout: Checkout) -> None:
    steps = checkout.set_up("run")
    assert [step.split()[0] for step in steps] == ["venv", "pip", "pip"]
    assert steps[1].endswith(f"--editable {checkout.root}")
    assert checkout.set_up("run") == []
    assert checkout.set_up("test")[0].endswith(f"--editable {checkout.root}[test]")
    assert checkout.set_up("test") == []
    assert checkout.set_up("run") == []


def test_a_changed_project_or_place_is_noticed(checkout: Checkout, tmp_path: Path) -> None:
    checkout.set_up("run")
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert [step.split()[0] for step in checkout.set_up("run")] == ["pip", "pip"]

    moved = tmp_path / "moved"
    checkout.root.rename(moved)
    checkout.root, checkout.calls = moved, moved / "calls"
    assert checkout.set_up("run")[0] == "venv"  # the scripts of a venv name its place


def test_without_a_gpu_cuda_is_never_downloaded(checkout: Checkout) -> None:
    (checkout.root / "offline").touch()  # so that every source is tried
    tries = [step for step in checkout.set_up("run") if "torch=" in step]
    assert len(tries) == 2
    assert all(step.endswith(f" {TORCH}+cpu") for step in tries)


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
    assert checkout.set_up("run") != []
    assert checkout.set_up("run") == []
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
    assert [step.split()[0] for step in checkout.calls_of("setup")] == ["venv", "pip", "pip"]


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


# ---------------------------------------------------------------------------------------------- the command, for others


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


# -------------------------------------------------------------------------------------------------------- mount helpers


@pytest.fixture
def installed(checkout: Checkout) -> Checkout:
    """A checkout with an nnfs that only notes its arguments, and links to its helpers as in /sbin."""
    checkout.recorder(checkout.root / ".venv/bin/python", "nnfs")
    checkout.recorder(checkout.root / "bin/mount", "mount")
    checkout.recorder(checkout.root / "bin/umount", "umount")
    (checkout.root / "sbin").mkdir()
    for name in ("mount", "umount"):
        (checkout.root / f"sbin/{name}.fuse.nnfs").symlink_to(checkout.root / f"tools/lib/{name}.nnfs")
    return checkout


def helper(checkout: Checkout, name: str, *args: str) -> int:
    """The status of /sbin/NAME.fuse.nnfs ARGS, called with as bare an environment as an init system's."""
    command, env = checkout.root / f"sbin/{name}.fuse.nnfs", {"PATH": f"{checkout.root}/bin:/usr/bin:/bin"}
    return subprocess.run([command, *args], env=env, cwd="/", stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize(
    ("args", "call"),
    [
        (("/data", "/mnt/nn"), "-I -m nnfs mount /data /mnt/nn"),
        (("/data", "/mnt/nn", "-o", "rw,noatime"), "-I -m nnfs mount /data /mnt/nn -o rw,noatime"),
        (("/my data", "/mnt/nn", "-sv", "-o", "ro", "-t", "fuse.nnfs"), "-I -m nnfs mount /my data /mnt/nn -o ro"),
        (("/data", "/mnt/nn", "-n", "-o", "ro", "-o", "dev"), "-I -m nnfs mount /data /mnt/nn -o ro,dev"),
    ],
)
def test_mount_helper_calls_nnfs(installed: Checkout, args: tuple[str, ...], call: str) -> None:
    assert helper(installed, "mount", *args) == 0
    assert installed.calls_of("nnfs") == [call]


def test_mount_helper_reports_failure_as_mount_does(installed: Checkout) -> None:
    installed.recorder(installed.root / ".venv/bin/python", "nnfs", status=5)
    assert helper(installed, "mount", "/data", "/mnt/nn") == 32
    (installed.root / ".venv/bin/python").unlink()
    assert helper(installed, "mount", "/data", "/mnt/nn") == 32


def test_mount_helper_fakes_refuses_and_remounts(installed: Checkout) -> None:
    assert helper(installed, "mount", "/data", "/mnt/nn", "-f") == 0
    assert helper(installed, "mount", "/data", "/mnt/nn", "-N", "1") == 1
    assert helper(installed, "mount", "/data", "/mnt/nn", "-X") == 1
    assert helper(installed, "mount", "/data") == 1
    assert installed.calls_of("nnfs") == []
    assert helper(installed, "mount", "/data", "/mnt/nn", "-o", "ro,remount") == 0
    assert installed.calls_of("nnfs") == ["-I -m nnfs.cli.remount /mnt/nn ro,remount"]
    assert installed.calls_of("mount") == ["-i -o ro,remount /mnt/nn"]


def test_mount_helper_leaves_word_for_umount(installed: Checkout) -> None:
    target = str(installed.root)
    assert helper(installed, "mount", "/data", target, "-o", "ro,_netdev") == 0
    entry = f"--internal-only --fake -t fuse.nnfs -o ro,_netdev,uhelper=fuse.nnfs /data {target}"
    assert installed.calls_of("mount") == [entry]
    installed.recorder(installed.root / "bin/mount", "mount", status=16)
    assert helper(installed, "mount", "/data", target) == 0


def test_umount_helper_waits_for_nnfs_unless_forced(installed: Checkout) -> None:
    assert helper(installed, "umount", "/mnt/n n", "-v", "-t", "fuse.nnfs") == 0
    assert installed.calls_of("nnfs") == ["-I -m nnfs umount /mnt/n n"]
    assert helper(installed, "umount", "/mnt/nn", "-l", "-f") == 0
    (installed.root / ".venv/bin/python").unlink()
    assert helper(installed, "umount", "/mnt/nn") == 0
    assert installed.calls_of("umount") == ["-i -l -f /mnt/nn", "-i /mnt/nn"]
    assert helper(installed, "umount", "/mnt/nn", "-N", "1") == 1
    assert len(installed.calls_of("nnfs")) == 1
    installed.recorder(installed.root / ".venv/bin/python", "nnfs", status=9)
    assert helper(installed, "umount", "/mnt/nn") == 32


# -------------------------------------------------------------------------------------------------- mount(8), for real


class Place:
    """A store and a mount point, and an fstab that names them."""

    def __init__(self, base: Path) -> None:
        self.base, self.store, self.mnt, self.fstab = base, base / "store", base / "mnt", base / "fstab"
        self.mnt.mkdir()
        harness.nnfs("mkfs", str(self.store))
        self.fstab.write_text(f"{self.store} {self.mnt} fuse.nnfs noatime,nofail,x-systemd.automount,_netdev 0 0\n")

    def run(self, *argv: str | Path) -> int:
        """The status of a command; the daemon it leaves behind must not hold our pipes, or pytest would wait for it."""
        return subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=harness.WAIT_S).returncode

    @property
    def pid(self) -> int:
        return int(json.loads(harness.nnfs("status", str(self.mnt), "--json").stdout)["pid"])

    @property
    def options(self) -> set[str]:
        lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]
        (line,) = (line.split() for line in lines if line.split()[4] == str(self.mnt))
        return set(line[5].split(","))


@pytest.fixture
def place() -> Iterator[Place]:
    if why := why_no_mount():
        pytest.skip(f"mounting {why}")
    is_ours = Path("/sbin/mount.fuse.nnfs").resolve().is_relative_to(REPO)
    if Path(sys.prefix) == REPO / ".venv":
        assert is_ours, "tools/test links the helpers of its checkout"
    elif not is_ours:
        pytest.skip("the helpers in /sbin belong to another checkout, or to none: tools/test installs them")
    place = Place(harness.work_dir())
    try:
        yield place
    finally:
        while harness.mounted_at(place.mnt):
            harness.umount(place.mnt, harness.MNT_FORCE | harness.MNT_DETACH)
        shutil.rmtree(place.base)


@pytest.mark.mount
@pytest.mark.parametrize("kind", ["fuse.nnfs", "nnfs"])
def test_mount_8_and_umount_8(place: Place, kind: str) -> None:
    assert place.run("mount", "-t", kind, place.store, place.mnt, "-o", "noatime") == 0
    assert harness.mounted_at(place.mnt)
    assert "noatime" in place.options
    (place.mnt / "file").write_bytes(b"content")
    daemon = os.pidfd_open(place.pid)
    assert place.run("umount", place.mnt) == 0
    assert select.select([daemon], [], [], 0)[0] == [daemon], "umount returned before the daemon had ended"
    os.close(daemon)
    assert place.run("mount", "-t", kind, place.store, place.mnt, "-o", "ro") == 0
    assert (place.mnt / "file").read_bytes() == b"content"
    assert place.run("umount", place.mnt) == 0


@pytest.mark.mount
def test_an_fstab_line(place: Place) -> None:
    for _ in range(2):  # the second time it is mounted already
        assert place.run("mount", "--all", "--fstab", place.fstab) == 0
        assert "noatime" in place.options  # one line only: not mounted twice
    assert place.run("umount", place.mnt) == 0


@pytest.mark.mount
def test_remount_read_only_and_back(place: Place) -> None:
    assert place.run("mount", "-t", "fuse.nnfs", place.store, place.mnt) == 0
    assert place.run("mount", "-o", "remount,ro", place.mnt) == 0
    with pytest.raises(OSError, match="Read-only"):
        (place.mnt / "file").touch()
    assert place.run("mount", "-o", "remount,rw", place.mnt) == 0
    (place.mnt / "file").touch()
    assert place.run("umount", place.mnt) == 0


@pytest.mark.mount
def test_failures_have_the_status_of_mount_8(place: Place) -> None:
    no_store = place.base / "no store"
    no_store.mkdir()
    assert place.run("mount", "-t", "fuse.nnfs", no_store, place.mnt) == 32
    assert not harness.mounted_at(place.mnt)


@pytest.mark.mount
def test_after_a_crash_umount_and_mount_work(place: Place) -> None:
    mount = ("mount", "-t", "fuse.nnfs", place.store, place.mnt)
    for clean_up in [("umount", place.mnt), ("umount", "-l", place.mnt), mount]:
        assert place.run(*mount) == 0
        pid = place.pid
        daemon = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([daemon], [], [], 60)[0] == [daemon]
        os.close(daemon)
        assert place.run(*clean_up) == 0
    assert (place.mnt / ".").is_dir()
    assert place.run("umount", place.mnt) == 0


# ------------------------------------------------------------------------------------------------------------ contracts


def test_every_import_contract_can_break(tmp_path: Path) -> None:
    """tools/check sees them kept; here each is broken on purpose."""
    shutil.copytree(REPO / "nnfs", tmp_path / "nnfs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    (tmp_path / "nnfs/fs/planted.py").write_text("import lmdb, trio, pyfuse3, torch, xxhash\nimport nnfs.cli\n")
    lint = Path(sys.executable).parent / "lint-imports"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([lint, "--no-cache"], cwd=tmp_path, env=env, capture_output=True, text=True)
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert done.returncode == 1
    assert [c["name"] for c in contracts if f"{c['name']} BROKEN" not in done.stdout] == []
