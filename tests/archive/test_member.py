"""Headers of members: what Python's tarfile reads in them."""

from __future__ import annotations

import io
import tarfile

import pytest

from nnfs.cli.tar import member
from nnfs.cli.tar.fingerprint import Passing
from nnfs.cli.tar.member import Member
from nnfs.proof import content_hash, file_hash


def read(data: bytes) -> tarfile.TarInfo:
    """The one member of an archive, as Python reads it."""
    with tarfile.open(fileobj=io.BytesIO(data + bytes(1024)), mode="r:") as archive:
        (found,) = archive.getmembers()
        return found


@pytest.mark.parametrize("length", [*range(1, 12), 90, 91, 92, 93, 94, 95, 986, 987, 988, 989, 990, 991, 9990])
def test_a_record_counts_its_own_digits(length: int) -> None:
    found = member.record(b"key", b"v" * length)
    digits, _, rest = found.partition(b" ")
    assert int(digits) == len(found)
    assert rest == b"key=" + b"v" * length + b"\n"


@pytest.mark.parametrize(
    "name",
    [b"a", b"a" * 100, b"a" * 101, b"a/" + b"b" * 100, b"a" * 155 + b"/" + b"b" * 100, b"a" * 156 + b"/" + b"b" * 100,
     b"a" * 155 + b"/" + b"b" * 101, b"a" * 98 + b"/b/", b"\xff" * 300, b"d" * 150 + b"/" + b"e" * 99 + b"/"],
)  # fmt: skip
def test_names_of_any_length(name: bytes) -> None:
    kind = member.DIRECTORY if name.endswith(b"/") else member.SYMLINK
    found = read(member.encode(Member(name, link=name, kind=kind)))
    assert found.name.encode("utf-8", "surrogateescape") == name.rstrip(b"/")
    assert found.linkname.encode("utf-8", "surrogateescape") == name


@pytest.mark.parametrize("time", [0, 1, -1, -(10**9), 1_700_000_000_123_456_789, 10**19, -(10**18) + 3])
def test_times(time: int) -> None:
    whole, fraction = divmod(abs(time), 10**9)
    found = read(member.encode(Member(b"f", mtime=time, atime=time)))
    assert found.pax_headers["atime"] == f"{'-' * (time < 0)}{whole}.{fraction:09d}".rstrip("0").rstrip(".")
    assert found.mtime == float(found.pax_headers["atime"])


def test_numbers_beyond_their_fields() -> None:
    found = read(member.encode(Member(b"f", uid=2**32 - 2, gid=2**21, device=(4095, 2**20 - 1), kind=member.CHAR)))
    assert (found.uid, found.gid, found.devmajor, found.devminor) == (2**32 - 2, 2**21, 4095, 2**20 - 1)
    head = member.encode(Member(b"f", stored=9 << 30))
    assert b"19 size=9663676416\n" in head
    assert head[1024 + 124 : 1024 + 135] == b"7" * 11


def test_attributes_are_bytes() -> None:
    values = {b"user.a=b%3D": b"\0\n\xff 12 x=y\n", b"user.\xff": b"", b"security.capability": bytes(20)}
    one = Member(b"f")
    one.xattrs = values
    assert one.xattrs == values
    assert b"SCHILY.xattr.user.a%3Db%253D=" in member.encode(one)


def test_holes() -> None:
    data = b"x" * 512 + b"end"
    one = Member(b"d/f", size=10**15, extents=[(10**9, 512), (10**15 - 3, 3)])
    encoded = member.encode(one) + member.padded(data)
    found = read(encoded)
    assert (found.name, found.size) == ("d/f", 10**15)
    with tarfile.open(fileobj=io.BytesIO(encoded + bytes(1024))) as archive:
        file = archive.extractfile("d/f")
        assert file is not None
        file.seek(10**15 - 3)
        assert file.read() == b"end"


@pytest.mark.parametrize("chunk", [16384, 131072])
def test_the_fingerprint_of_content_that_passes(chunk: int) -> None:
    """Pieces and holes of any length, against the definition."""
    parts: list[bytes | int] = [
        b"abc",
        5,
        b"x" * 40_000,
        chunk * 3,
        b"y",
        2 * chunk - 1,
        b"z" * chunk,
        0,
        b"",
        20_000_000,
        b"end",
        7,
    ]
    content = b"".join(part if isinstance(part, bytes) else bytes(part) for part in parts)
    whole = file_hash(chunk, len(content))
    for at in range(0, len(content), chunk):
        whole.update(content_hash(content[at : at + chunk]))
    passing = Passing(chunk, len(content))
    for part in parts:
        if isinstance(part, bytes):
            passing.update(part)
        else:
            passing.skip(part)
    assert passing.digest() == whole.digest()
