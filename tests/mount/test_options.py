"""The -o options of a mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnfs.config import load_options, parse_own
from nnfs.errors import UsageError
from nnfs.mount import options as flags
from nnfs.mount.options import parse_options, words


def test_options_default_and_root() -> None:
    options = parse_options([], root=True)
    assert options.flags == flags.MS_NOSUID | flags.MS_NODEV
    assert options.allow_other
    assert options.default_permissions
    assert options.subtype == "nnfs"
    assert not parse_options([], root=False).allow_other
    assert parse_options(["allow_root"], root=False).allow_other


def test_options_later_wins_and_bookkeeping_is_ignored() -> None:
    options = parse_options(
        ["rw,suid,ro,dev,noexec,noatime", "relatime,auto,noauto,_netdev,nofail,x-systemd.automount,comment=a,defaults"]
    )
    assert options.flags == flags.MS_RDONLY | flags.MS_NOEXEC | flags.MS_RELATIME
    assert options.read_only
    assert options.atime == "relatime"
    assert not options.own
    assert parse_options(["noatime"]).atime == "noatime"
    assert parse_options(["noatime,strictatime"]).atime == "strictatime"
    users = parse_options(["suid,exec,user"]).flags
    assert users == flags.MS_NOSUID | flags.MS_NODEV | flags.MS_NOEXEC
    assert parse_options(["user,exec"]).flags == flags.MS_NOSUID | flags.MS_NODEV


def test_options_of_nnfs_come_back() -> None:
    options = parse_options([r"fsname=/a\,b,cache=1G,verbose", r"path=c:\\d=e"], fsname="/store")
    assert options.fsname == "/a,b"
    assert options.own == {"cache": "1G", "verbose": "", "path": "c:\\d=e"}
    assert parse_options(["cache=1"], fsname="/store").fsname == "/store"
    for wrong in ("fsname", "subtype=", "max_read=few", "max_read=1"):
        with pytest.raises(UsageError):
            parse_options([wrong])


@pytest.mark.parametrize("given", ["device=cuda:0+cpu", "device=cuda:0,cpu", r"device=cuda:0\,cpu"])
def test_devices_stand_between_commas_or_plus_signs(given: str) -> None:
    options = parse_options(["ro," + given + ",cache=1G", "noatime"])
    assert {**options.own} == {"device": options.own["device"], "cache": "1G"}
    assert parse_own(options.own).devices == ["cuda:0", "cpu"]
    assert options.read_only


def test_what_is_meant_by_an_option_that_is_not_known(tmp_path: Path) -> None:
    for wrong, right in (("thaw_limt", "thaw_limit"), ("noatme", "noatime"), ("allow_othr", "allow_other")):
        with pytest.raises(UsageError, match=f"unknown option '{wrong}'; did you mean {right}"):
            load_options(tmp_path, {wrong: ""}, words())
    with pytest.raises(UsageError, match=r"unknown option 'zzz' \("):
        load_options(tmp_path, {"zzz": ""}, words())
