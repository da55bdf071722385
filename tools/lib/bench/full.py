"""Full disks below a store: trials over filesystems, sizes and ways to fill them, and a table of the results."""

from __future__ import annotations

import argparse
import itertools
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator

from tests.disks import KINDS, SIZES, why_no_quota, why_not
from tests.fullness import HOWS, Trial

# Somebody takes every free block within half a millisecond, for seconds: what is handed from the reserve to the data
# file is theirs now and then, until nothing is held. Not promised (DESIGN.md, "Space"), so only tried when it is named.
RACING = "racing"

Case = tuple[str, int, str, bool]  # filesystem, MiB, who fills it, whether by a quota


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Yield all cases that this machine can try, again and again."""
    plain = [(k, s, h, False) for s, h, k in itertools.product(SIZES, HOWS, KINDS)]
    quotas = [(k, s, h, True) for k, s, h in itertools.product(KINDS, (320, 512), HOWS) if not why_no_quota(k)]
    hows = [args.how] if args.how else [how for how in HOWS if how != RACING]
    wanted = [
        (kind, size, how, quota)
        for kind, size, how, quota in plain + quotas
        if args.kind in (None, kind) and args.size in (None, size) and how in hows
        and not why_not(kind, size) and args.quota in (None, quota)
    ]  # fmt: skip
    if not wanted:
        raise SystemExit("nothing of that can be tried on this machine")
    yield from itertools.cycle(wanted)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/test-full", description=__doc__)
    parser.add_argument("trials", nargs="?", type=int, default=200, help="default 200")
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--size", type=int, help="MiB")
    parser.add_argument("--how", choices=HOWS, help=f"who fills the disk (all but {RACING})")
    parser.add_argument("--quota", action=argparse.BooleanOptionalAction, help="only with (without) a quota")
    parser.add_argument("--seed", type=int, default=1, help="of the first trial")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes and mounts filesystems")
    good: Counter[Case] = Counter()
    bad: Counter[Case] = Counter()
    for seed, case in zip(range(args.seed, args.seed + args.trials), cases(args), strict=False):
        kind, size, how, quota = case
        began = time.monotonic()
        try:
            Trial(kind, size, how, seed, quota=quota).run()
            good[case] += 1
        except Exception:  # noqa: BLE001 - counted, shown, and the next one is tried
            traceback.print_exc()
            bad[case] += 1
        result = "FAILED" if bad[case] else "ok"
        label = f"{kind}{'+quota' if quota else ''}"
        print(f"{seed:5d}  {label:11} {size:4d} MiB  {how:8} {result:6} {time.monotonic() - began:6.1f} s", flush=True)
    print(f"\n{'filesystem':12} {'MiB':>4}  {'filled by':9} {'ok':>4} {'failed':>6}")
    for case in sorted(good | bad):
        kind, size, how, quota = case
        print(f"{kind + ('+quota' if quota else ''):12} {size:4d}  {how:9} {good[case]:4d} {bad[case]:6d}")
    print(f"{good.total()} of {good.total() + bad.total()} trials without an exception")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
