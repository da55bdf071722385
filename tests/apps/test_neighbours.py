"""Other filesystems and servers above and below: encryption, Samba, NFS by handles, overlays, updatedb.

Programs that are not installed are skipped; tools/test-neighbours installs them. Users are told in
`nnfs/OPERATING.md`, "Neighbours".
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import filecmp
import os
import secrets
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.harness import WAIT_S, Mount, wait_for
from tests.semantics.kit import checked

pytestmark = [pytest.mark.nnfs_only("about nnfs and its neighbours"), pytest.mark.mount]
TEXTS = {"a": b"text " * 5000, "Ünï name": b"\0\xff" * 40000, "empty": b""}


def need(*programs: str) -> None:
    """Skip where a program is missing."""
    if missing := [name for name in programs if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (tools/test-neighbours installs it)")


def run(*words: str | Path, code: int = 0) -> str:
    """The output of a program that must end with a status."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, stdin=subprocess.DEVNULL)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def fill(folder: Path) -> None:
    """Write files, and a directory of them."""
    (folder / "d").mkdir()
    for name, content in TEXTS.items():
        (folder / name).write_bytes(content)
        (folder / "d" / name).write_bytes(content)


def check(folder: Path) -> None:
    """Assert that they are there."""
    for name, content in TEXTS.items():
        assert (folder / name).read_bytes() == (folder / "d" / name).read_bytes() == content


@contextlib.contextmanager
def unmounted(path: Path) -> Iterator[None]:
    """Unmount something in the end."""
    try:
        yield
    finally:
        subprocess.run(["umount", path], capture_output=True)


@contextlib.contextmanager
def loop_device(image: Path, size: int) -> Iterator[str]:
    """A block device of its own."""
    need("losetup")
    with image.open("wb") as file:
        file.truncate(size)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], capture_output=True)


@contextlib.contextmanager
def server(port: int, *words: str | Path) -> Iterator[None]:
    """A server that listens at a port."""

    def listens() -> bool:
        assert child.poll() is None, f"{words} ended with {child.returncode}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    null = subprocess.DEVNULL  # a session of its own: smbd ends all of its process group
    child = subprocess.Popen(words, stdin=null, stdout=null, stderr=null, start_new_session=True)
    try:
        wait_for(f"{words[0]} at port {port}", listens, step=0.1)
        yield
    finally:
        child.terminate()
        child.wait(WAIT_S)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# ---------------------------------------------------------------------------------------------------------- encryption


def test_gocryptfs_above(mnt: Path, mounted: Mount, tmp_path: Path) -> None:
    need("gocryptfs")
    (tmp_path / "word").write_text("secret")
    (cipher := mnt / "cipher").mkdir()
    (plain := tmp_path / "plain").mkdir()
    options = ("-q", "-passfile", tmp_path / "word")
    run("gocryptfs", *options, "-init", "-scryptn", "10", cipher)
    run("gocryptfs", *options, cipher, plain)
    with unmounted(plain):
        fill(plain)
        os.rename(plain / "a", plain / "b")
        os.rename(plain / "b", plain / "a")
        check(plain)
    assert not any(name in TEXTS for name in os.listdir(cipher))
    mounted.remount()
    run("gocryptfs", *options, cipher, plain)
    with unmounted(plain):
        check(plain)


FS_ENCRYPT_KEY, FS_ENCRYPT_POLICY = 0xC0506617, 0x800C6613  # FS_IOC_ADD_ENCRYPTION_KEY, FS_IOC_SET_ENCRYPTION_POLICY


def test_fscrypt_below(tmp_path: Path) -> None:
    """A store in an encrypted directory of ext4, with the kernel's calls, as fscrypt(1) makes them."""
    need("mkfs.ext4")
    with loop_device(tmp_path / "disk", 160 << 20) as device:
        run("mkfs.ext4", "-q", "-O", "encrypt,stable_inodes", device)
        (disk := tmp_path / "disk.mnt").mkdir()
        if subprocess.run(["mount", device, disk], capture_output=True).returncode:
            pytest.skip("this kernel mounts no ext4 with encryption")
        with unmounted(disk):
            (store := disk / "store").mkdir()
            encrypt(disk, store)
            with Mount(store) as mount:
                fill(mount.path)
                check(mount.path)
            with Mount(store) as mount:
                check(mount.path)
            assert harness.nnfs("fsck", str(store), "--data").returncode == 0


