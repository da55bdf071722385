"""Provenance of the corpus: licences as the packages state them, and a report for people."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from typing import Any

from nnfs.train.unpack import DAMAGED, Candidate

_LICENCE = re.compile(r"^License:\s*(\S.*)$", re.MULTILINE)
_LICENCE_FILE = re.compile(r"(^|/)(licen[cs]e|copying)(\.\w+)?$", re.IGNORECASE)


def licence(files: list[Candidate]) -> str:
    """Return the licences that a package states in debian/copyright or its metadata, else "see LICENSE" or ""."""
    named: Counter[str] = Counter()
    stated = ""
    for file in files:
        if file.name.endswith(("/copyright", "PKG-INFO", "/METADATA")):
            with contextlib.suppress(*DAMAGED):
                text = file.load(400_000).decode(errors="replace")
                named.update(match.strip()[:40] for match in _LICENCE.findall(text))
        elif _LICENCE_FILE.search(file.name):
            stated = f"see {os.path.basename(file.name)}"
    return ", ".join(name for name, _ in named.most_common(4)) or stated


def report(index: Any, kinds: list[str], sources: list[str], licences: dict[str, str], dropped: Counter[str]) -> str:
    """Return a report: bytes and files of each kind and source, then the files that were left out."""
    lines = [f"{len(index)} files, {int(index['length'].sum())} bytes, {int(index['held'].sum())} files held out", ""]
    for number, kind in enumerate(kinds):
        chosen = index[index["kind"] == number]
        lines.append(f"{kind}: {int(chosen['length'].sum())} bytes in {len(chosen)} files")
        share: Counter[int] = Counter()
        files: Counter[int] = Counter()
        for source, length in zip(chosen["source"].tolist(), chosen["length"].tolist(), strict=True):
            share[source] += length
            files[source] += 1
        for source, size in share.most_common():
            terms = licences.get(sources[source], "")
            lines.append(f"    {size:11d} {files[source]:6d}  {sources[source]}" + (f"  [{terms}]" if terms else ""))
    lines += ["", "left out (files):"] + [f"    {count:9d}  {why}" for why, count in dropped.most_common()]
    return "\n".join(lines) + "\n"
