"""The trees that a mount may show after a crash: steps of a workload, the tree after each, and the comparison.

The daemon promises that its store always holds a *prefix of the requests as it received them*, and everything that an
fsync acknowledged. So the workload is one thread, and each step is made such that all its requests have been answered
when it ends (a write is open, pwrite, close: the close sends the kernel's dirty pages). Then the tree after a crash
equals the tree after some step k, with k at least the last acknowledged sync (of whatever file: commits hold prefixes)
and at most the step under way; that one, if it is a write, may be there in part, for it is several requests.

Files below `lazy/` are the exception: their handles stay open and their pages dirty, and the kernel sends those when it
likes. Their bytes may be any that were written since their own last fsync, but none from before it.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

LAZY = "lazy"
EXCHANGE = 2  # RENAME_EXCHANGE
BULK_EVERY = 60  # steps


@dataclass(slots=True)
class Node:
    """An inode of the model. `data` and `mtime` None: not to be compared."""

    kind: str  # f, d, l
    mode: int = 0
    data: bytes | None = b""
    target: str = ""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    mtime: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """The type and content that one name shows."""

    kind: str
    mode: int
    data: bytes | None
    target: str
    xattrs: tuple[tuple[str, bytes], ...]
    nlink: int
    mtime: int | None


Tree = dict[str, Node]  # path to inode; hard links share the object
View = dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `how` of a write: close, append, direct, fsync, osync; `number`: mode, size, flags, time, offset."""

    op: str
    path: str
    other: str = ""
    number: int = 0
    data: bytes = b""
    how: str = ""

    @property
    def syncs(self) -> bool:
        """Whether everything before is durable when the step is done."""
        return self.op in ("fsync", "lazy_fsync") or self.how in ("fsync", "osync")

    def __str__(self) -> str:
        return f"{self.op} {self.path} {self.other} {self.number} {len(self.data)} bytes {self.how}"


def patched(old: bytes, offset: int, data: bytes) -> bytes:
    """A file's content after a write."""
    return old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]


def apply(tree: Tree, step: Step) -> None:
    """Change the tree as the step does. Content is never changed in place, so views stay what they are."""
    op, path, other = step.op, step.path, step.other
    if op == "create":
        tree[path] = Node("f", step.number, None if path.startswith(LAZY) else b"")
    elif op == "mkdir":
        tree[path] = Node("d", step.number)
    elif op == "symlink":
        tree[path] = Node("l", 0o777, target=other)
    elif op == "link":
        tree[other] = tree[path]
    elif op in ("unlink", "rmdir"):
        del tree[path]
    elif op == "rename":
        _rename(tree, path, other, step.number)
    elif op in ("write", "truncate", "chmod", "utime", "setxattr", "removexattr"):
        _change(tree[path], step)


def _change(node: Node, step: Step) -> None:
    if step.op == "write":
        assert node.data is not None
        node.data, node.mtime = patched(node.data, step.number, step.data), None
    elif step.op == "truncate":
        assert node.data is not None
        node.data, node.mtime = node.data[: step.number].ljust(step.number, b"\0"), None
    elif step.op == "chmod":
        node.mode = step.number
    elif step.op == "utime":
        node.mtime = step.number
    elif step.op == "setxattr":
        node.xattrs = {**node.xattrs, step.other: step.data}
    else:
        node.xattrs = {name: value for name, value in node.xattrs.items() if name != step.other}


def _rename(tree: Tree, old: str, new: str, flags: int) -> None:
    moved = {path: node for path, node in tree.items() if path == old or path.startswith(old + "/")}
    back = {path: node for path, node in tree.items() if path == new or path.startswith(new + "/")}
    for path in (*moved, *back):
        tree.pop(path, None)
    tree.update((new + path[len(old) :], node) for path, node in moved.items())
    if flags & EXCHANGE:
        tree.update((old + path[len(new) :], node) for path, node in back.items())


def view(tree: Tree) -> View:
    """Return the tree that the model expects."""
    names: dict[int, int] = {}
    for node in tree.values():
        names[id(node)] = names.get(id(node), 0) + 1
    shown = {}
    for path, node in tree.items():
        nlink = names[id(node)]
        if node.kind == "d":
            depth = path.count("/") + 1
            inside = (p for p, n in tree.items() if n.kind == "d" and p.startswith(path + "/"))
            nlink = 2 + sum(p.count("/") == depth for p in inside)
        mtime = node.mtime if node.kind == "f" else None
        xattrs = tuple(sorted(node.xattrs.items()))
        shown[path] = Entry(node.kind, node.mode, node.data, node.target, xattrs, nlink, mtime)
    return shown