def encrypt(disk: Path, folder: Path) -> None:
    """Give an empty directory a key."""
    key = bytearray(struct.pack("<II32s", 2, 0, bytes(32)) + struct.pack("<II32s", 64, 0, bytes(32)))
    key += secrets.token_bytes(64)
    on_disk, on_folder = os.open(disk, os.O_RDONLY), os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.ioctl(on_disk, FS_ENCRYPT_KEY, key)
            identifier = bytes(key[8:24])
            fcntl.ioctl(on_folder, FS_ENCRYPT_POLICY, struct.pack("<BBBB4s16s", 2, 1, 4, 3, bytes(4), identifier))
        except OSError as error:
            pytest.skip(f"this kernel does not encrypt directories: {error.strerror}")
    finally:
        os.close(on_disk)
        os.close(on_folder)


def test_luks_below(tmp_path: Path) -> None:
    need("cryptsetup", "mkfs.ext4")
    if not os.path.exists("/dev/mapper/control"):
        pytest.skip("this kernel has no device mapper")
    (tmp_path / "word").write_text("secret")
    name = f"nnfs-test-{os.getpid()}"
    with loop_device(tmp_path / "disk", 160 << 20) as device:
        options = ("--batch-mode", "--key-file", tmp_path / "word", "--pbkdf", "pbkdf2")
        run("cryptsetup", "luksFormat", *options, device)
        if subprocess.run(["cryptsetup", "open", *options[:3], device, name], capture_output=True).returncode:
            pytest.skip("this kernel has no dm-crypt")
        try:
            run("mkfs.ext4", "-q", f"/dev/mapper/{name}")
            (disk := tmp_path / "disk.mnt").mkdir()
            run("mount", f"/dev/mapper/{name}", disk)
            with unmounted(disk):
                with Mount(disk / "store") as mount:
                    fill(mount.path)
                with Mount(disk / "store") as mount:
                    check(mount.path)
        finally:
            run("cryptsetup", "close", name)


# ------------------------------------------------------------------------------------------------------------- servers

SMB = """
[global]
  bind interfaces only = yes
  interfaces = lo
  smb ports = {port}
  map to guest = bad user
  guest account = root
  disable netbios = yes
  load printers = no
  log file = {folder}/log
  ncalrpc dir = {folder}/rpc
  {folders}
[nn]
  path = {path}
  guest ok = yes
  read only = no
"""


def test_samba(mnt: Path, tmp_path: Path) -> None:
    need("smbd", "smbclient")
    (folder := tmp_path / "smb").mkdir()
    kinds = ("private dir", "lock directory", "state directory", "cache directory", "pid directory")
    folders = "\n  ".join(f"{kind} = {folder}" for kind in kinds)
    port = free_port()
    (folder / "conf").write_text(SMB.format(port=port, folder=folder, folders=folders, path=mnt))
    (tmp_path / "up").write_bytes(TEXTS["a"])
    commands = (
        f'put {tmp_path}/up "Ünï name"; mkdir d; cd d; put {tmp_path}/up x; rename x y; get y {tmp_path}/down; cd ..; '
        'setmode "Ünï name" +h; allinfo "Ünï name"'
    )
    with server(port, "smbd", "--foreground", "--no-process-group", "-s", folder / "conf", "-l", folder):
        said = run("smbclient", "-p", str(port), "-N", "//127.0.0.1/nn", "-c", commands)
        assert "attributes: HA" in said  # kept as an extended attribute
        assert (mnt / "Ünï name").read_bytes() == (mnt / "d" / "y").read_bytes() == TEXTS["a"]
        assert filecmp.cmp(tmp_path / "up", tmp_path / "down", shallow=False)
        run("smbclient", "-p", str(port), "-N", "//127.0.0.1/nn", "-c", 'del "Ünï name"; del d\\y; rmdir d')
        assert os.listdir(mnt) == []


GANESHA = """
NFS_CORE_PARAM {{ NFS_Port = {port}; Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; Bind_addr = 127.0.0.1; }}
NFSV4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = "{folder}"; Minor_Versions = 0, 1; }}
NFS_KRB5 {{ Active_krb5 = false; }}
EXPORT {{ Export_Id = 77; Path = "{path}"; Pseudo = /nn; Access_Type = RW; Squash = No_Root_Squash; SecType = sys;
  Protocols = 4; Transports = TCP; Filesystem_Id = 7.7; FSAL {{ Name = VFS; }} }}
"""


