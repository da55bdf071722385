# shellcheck shell=bash
# Set-up, sourced by tools/run, tools/test and tools/check: `set_up run [TORCH]` or `set_up test [TORCH]`.
#
# Everything goes into .venv in the checkout, except system packages (apt-get, only what is missing) and, for root, links to
# the mount helpers in /sbin and to the command in /usr/local/bin. A stamp in .venv makes the second call cheap.
# Progress goes to stderr, the commands' own output to .setup.log.

set -euo pipefail
PATH=${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin # a login by `su` lacks mkfs, modprobe, ...

root=$(cd "${BASH_SOURCE[0]%/*}/../.." && pwd -P)
venv=$root/.venv
log=$root/.setup.log

# System packages that must be there, each as "command that succeeds if it is|Debian package".
run_needs=(
    "command -v gcc|gcc"
    "test -e /usr/include/stdio.h|libc6-dev"
    "command -v pkg-config|pkg-config"
    "pkg-config --exists 'fuse3 >= 3.2'|libfuse3-dev"
    "command -v fusermount3|fuse3"
    "test -e /dev/fuse || command -v modprobe|kmod"
    "test -e /etc/ssl/certs/ca-certificates.crt -o -e /etc/pki/tls/certs|ca-certificates"
)
test_needs=(
    "command -v setfattr|attr"
    "command -v setfacl|acl"
    "command -v fio|fio"
    "command -v rsync|rsync"
    "command -v sqlite3|sqlite3"
    "command -v git|git"
    "command -v ps|procps"
    "command -v losetup|mount"
    "command -v findmnt|util-linux"
    "command -v mkfs.ext4|e2fsprogs"
    "command -v mkfs.xfs|xfsprogs"
    "command -v mkfs.btrfs|btrfs-progs"
    "command -v setquota|quota"
    "command -v systemd-analyze|systemd"
)
test_wishes=( # of tests that are skipped without them
    "command -v chromium || command -v google-chrome|chromium"
)

say() { printf 'nnfs set-up: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

quietly() { # quietly COMMAND...: its output into the log
    printf '\n$ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 9>&- </dev/null
}

show_log() {
    tail -n 25 "$log" | sed 's/^/    /' >&2
    say "the whole output: $log"
}

# ------------------------------------------------------------------------------------------------------ system packages

missing_packages() { # missing_packages NEED...: one package name per line
    local need
    for need in "$@"; do
        eval "${need%|*}" >/dev/null 2>&1 || printf '%s\n' "${need##*|}"
    done
}

install_packages() { # install_packages PACKAGE...
    (($#)) || return 0
    command -v apt-get >/dev/null || die "missing: $*. Install them (the names are Debian's) and call again."
    ((EUID == 0)) || die "missing system packages: $*. Call again with sudo, or: sudo apt-get install $*"
    say "installing system packages: $*"
    local get=(env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=600)
    # The lists of a fresh machine are empty or old: then update, and try again.
    quietly "${get[@]}" install --no-install-recommends "$@" && return
    quietly "${get[@]}" update || say "apt-get update failed; trying with the lists there are"
    quietly "${get[@]}" install --no-install-recommends "$@" && return
    show_log
    die "apt-get could not install: $*. Is there a network, and is another apt-get at work?"
}

install_wishes() { # install_wishes PACKAGE...: no obstacle when they cannot be had
    (($#)) || return 0
    if ! command -v apt-get >/dev/null || ((EUID)) ||
        ! quietly env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=600 install --no-install-recommends "$@"; then
        say "without $*: some tests are skipped"
    fi
}

unpack_promtool() { # the program alone: Debian's package prometheus would start a server
    if [[ -x $venv/bin/promtool ]] || command -v promtool >/dev/null; then return 0; fi
    local folder
    folder=$(mktemp -d)
    if ! { cd "$folder" && quietly apt-get download prometheus && quietly dpkg -x prometheus_*.deb . &&
        cp usr/bin/promtool "$venv/bin/"; }; then
        say "without promtool (Debian's prometheus): a test is skipped"
    fi
    cd "$root"
    rm -rf "$folder"
}

# ---------------------------------------------------------------------------------------------------------------- Python

open_to_others() { # open_to_others PATH: whether other users can enter all that leads to a program or folder, and use it
    local path mode
    path=$(readlink -f "$1") || return 1
    while :; do
        mode=$(stat -c %a "$path") || return 1
        ((8#$mode & 1)) || return 1
        [[ $path != / ]] || return 0
        path=$(dirname "$path")
    done
}

find_python() { # prints an interpreter that is new enough, can make a venv and has the headers to build pyfuse3
    # Root's should be one that other users can execute (not of a pyenv in /root), if they can enter the checkout.
    if ((EUID == 0)) && [[ -z ${NNFS_PYTHON:-} ]] && open_to_others "$root"; then
        find_any_python open_to_others && return
    fi
    find_any_python :
}

find_any_python() { # find_any_python TEST: ... of which TEST is true
    local name found
    for name in ${NNFS_PYTHON:+"$NNFS_PYTHON"} python3 /usr/bin/python3 python3.{14,13,12,11}; do
        command -v "$name" >/dev/null || continue
        found=$("$name" -c '
import sys, sysconfig
assert sys.version_info >= (3, 11)
import ensurepip, venv
open(sysconfig.get_path("include") + "/Python.h").close()
print(getattr(sys, "_base_executable", sys.executable))' 2>>"$log") && "$1" "$found" && printf '%s\n' "$found" && return
    done
    return 1
}

venv_works() { # a venv that was moved or left half-made does not
    [[ -f $venv/place && $(<"$venv/place") == "$root" ]] && "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

make_venv() {
    local python
    if ! python=$(find_python); then
        if command -v apt-get >/dev/null; then
            install_packages python3 python3-venv python3-dev
        fi
        python=$(find_python) || die "needs Python 3.11 or newer with venv and headers; NNFS_PYTHON=/path/to/python3 names one."
    fi
    say "creating $venv with $python"
    quietly "$python" -m venv --clear "$venv" && printf '%s\n' "$root" >"$venv/place" && return
    show_log
    die "could not create $venv"
}

pip() { quietly "$venv/bin/python" -m pip --disable-pip-version-check --no-input --no-cache-dir --retries 2 "$@"; }

install_project() { # install_project run|test
    local extra=
    if [[ $1 == test ]]; then extra="[test]"; fi
    say "installing Python packages"
    pip install --editable "$root$extra" && return
    show_log
    die "could not install the Python packages. They come from PyPI, or from the index that \`pip config\` names: is it in reach?"
}

# ----------------------------------------------------------------------------------------------------------------- torch

has_gpu() {
    [[ -e /dev/nvidia0 ]] || { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1
}

install_torch() { # install_torch cpu|cuda
    local version
    version=$(sed -n 's/^neural = .*"torch==\([0-9.]*\)".*/\1/p' "$root/pyproject.toml")
    if [[ $1 == cuda ]]; then
        say "installing torch $version with CUDA: some gigabytes"
        # "===" compares as text, so a configured index's own +cpu build is not taken. PyPI's build for x86-64 has CUDA.
        pip install "torch===$version" && has_cuda_build && return
        pip install --extra-index-url https://download.pytorch.org/whl/cu130 "torch==$version+cu130" && has_cuda_build
    else
        # PyPI has no "+cpu" build, so naming it never brings the gigabytes of CUDA to a machine without a GPU.
        say "installing torch $version for CPU"
        pip install "torch==$version+cpu" && return
        pip install --extra-index-url https://download.pytorch.org/whl/cpu "torch==$version+cpu"
    fi
}

install_jax() { # for the tests of its engine: half a gigabyte
    "$venv/bin/python" -c 'import jax' 2>/dev/null && return
    say "installing JAX"
    pip install --editable "$root[jax]" || say "JAX could not be installed: the tests of its engine are skipped"
}

has_cuda_build() { quietly "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; }

choose_torch() { # choose_torch run|test auto|cpu|cuda|none: installs, and notes in .venv what was asked and is there, and if with a GPU
    local want=$2 gpu=nogpu
    if has_gpu; then gpu=gpu; fi
    case $want-$gpu-$1 in
    auto-gpu-*) want=cuda ;;
    auto-nogpu-test) want=cpu ;; # the normative network, and training
    auto-nogpu-run) want=none ;; # native code and numpy do all that a machine without a GPU needs, but for `nnfs train`
    esac
    if [[ $want != none ]] && ! install_torch "$want"; then
        show_log
        say "torch could not be installed. Only a GPU and nnfs train need it; \`tools/run --torch $want\` tries again."
        want=failed
    fi
    printf '%s %s %s\n' "$2" "$want" "$gpu" >"$venv/torch"
}

earlier_torch() { # what was asked for before: a choice once made holds
    local asked=auto
    [[ ! -f $venv/torch ]] || read -r asked _ <"$venv/torch"
    printf '%s\n' "$asked"
}

torch_is_chosen() { # torch_is_chosen run|test ASKED: whether what is installed answers it ("" keeps an earlier choice)
    local asked= got= gpu=
    [[ -f $venv/torch ]] && read -r asked got gpu <"$venv/torch" || return 1
    case $2 in
    "" | auto)
        [[ $asked != auto ]] && return
        [[ $1 != test || $got != none ]] && [[ $gpu == gpu || ! -e /dev/nvidia0 ]] # a GPU that came later
        ;;
    *) [[ $got == "$2" ]] ;;
    esac
}

# --------------------------------------------------------------------------------------------------------------- helpers

helper_links=(/sbin/{u,}mount{.fuse,}.nnfs /usr/local/bin/nnfs)
mark="# Written by nnfs's set-up."

helpers_work() { # not root: nothing that could be done
    ((EUID == 0)) || return 0
    local link
    for link in "${helper_links[@]}"; do [[ -x $link ]] || return 1; done
}

install_helpers() { # as root: mount(8) and umount(8) find nnfs by /sbin/[u]mount.TYPE. Links: they cannot be out of date.
    ((EUID == 0)) || return 0
    local link target
    for link in "${helper_links[@]}"; do
        case $link in
        */umount.*) target=$root/nnfs/cli/sbin/umount.nnfs ;;
        */mount.*) target=$root/nnfs/cli/sbin/mount.nnfs ;;
        *) target=$venv/bin/nnfs ;;
        esac
        if [[ -f $link && ! -L $link ]] && grep -qsF "$mark" "$link"; then rm -f "$link"; fi
        if [[ -e $link && ! -L $link ]]; then
            say "leaving $link alone: it is not a link of ours"
        elif [[ $link == */bin/nnfs ]] && ! { open_to_others "$target" && open_to_others "$venv/bin/python"; }; then
            install_wrapper "$link" "$target" || say "could not write $link"
        else
            mkdir -p "${link%/*}" && ln -sfn "$target" "$link" || say "could not link $link: mount -t fuse.nnfs will not work"
        fi
    done
}

install_wrapper() { # install_wrapper LINK TARGET: a link would give other users "bad interpreter", or a traceback
    local target=$2 closed=$root
    if open_to_others "$root"; then closed=$(readlink -f "$venv/bin/python"); fi
    say "$1 is for $(id -un) alone: other users cannot enter $closed"
    mkdir -p "${1%/*}" && rm -f "$1" && cat >"$1" <<END && chmod 755 "$1"
#!/bin/sh
$mark
if [ -x ${target@Q} ] && [ -x ${venv@Q}/bin/python ]; then exec ${target@Q} "\$@"; fi
echo "nnfs: set up for $(id -un) alone: other users cannot enter" ${closed@Q} "(or it is gone)." >&2
echo "nnfs: use sudo; or set nnfs up in a checkout that all can enter (/opt/nnfs, say), with NNFS_PYTHON=/usr/bin/python3" >&2
exit 126
END
}

# ---------------------------------------------------------------------------------------------------------------- set up

current_key() { # what a set-up depends on: the packages, this file, the checkout's place, the interpreter
    sha256sum "$root/pyproject.toml" "$root/tools/lib/setup.sh" "$root"/nnfs/kernels/{build.py,src/*} && readlink -f "$venv/bin/python"
}

is_set_up() { # is_set_up run|test TORCH
    [[ -x $venv/bin/python && -f $venv/stamp-$1 && $(<"$venv/stamp-$1") == "$(current_key)" ]] &&
        torch_is_chosen "$1" "$2" && helpers_work
}

compile_kernels() { # now, not at the first read: numba keeps them beside the sources
    say "compiling the codecs' kernels"
    quietly "$venv/bin/python" -m nnfs.workers.prepare && return
    show_log
    say "the kernels could not be compiled: cold codecs will not work"
}

set_up_wishes() { # after set_up test: what few tests need and a quick run goes without
    local packages
    mapfile -t packages < <(missing_packages "${test_wishes[@]}")
    install_wishes "${packages[@]}"
    unpack_promtool
}

set_up() { # set_up run|test [auto|cpu|cuda|none]
    local kind=$1 torch=${2:-}
    if ! is_set_up "$kind" "$torch"; then
        exec 9<"$root"
        flock --nonblock 9 || { say "waiting for another set-up of this checkout" && flock 9; }
        is_set_up "$kind" "$torch" || set_up_now "$kind" "$torch"
        exec 9<&-
    fi
    [[ -e /dev/fuse ]] || modprobe fuse 2>/dev/null || say "no /dev/fuse: mounting will not work (modprobe fuse)"
}

set_up_now() { # set_up_now run|test TORCH
    local kind=$1 torch=$2 needs=("${run_needs[@]}") packages
    local mask
    mask=$(umask)
    umask 022 # programs, and kernels: other users are to run them as well
    { : >"$log"; } 2>/dev/null || die "cannot write to $root. Call again with sudo."
    if [[ $kind == test ]]; then needs+=("${test_needs[@]}"); fi
    mapfile -t packages < <(missing_packages "${needs[@]}")
    install_packages "${packages[@]}"
    venv_works || make_venv
    install_project "$kind"
    choose_torch "$kind" "${torch:-$(earlier_torch)}"
    compile_kernels
    install_helpers
    current_key >"$venv/stamp-$kind"
    umask "$mask"
    say "done"
}
