"""Names and numbers that several rooms need and that no room owns. It imports no module of nnfs."""

from __future__ import annotations

import enum

# Files and folders of a store's directory
DATA_FILE, LOCK_FILE = "data.mdb", "lock.mdb"
SOCKET_NAME = "control"  # of the daemon
RESERVE_FILE = "reserve"
HISTORY_FILE = "jobs.json"  # the last tasks
THAWED_FOLDER = "thawed"  # copies of cold blocks
DRAFT_FOLDER = ".creating"  # where a new store is made

ROOT_INO = 1
DEFAULT_CHUNK_SIZE = 128 * 1024  # bytes
TIMES = range(-1 << 63, 1 << 63)  # that an inode can have, in ns since 1970: September 1677 to April 2262

# Extended attributes
VIRTUAL_XATTRS = "user.nnfs."  # what begins so is nnfs's own
POLICY_XATTR, MODEL_XATTR = "user.nnfs.policy", "user.nnfs.model"
STORE_XATTR = "user.nnfs.store"

PRODUCT_VARIABLE = "NNFS_PRODUCT"  # the environment variable that forces a product: see `nnfs.model.engines`
OTHER_ENGINE = "another"  # its value in the reference worker: the engines that other workers would not take

MNT_FORCE, MNT_DETACH = 1, 2  # flags of umount2(2)


class Policy(enum.Enum):
    """Policies: what recompression may do with a file."""

    AUTO = "auto"
    HOT = "hot"
    COLD = "cold"
    NEVER = "never"


POLICIES = tuple(policy.value for policy in Policy)