def test_nfs_by_handles(mnt: Path, mounted: Mount, tmp_path: Path) -> None:
    """A server that keeps handles alone: nfs-ganesha with its FSAL VFS."""
    need("ganesha.nfsd", "nfs-ls", "nfs-cat")
    fill(mnt)
    port = free_port()
    (tmp_path / "conf").write_text(GANESHA.format(port=port, folder=tmp_path, path=mounted.path))
    words = ("-F", "-f", tmp_path / "conf", "-p", tmp_path / "pid", "-L", tmp_path / "log")
    options = f"?version=4&nfsport={port}"
    base = f"nfs://127.0.0.1/nn/{mnt.name}"
    with server(port, "ganesha.nfsd", *words):
        assert set(TEXTS) <= {line.split(maxsplit=5)[-1] for line in run("nfs-ls", f"{base}{options}").splitlines()}
        mounted.drop_caches()  # the kernel has forgotten the inodes: handles find them
        assert run("nfs-cat", f"{base}/d/a{options}").encode() == TEXTS["a"]
        (mnt / "d" / "a").rename(mnt / "d" / "b")
        assert run("nfs-cat", f"{base}/d/b{options}").encode() == TEXTS["a"]


def test_a_handle_outlives_a_mount(mnt: Path, mounted: Mount) -> None:
    """name_to_handle_at(2): inode numbers are never used again, so a handle of an earlier mount finds its file."""
    (mnt / "f").write_bytes(b"found")
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    where = ctypes.byref(ctypes.c_int())
    checked(harness.libc.name_to_handle_at(-100, os.fsencode(mnt / "f"), handle, where, 0))
    mounted.remount()
    base = os.open(mounted.path, os.O_RDONLY)
    descriptor = checked(harness.libc.open_by_handle_at(base, handle, os.O_RDONLY))
    assert os.read(descriptor, 100) == b"found"
    os.close(descriptor)
    os.close(base)


# ------------------------------------------------------------------------------------------------------------ overlays


def test_fuse_overlayfs_with_its_upper_directory_here(mnt: Path, tmp_path: Path) -> None:
    """Containers are stored so where the kernel's overlay is not used, by podman and docker."""
    need("fuse-overlayfs")
    for name in ("upper", "work", "lower"):
        (mnt / name).mkdir()
    (merged := tmp_path / "merged").mkdir()
    fill(mnt / "lower")
    options = f"lowerdir={mnt}/lower,upperdir={mnt}/upper,workdir={mnt}/work"
    run("fuse-overlayfs", "-o", options, merged)
    with unmounted(merged):
        check(merged)
        (merged / "new").write_bytes(b"new")
        (merged / "a").unlink()
        (merged / "d" / "a").write_bytes(b"changed")
        assert (sorted(os.listdir(merged)), (merged / "d" / "a").read_bytes()) == (
            ["d", "empty", "new", "Ünï name"], b"changed",
        )  # fmt: skip
    check(mnt / "lower")
    assert (mnt / "upper" / "new").read_bytes() == b"new"


def test_the_kernels_overlay(mnt: Path, tmp_path: Path) -> None:
    """A lower directory may lie on nnfs; an upper one may not, and the kernel says so."""
    if "overlay" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no overlay")
    (disk := tmp_path / "tmpfs").mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", disk)
    with unmounted(disk):
        for folder in (mnt / "upper", mnt / "work", mnt / "lower", disk / "upper", disk / "work", disk / "merged"):
            folder.mkdir()
        fill(mnt / "lower")
        options = "lowerdir={}/lower,upperdir={}/upper,workdir={}/work"
        run("mount", "-t", "overlay", "o", "-o", options.format(mnt, disk, disk), disk / "merged")
        with unmounted(disk / "merged"):
            check(disk / "merged")
            (disk / "merged" / "a").write_bytes(b"changed")
            assert (disk / "merged" / "a").read_bytes() == b"changed"
        check(mnt / "lower")
        run("mount", "-t", "overlay", "o", "-o", options.format(mnt, mnt, mnt), disk / "merged", code=32)


# ------------------------------------------------------------------------------------------------------------ updatedb


def test_updatedb_leaves_a_mount_out(mnt: Path, mounted: Mount, tmp_path: Path) -> None:
    """locate(1) does not index what PRUNEFS names; it has no nnfs by itself."""
    need("updatedb", "locate")
    if "plocate" not in run("updatedb", "--version"):
        pytest.skip("another updatedb than plocate's")
    fill(mnt)
    words = ["--prunefs", "fuse.nnfs", "--prunepaths", "", "--require-visibility", "no"]
    run("updatedb", *words, "--database-root", mounted.base, "--output", tmp_path / "db")
    assert run("locate", "-d", tmp_path / "db", f"{mounted.store}/data.mdb") == f"{mounted.store}/data.mdb\n"
    run("locate", "-d", tmp_path / "db", f"{mnt}/d/empty", code=1)
