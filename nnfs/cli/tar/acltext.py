"""ACLs as text, `user::rw-,user:1000:r--,...`, as archives have them, with numbers in place of names."""

from __future__ import annotations

from nnfs.fs import acl
from nnfs.fs.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry

_WORDS = {USER_OBJ: "user:", USER: "user:", GROUP_OBJ: "group:", GROUP: "group:", MASK: "mask:", OTHER: "other:"}


def text_of(value: bytes) -> bytes:
    """Return the text of an ACL as the kernel has it. Raises `ValueError`."""
    return ",".join(_line(entry) for entry in acl.parse(value)).encode()


def _line(entry: Entry) -> str:
    perm = "".join(letter if entry.perm & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
    who = str(entry.id) if entry.tag in (USER, GROUP) else ""
    return f"{_WORDS[entry.tag]}{who}:{perm}"
