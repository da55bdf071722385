"""The worker: a process that owns one device and codes for the peer at the other end of its socket.

`conversation.py` speaks with the peer, `batchcoding.py` codes. A worker started with --fd belongs to one peer and ends
with it, in the middle of whatever it does. With --socket it serves one peer after the other. It never forks; torch is
imported by the first work item that needs it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import socket

from nnfs.workers.catalogue import Served
from nnfs.workers.conversation import Conversation
from nnfs.workers.startup import die_first, give_way, listen, quiet_threads, take_signals


def main(arguments: list[str] | None = None) -> None:
    """Run a worker: parse the command line, then serve until the peer goes away."""
    parser = argparse.ArgumentParser("nnfs-worker", description="Codes chunks for the other end of a socket.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, metavar="N", help="a connected socket: serve it, and end with it")
    where.add_argument("--socket", metavar="PATH", help="listen there, and serve one peer after the other")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument(
        "--batch", type=int, default=1 << 30, metavar="BYTES", help="at most so many plain bytes at once"
    )
    parser.add_argument("--warm", action="store_true", help="be ready before the first work item, not with it")
    parser.add_argument("--idle", action="store_true", help="run only when nobody else wants the processor")
    parser.add_argument("--serve", default="nnfs.workers.catalogue:Catalogue", metavar="MODULE:NAME", help="the codecs")
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    take_signals()
    die_first(idle=args.idle)
    quiet_threads(os.environ, args.threads)
    if args.idle:
        give_way()
    module, _, name = args.serve.partition(":")
    served: Served = getattr(importlib.import_module(module), name)(args.device, args.threads)
    if args.fd is not None:
        peer = socket.socket(fileno=args.fd)
        if args.warm:
            served.warm()
        Conversation(peer, served, args.batch, args.threads, at_end=lambda: os._exit(0)).run()
        return
    with listen(args.socket) as listener:
        if args.warm:
            served.warm()
        while True:
            Conversation(listener.accept()[0], served, args.batch, args.threads, at_end=lambda: None).run()


if __name__ == "__main__":
    main()
