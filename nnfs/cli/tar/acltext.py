"""ACLs as text, `user::rw-,user:1000:r--,...`, as archives have them, with numbers in place of names."""

from __future__ import annotations

from collections.abc import Callable

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


def value_of(text: bytes, user: Callable[[bytes], int | None], group: Callable[[bytes], int | None]) -> bytes:
    """Return an ACL as the kernel has it. `user` and `group` return the numbers of names. Raises `ValueError`.

    Entries end with a comma or a line; a fourth field is the number for machines that lack the name (so bsdtar does).
    """
    entries = []
    for line in text.replace(b",", b"\n").split(b"\n"):
        line = line.partition(b"#")[0].strip()
        if line:
            entries.append(_entry([part.strip() for part in line.removeprefix(b"default:").split(b":")], user, group))
    value = acl.pack(sorted(entries, key=lambda entry: (entry.tag, entry.id)))
    acl.parse(value)
    return value


def _entry(fields: list[bytes], user: Callable[[bytes], int | None], group: Callable[[bytes], int | None]) -> Entry:
    tag = {b"u": USER_OBJ, b"g": GROUP_OBJ, b"m": MASK, b"o": OTHER}.get(fields[0][:1])
    if tag is None or len(fields) < 2:
        raise ValueError("an entry of an ACL is not understood")
    if tag in (MASK, OTHER):
        return Entry(tag, _perm(fields[-1] if len(fields) < 4 else fields[2]))
    if len(fields) < 3:
        raise ValueError("an entry of an ACL is not understood")
    perm = _perm(fields[2])
    if not fields[1]:
        return Entry(tag, perm)
    number = int(fields[1]) if fields[1].isdigit() else (user if tag == USER_OBJ else group)(fields[1])
    if number is None:
        if len(fields) < 4 or not fields[3].isdigit():
            raise ValueError(f"nobody is called {fields[1].decode(errors='replace')} here, who has an entry in the ACL")
        number = int(fields[3])
    if number >= acl.NO_ID:
        raise ValueError("an entry of an ACL is not understood")
    return Entry(USER if tag == USER_OBJ else GROUP, perm, number)


def _perm(text: bytes) -> int:
    if text.strip(b"rwx-"):
        raise ValueError("an entry of an ACL is not understood")
    return sum(bit for letter, bit in ((b"r", 4), (b"w", 2), (b"x", 1)) if letter in text)
