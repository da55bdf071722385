"""The note that the kernels were compiled on this machine, and what the first mount does where there is none.

Set-up compiles the kernels of a checkout, a Debian package brings the native ones. For an nnfs that pip has installed
`nnfs prepare` does it, or else the first mount: the native kernels before the mount (a minute of one core), so that no
reader waits for them; then the others, which the reference engine and encoders use, in a process that gives way.
The note lies with numba's kernels. It names the sources and the processor: after an upgrade, or on another machine, the
kernels are compiled again. It is also written where compiling fails, or each mount would try it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys

from nnfs import kernelcache
from nnfs.kernels import build
from nnfs.names import say
from nnfs.workers.startup import quiet_threads

NOTE = "prepared"
CPU_INFO = "/proc/cpuinfo"
PROJECT = "pyproject.toml"  # beside the package: a checkout, which set-up sees to
_GIVES_WAY = (
    "from nnfs.workers.startup import give_way; give_way(); import sys; from nnfs.workers.prepare import main; "
    "sys.exit(main())"
)


def is_done() -> bool:
    """Return whether the kernels of these sources were compiled, or tried, on such a processor."""
    wanted = _content()
    return any(_read(os.path.join(place, NOTE)) == wanted for place in kernelcache.places())


def note() -> None:
    """Note that it is done, in the first place that can be written; none is no error."""
    for place in kernelcache.places():
        with contextlib.suppress(OSError):
            kernelcache.make_place(place)
            with open(os.path.join(place, NOTE), "w", encoding="ascii") as file:
                file.write(_content())
            return


def before_a_mount() -> None:
    """Compile what is not compiled yet, as far as a mount should wait for it, and let the rest follow."""
    if _is_others_duty() or is_done():
        return
    if build.found() is None:
        say("compiling the native kernels, once: a minute or two")
        with contextlib.suppress(OSError):
            _run("nnfs.kernels.build", stdout=subprocess.DEVNULL)
    if build.found() is None:
        say("compiling numba's kernels, once: minutes")
        _run("nnfs.workers.prepare")
        return
    subprocess.Popen(
        [sys.executable, "-P", "-c", _GIVES_WAY], env=_environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True, umask=0o022,
    ).returncode = 0  # it goes on without us  # fmt: skip


def _run(module: str, stdout: int | None = None) -> None:
    """Run a module to its end; what it writes is for all users."""
    command = [sys.executable, "-P", "-m", module]
    subprocess.run(command, env=_environment(), stdout=stdout, stdin=subprocess.DEVNULL, umask=0o022, check=False)


def _is_others_duty() -> bool:
    """Return whether set-up compiles, or somebody who names a folder, or nothing can be kept."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    is_checkout = os.path.exists(os.path.join(os.path.dirname(package), PROJECT))
    named = any(name in os.environ for name in (kernelcache.ROOT, build.FOLDER))
    return is_checkout or named or not any(map(_can_be_made, kernelcache.places()))


def _can_be_made(place: str) -> bool:
    while not os.path.exists(place):
        place = os.path.dirname(place)
    return os.access(place, os.W_OK | os.X_OK)


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    quiet_threads(environment, 1)
    return environment


def _content() -> str:
    """Return the text of a note: digests of the native sources and of the processor's abilities."""
    cpu = hashlib.blake2b(digest_size=8)
    with contextlib.suppress(OSError), open(CPU_INFO, "rb") as file:
        for line in file.read().split(b"\n\n")[0].splitlines():
            if line.partition(b":")[0].strip() in (b"model name", b"flags", b"Features", b"CPU part"):
                cpu.update(line)
    return f"{build.sources_digest()} {cpu.hexdigest()}\n"


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(1000)
    except OSError:
        return ""
