"""The machine that figures come from, in a few words."""

from __future__ import annotations

import os
import re
from pathlib import Path

FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")  # those that a level of kernels needs


def described(cpuinfo: str, meminfo: str, cores: int) -> str:
    """Return model, cores, features and memory, of /proc/cpuinfo and /proc/meminfo."""
    model = re.search(r"^(?:model name|Model|CPU part)\s*: (.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", cpuinfo, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    total = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)
    memory = f"{int(total[1]) / (1 << 20):.0f} GiB" if total else "unknown memory"
    features = " ".join(name for name in FEATURES if name in known)
    return f"{model[1] if model else 'unknown CPU'}, {cores} cores ({features or 'no vectors'}), {memory}"


def this_machine() -> str:
    """Return what this machine is, and how busy it is now."""
    cpuinfo, meminfo = (Path("/proc", name).read_text() for name in ("cpuinfo", "meminfo"))
    return f"{described(cpuinfo, meminfo, len(os.sched_getaffinity(0)))}, load {os.getloadavg()[0]:.1f}"