def observe(root: Path) -> tuple[View, Tree]:
    """Compare a mount with the model. Return the model that continues from its tree."""
    shown: View = {}
    tree: Tree = {}
    inodes: dict[int, Node] = {}
    for path in sorted(_walk(root, "")):
        full = root / path
        st = full.lstat()
        kind = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l"}[stat.S_IFMT(st.st_mode)]
        target = os.readlink(full) if kind == "l" else ""
        data = full.read_bytes() if kind == "f" else b""
        if kind == "f" and len(data) != st.st_size:
            raise AssertionError(f"{path}: stat says {st.st_size} bytes, read gives {len(data)}")
        names = os.listxattr(full, follow_symlinks=False)
        xattrs = {name: os.getxattr(full, name, follow_symlinks=False) for name in names}
        mode = stat.S_IMODE(st.st_mode)
        shown[path] = Entry(kind, mode, data, target, tuple(sorted(xattrs.items())), st.st_nlink, st.st_mtime_ns)
        known = inodes.setdefault(st.st_ino, Node(kind, mode, data, target, xattrs))
        tree[path] = known
        if path.startswith(LAZY):
            known.data = None
    return shown, tree


def _walk(root: Path, prefix: str) -> Iterable[str]:
    with os.scandir(root / prefix) as entries:
        found = [(prefix + entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    if len({name for name, _ in found}) != len(found):
        raise AssertionError(f"a name twice in {prefix or '/'}")
    for path, is_dir in found:
        yield path
        if is_dir:
            yield from _walk(root, path + "/")


def differences(model: View, seen: View) -> list[str]:
    """Paths on which the two disagree."""
    wrong = list(model.keys() ^ seen.keys())
    for path in model.keys() & seen.keys():
        want, got = model[path], seen[path]
        got = replace(
            got, data=got.data if want.data is not None else None, mtime=got.mtime if want.mtime is not None else None
        )
        if want != got:
            wrong.append(path)
    return sorted(wrong)


def is_partial_write(before: View, step: Step, seen: View) -> bool:
    """Whether what is seen is the tree before a write step plus a part of that write."""
    if step.op != "write":
        return False
    shown = seen.get(step.path)
    old = before[step.path].data
    if shown is None or shown.data is None or old is None:
        return False
    new = patched(old, step.number, step.data)
    if not mixes([old, new], shown.data, len(old)):
        return False
    names = [path for path in differences(before, seen) if path in seen and seen[path].data == shown.data]
    patch = {path: replace(before[path], data=shown.data, mtime=None) for path in names if path in before}
    return not differences({**before, **patch}, seen)


def mixes(versions: list[bytes], seen: bytes, least: int) -> bool:
    """Whether each byte of `seen` comes from one of the versions (zeros behind an end), and its length fits."""
    if not least <= len(seen) <= max(len(version) for version in versions):
        return False
    padded = [version.ljust(len(seen), b"\0")[: len(seen)] for version in versions]
    for at in range(0, len(seen), 4096):
        part, choice = seen[at : at + 4096], [version[at : at + 4096] for version in padded]
        if part not in choice and any(byte not in column for byte, *column in zip(part, *choice, strict=True)):
            return False
    return True


def find_prefix(views: list[View], steps: list[Step], seen: View, first: int, last: int) -> int | None:
    """The k in [first, last] such that the tree after k steps is what is seen, a part of step k + 1 allowed."""
    for k in range(last, first - 1, -1):
        if not differences(views[k], seen):
            return k
    for k in range(min(last, len(steps) - 1), first - 1, -1):
        if is_partial_write(views[k], steps[k], seen):
            return k
    return None


def history(tree: Tree, steps: Iterable[Step]) -> list[View]:
    """The views after 0, 1, 2, ... steps."""
    views = [view(tree)]
    for step in steps:
        apply(tree, step)
        views.append(view(tree))
    return views


def check_lazy(path: str, base: bytes, steps: list[Step], acked: int, seen: bytes) -> bool:
    """Whether a lazy file holds bytes written since its last acknowledged fsync, or that fsync's."""
    versions = [base]
    for number, step in enumerate(steps):
        if step.path != path:
            continue
        if step.op == "lazy_write":
            versions.append(patched(versions[-1], step.number, step.data))
        elif step.op == "lazy_fsync" and number < acked:
            versions = versions[-1:]
    return mixes(versions, seen, len(versions[0]))


class Generator:
    """Draws steps that succeed on the tree as it will be."""

    def __init__(self, rng: random.Random, tree: Tree) -> None:
        self.rng = rng
        self.tree = tree
        self.pool = [random.Random(n).randbytes(16384) for n in range(6)]  # content that comes again: shared blocks
        self.clock = 1_600_000_000_000_000_000

    def steps(self, count: int) -> list[Step]:
        """The next steps; the tree is moved along."""
        made = []
        if LAZY not in self.tree:
            made += [Step("mkdir", LAZY, number=0o755)]
            made += [Step("create", f"{LAZY}/{n}", number=0o644) for n in range(2)]
            made += [Step("fsync", LAZY)]
        for step in made:
            apply(self.tree, step)
        while len(made) < count:
            if len(made) % BULK_EVERY == BULK_EVERY // 2 and count - len(made) >= 5:
                made += self._bulk()
            drawn = self._draw()
            if drawn is not None:
                apply(self.tree, drawn)
                made.append(drawn)
        return made

    def _bulk(self) -> list[Step]:
        """A file that comes and goes, so that there are free pages to reuse and to punch out."""
        path = next(name for n in range(1000) if (name := f"bulk{n}") not in self.tree)  # a crash may have left one
        write = Step("write", path, data=self.rng.randbytes(2_000_000), how="fsync")
        return [Step("create", path, number=0o600), write, Step("unlink", path), Step("fsync", LAZY)]

    def _paths(self, kinds: str) -> list[str]:
        return sorted(p for p, n in self.tree.items() if n.kind in kinds and not p.startswith(LAZY))

    def _pick(self, kinds: str) -> str:
        return self.rng.choice(self._paths(kinds) or [""])

    def _free(self) -> str:
        """A path that does not exist, in a directory that does."""
        folders = [""] + [p + "/" for p in self._paths("d") if p.count("/") < 3]
        while True:
            path = self.rng.choice(folders) + self.rng.choice("abcdefgh") + str(self.rng.randrange(12))
            if path not in self.tree:
                return path

    def _content(self) -> bytes:
        rng = self.rng
        size = rng.choice(
            (rng.randrange(200), rng.randrange(5000), rng.randrange(40000), rng.randrange(300_000), 16384)
        )
        kind = rng.randrange(5)
        if kind == 0:
            return rng.randbytes(size)
        if kind == 1:
            return bytes(size)
        if kind == 2:
            return b"".join(rng.choice(self.pool) for _ in range(size // 16384 + 1))
        return (b"line %d of some text that repeats\n" % rng.randrange(99) * (size // 30 + 1))[:size]

    def _draw(self) -> Step | None:
        rng = self.rng
        op = rng.choices(
            ("create", "write", "truncate", "unlink", "rename", "mkdir", "rmdir", "symlink", "link", "chmod", "utime",
             "setxattr", "removexattr", "fsync", "lazy_write", "lazy_fsync", "hold"),
            (14, 30, 5, 7, 10, 4, 2, 3, 3, 3, 3, 4, 2, 12, 6, 2, 2),
        )[0]  # fmt: skip
        if op in ("create", "mkdir"):
            return Step(op, self._free(), number=rng.choice((0o600, 0o644, 0o755)))
        if op == "symlink":
            return Step(op, self._free(), "t" * rng.choice((1, 50, 3000)))
        if op == "rename":
            return self._rename()
        if op == "fsync":
            return Step(op, self._pick("fd"))
        if op.startswith("lazy"):
            path = f"{LAZY}/{rng.randrange(2)}"
            return Step(op, path, number=rng.randrange(60_000), data=self._content() if op == "lazy_write" else b"")
        if op == "rmdir":
            empty = [p for p in self._paths("d") if not any(q.startswith(p + "/") for q in self.tree)]
            return Step(op, rng.choice(empty)) if empty else None
        return self._on_file(op)

    def _on_file(self, op: str) -> Step | None:
        rng = self.rng
        path = self._pick("f" if op != "unlink" else "fl")
        if not path:
            return None
        if op == "link":
            return Step(op, path, self._free())
        if op == "write":
            return self._write(path)
        self.clock += rng.randrange(1, 10**12)
        number = {
            "truncate": rng.choice((0, rng.randrange(400_000), len(self.tree[path].data or b"") // 2)),
            "chmod": rng.choice((0o600, 0o640, 0o755)),
            "utime": rng.choice((self.clock, -self.clock, 2**62)),
        }.get(op, 0)
        if op == "removexattr":
            names = sorted(self.tree[path].xattrs)
            return Step(op, path, rng.choice(names)) if names else None
        if op == "setxattr":
            return Step(op, path, f"user.{rng.choice('xyz')}", data=rng.randbytes(rng.choice((0, 9, 300, 900))))
        return Step(op, path, number=number)

    def _write(self, path: str) -> Step:
        rng = self.rng
        size = len(self.tree[path].data or b"")
        how = rng.choice(("close", "close", "append", "direct", "fsync", "osync"))
        offset = rng.choice((0, 0, size, rng.randrange(size + 1), size + rng.randrange(500_000)))
        data = self._content() or b"x"
        if how == "append":
            offset = size
        if how == "direct":
            offset, data = offset // 4096 * 4096, data[: len(data) // 4096 * 4096] or bytes(4096)
        return Step("write", path, number=offset, data=data, how=how)

    def _rename(self) -> Step | None:
        old = self._pick("fdl")
        if not old:
            return None
        kind = self.rng.randrange(3)
        if kind == 0:  # onto an existing file, as editors do
            new = self._pick("f")
            usable = self.tree[old].kind == "f" and self.tree[new] is not self.tree[old] if new else False
            return Step("rename", old, new) if usable else None
        if kind == 1:
            new = self._pick("fdl")
            if new == old or new.startswith(old + "/") or old.startswith(new + "/"):
                return None
            return Step("rename", old, new, number=EXCHANGE)
        new = self._free()
        return None if new.startswith(old + "/") else Step("rename", old, new)
