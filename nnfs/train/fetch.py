"""Download of the ordinary packages that the corpus is made of, with the clients of their registries.

`packages.toml` beside this module names them. A package that a registry lacks, or for which no client is installed, is
skipped with a note; a package that is in the folder already is not downloaded again.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator

SYSTEM = (  # of a Debian machine's own files; nothing that could be private
    "/usr/share/man",
    "/usr/share/doc",
    "/usr/lib/python3",
    "/usr/share/perl",
    "/usr/share/perl5",
    "/usr/include",
    "/usr/share/locale",
    "/usr/share/mime",
    "/usr/share/applications",
    "/usr/lib/systemd",
    "/usr/share/X11",
    "/usr/share/zoneinfo",
    "/usr/bin",
    "/usr/lib/*-linux-gnu",
    "/usr/lib/node_modules",
    "/usr/share/nodejs",
    "/usr/share/java",
    "/var/log/apt",
    "/var/log/installer",
    f"{sys.base_prefix}/lib/python3.[0-9]*",
)
MAX_DEB = 150_000_000  # bytes
TIMEOUT = 300  # seconds for one package
_SIZE = re.compile(rb"^Size: (\d+)", re.MULTILINE)


def system_roots() -> list[str]:
    """Return the folders of `SYSTEM` that exist."""
    return [path for pattern in SYSTEM for path in sorted(glob.glob(pattern)) if os.path.isdir(path)]


def fetch(folder: str) -> list[str]:
    """Download the packages into folders inside `folder`; return these. Raises OSError when it cannot write there."""
    with open(os.path.join(os.path.dirname(__file__), "packages.toml"), "rb") as file:
        wanted: dict[str, list[str]] = tomllib.load(file)
    made = []
    for registry, names in wanted.items():
        here = os.path.join(folder, registry)
        os.makedirs(here, exist_ok=True)
        made.append(here)
        client = _client(registry, "")[0]
        if shutil.which(client) is None:
            _say(f"{registry}: skipped, there is no {client}")
            continue
        missing = [name for name in names if not _there(here, name) and not _get(registry, name, here)]
        if missing:
            _say(f"{registry}: not to be had: {' '.join(missing)}")
    return made


def _client(registry: str, name: str) -> list[str]:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    commands = {
        "debian": ["apt-get", "download", name],
        "debian-source": ["apt-get", "source", "--download-only", name],  # wants a deb-src line
        "pypi": [*pip, name],
        "pypi-source": [*pip, "--no-binary", name, name],
        "pypi-windows": [*pip, "--only-binary", ":all:", "--platform", "win_amd64", "--python-version", "3.12", name],
        "pypi-windows-32": [*pip, "--only-binary", ":all:", "--platform", "win32", "--python-version", "3.12", name],
        "npm": ["npm", "pack", name],
    }
    return commands[registry]


def _get(registry: str, name: str, folder: str) -> bool:
    if registry == "debian" and not 0 < _deb_size(name) <= MAX_DEB:
        return False
    try:
        done = subprocess.run(_client(registry, name), cwd=folder, capture_output=True, timeout=TIMEOUT, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return False
    return done.returncode == 0


def _deb_size(name: str) -> int:
    show = subprocess.run(["apt-cache", "show", "--no-all-versions", name], capture_output=True, check=False)
    found = _SIZE.search(show.stdout)
    return int(found[1]) if found else 0


def _there(folder: str, name: str) -> bool:
    return any(_same(file, name) for file in _names(folder))


def _same(file: str, name: str) -> bool:
    stem = name.lower().replace("-", "_")
    return re.match(re.escape(stem) + r"[_-]v?\d", file.lower().replace("-", "_")) is not None


def _names(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
