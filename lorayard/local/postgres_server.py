"""Runs Postgres in the foreground on loopback, in a folder that it initialises at the first start."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg

from lorayard.local.binaries import find_postgres
from lorayard.local.child import ChildSpec
from lorayard.local.errors import ServerDataError
from lorayard.local.part import Server, Spawn
from lorayard.local.ports import LOOPBACK, free_port
from lorayard.local.postgres_home import prepare_home
from lorayard.local.private_files import new_password, read_or_create, write_private
from lorayard.local.processes import identify, works_in

_ROLE = "lorayard"
_MAX_CONNECTIONS = 200
_INITDB_TIMEOUT_S = 60.0


class PostgresServer(Server):
    """One Postgres on loopback; a restart on the same folder finds what was committed."""

    def __init__(
        self,
        state_dir: Path,
        log_path: Path,
        spawn: Spawn,
        *,
        env: Mapping[str, str],
        durable: bool = True,
        port: int | None = None,
        choose_port: Callable[[], int] = free_port,
    ) -> None:
        super().__init__("postgres", spawn, port=port, choose_port=choose_port)
        self._home = prepare_home(state_dir, find_postgres())
        self._data = self._home.folder / "data"
        self._log_path = log_path
        self._env = {**env, "LC_ALL": "C"}
        self._durable = durable
        self._password = _read_password(state_dir, self._data)

    @property
    def url(self) -> str:
        """The address of the maintenance database, password included, as SQLAlchemy writes it."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The address of one database, as SQLAlchemy writes it."""
        return f"postgresql+psycopg://{_ROLE}:{self._password}@{LOOPBACK}:{self.port}/{database}"

    def is_ready(self) -> bool:
        """Tell whether the server answers a query."""
        return answers_select(self.url)

    def start(self) -> None:
        """Initialise the data at the first start, then start the server and return once it serves."""
        if not self._data.exists():
            self._initialise()
        self._drop_foreign_pid_file()
        super().start()

    def _spec(self) -> ChildSpec:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            # TCP alone: no socket path that could be too long or be left behind.
            "unix_socket_directories": "",
            "max_connections": str(_MAX_CONNECTIONS),
            # In the data folder: a killed server leaves nothing in /dev/shm, however small a container's is.
            "dynamic_shared_memory_type": "mmap",
            "max_logical_replication_workers": "0",  # nor the process that would start them
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }
        if self._home.binaries.trees:
            # The wheel's, 18 or later: three processes less, which would read ahead what fits in memory.
            settings["io_method"] = "sync"
        if not self._durable:
            # A commit still reaches the kernel before it is confirmed, and so survives a SIGKILL; only the
            # machine's own crash may lose it. (synchronous_commit=off would lose commits to a SIGKILL.)
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        program = str(self._home.binaries.postgres)
        return self._run_as_server("postgres", (program, "-D", str(self._data), *options))

    def _run_as_server(self, name: str, argv: tuple[str, ...]) -> ChildSpec:
        return ChildSpec(
            name=name,
            argv=argv,
            log_path=self._log_path,
            env=self._env,
            cwd=self._home.folder,
            user=self._home.user,
            # SIGTERM would wait for every client to leave. SIGQUIT is as quick as SIGKILL, and cleans up.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGQUIT,
        )

    def _initialise(self) -> None:
        """Run initdb beside the data folder, and rename at the end: a half-made folder is never used."""
        partial = self._data.with_name("data.partial")
        shutil.rmtree(partial, ignore_errors=True)
        password_file = self._home.folder / "initdb_password"
        write_private(password_file, self._password)
        if self._home.user is not None:
            os.chown(password_file, *self._home.user, follow_symlinks=False)
        try:
            self._run_initdb(partial, password_file)
        finally:
            password_file.unlink()
        partial.rename(self._data)

    def _run_initdb(self, data: Path, password_file: Path) -> None:
        words = [str(self._home.binaries.initdb), f"--pgdata={data}", f"--username={_ROLE}"]
        words += [f"--pwfile={password_file}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
        if not self._durable:
            words.append("--no-sync")
        self._spawn(self._run_as_server("initdb", tuple(words))).finish(_INITDB_TIMEOUT_S)

    def _drop_foreign_pid_file(self) -> None:
        """Remove a killed server's postmaster.pid when its pid now belongs to some other program.

        Postgres would take that program for a running server, as happens in containers, where the same few
        pids are used after every start. A file whose pid is free is left to Postgres, which reads from it
        whether orphaned backends still hold the shared memory.
        """
        pid_file = self._data / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError):
            pid = int(pid_file.read_text().split("\n", 1)[0])
            if identify(pid) is not None and not works_in(self._data.resolve()):
                pid_file.unlink()


def answers_select(url: str) -> bool:
    """Whether a Postgres at `url` accepts our password and runs a query."""
    return select_refusal(url) is None


def select_refusal(url: str) -> str | None:
    """Return why no query runs at `url`, in libpq's or Postgres' own words; None if one does."""
    try:
        with psycopg.connect(plain_url(url), connect_timeout=2) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        # One line for each address tried; the last one is from the server that got furthest.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[-1].strip().removeprefix("connection failed: ")
    return None


def plain_url(url: str) -> str:
    """Turn SQLAlchemy's address of a database into the one that libpq, psql and psycopg take."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def _read_password(state_dir: Path, data: Path) -> str:
    path = state_dir / "postgres_password"
    if data.exists() and not path.exists():
        raise ServerDataError(
            f"the data folder {data} is there but its password file {path} is gone: "
            "restore the file, or delete the folder to begin with an empty database"
        )
    return read_or_create(path, new_password)
