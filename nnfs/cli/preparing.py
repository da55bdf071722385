"""The command `nnfs prepare`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from nnfs import kernelcache
from nnfs.errors import WorkerError
from nnfs.workers import prepared


def prepare(args: argparse.Namespace) -> int:
    """Compile the kernels of the codecs, if that was not done."""
    if prepared.is_done() and not args.again:
        print("the kernels are compiled already")
        return 0
    environment = dict(os.environ)
    kernelcache.clean_environment(environment)
    os.umask(0o022)  # other users are to run them as well
    done = subprocess.run([sys.executable, "-P", "-m", "nnfs.workers.prepare"], env=environment, check=False)
    if done.returncode:
        raise WorkerError("not all kernels could be compiled, see above: codecs without them do not run")
    return 0
