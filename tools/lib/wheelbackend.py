"""The build backend: flit's, and into a wheel it puts manual pages, completion and units, as data of the package.

An installer puts them below the prefix, as in `PREFIX/share/man`. `nnfs integrate` links them from
where a system looks. An editable install, as set-up makes it, is flit's own.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

from flit_core import buildapi
from flit_core.buildapi import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable", "build_sdist", "build_wheel", "get_requires_for_build_editable", "get_requires_for_build_sdist",
    "get_requires_for_build_wheel", "prepare_metadata_for_build_editable", "prepare_metadata_for_build_wheel",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
REQUIRES = ["argparse-manpage>=4.6,<5", "shtab>=1.7,<2"]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Return what makes the manual and the completion, besides what flit wants."""
    return [*buildapi.get_requires_for_build_wheel(config_settings), *REQUIRES]


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build the wheel, and return its name."""
    name: str = buildapi.build_wheel(wheel_directory, config_settings, metadata_directory)
    complete(Path(wheel_directory, name), data_files())
    return name


def data_files() -> dict[str, str]:
    """Return the files that the package brings besides its modules, by their path below the prefix."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "lib")]
    import manual

    units = {f"lib/systemd/system/{unit.name}": unit.read_text() for unit in sorted((ROOT / "systemd").iterdir())}
    return {**manual.texts(), **units}


def complete(wheel: Path, files: dict[str, str]) -> None:
    """Add data files to a wheel, and to its record."""
    distribution = "-".join(wheel.name.split("-")[:2])
    record = f"{distribution}.dist-info/RECORD"
    draft = wheel.with_suffix(".draft")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as new:
        stamp = old.getinfo(record).date_time
        for member in old.infolist():
            if member.filename != record:
                new.writestr(member, old.read(member))
        lines = old.read(record).decode().splitlines()
        for name, text in files.items():
            path, data = f"{distribution}.data/data/{name}", text.encode()
            member = zipfile.ZipInfo(path, stamp)
            member.external_attr, member.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            new.writestr(member, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.insert(0, f"{path},sha256={digest},{len(data)}")
        new.writestr(old.getinfo(record), "\n".join([*lines, ""]))
    draft.replace(wheel)
