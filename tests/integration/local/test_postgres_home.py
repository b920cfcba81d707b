"""Postgres finds a private place that the user it runs as can reach, wherever the state directory is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorayard.local import ServerDataError, postgres_server
from lorayard.local.binaries import PostgresBinaries, find_postgres
from lorayard.local.child import Child
from lorayard.local.environment import inherited_environment
from lorayard.local.postgres_home import PostgresHome, may_reach, prepare_home, server_user
from lorayard.local.postgres_server import PostgresServer

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")


@pytest.fixture
def unreachable(tmp_path: Path) -> Iterator[Path]:
    """A state directory that only its owner can reach, and what root makes instead of it."""
    tmp_path.chmod(0o700)
    home = prepare_home(tmp_path, find_postgres())
    yield tmp_path
    if home.folder.parent != tmp_path:
        for folder in (home.folder, home.folder.with_name(f"{home.folder.name}-programs")):
            shutil.rmtree(folder, ignore_errors=True)


def start(state_dir: Path) -> PostgresServer:
    server = PostgresServer(state_dir, state_dir / "log", Child, env=inherited_environment(), durable=False)
    server.start()
    return server


def test_a_server_runs_even_where_its_user_cannot_reach_the_state_directory(unreachable: Path) -> None:
    server = start(unreachable)

    try:
        assert server.is_ready()
    finally:
        server.stop()


@as_root
def test_as_root_the_home_belongs_to_another_user_who_can_reach_it(state_dir: Path) -> None:
    state_dir.mkdir(mode=0o711)
    home = prepare_home(state_dir, find_postgres())

    assert home.user == server_user()
    assert home.folder == state_dir / "postgres"
    assert home.folder.stat().st_uid == server_user().uid
    assert home.folder.stat().st_mode & 0o777 == 0o700


@as_root
def test_programs_that_the_user_cannot_run_are_copied_to_where_it_can(
    unreachable: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = find_postgres()
    for tree in installed.trees:
        shutil.copytree(installed.base / tree, unreachable / tree, ignore=shutil.ignore_patterns("include"))
    hidden = PostgresBinaries(
        postgres=unreachable / installed.postgres.relative_to(installed.base),
        initdb=unreachable / installed.initdb.relative_to(installed.base),
        base=unreachable,
        trees=installed.trees,
    )
    monkeypatch.setattr(postgres_server, "find_postgres", lambda: hidden)
    state_dir.mkdir(mode=0o711)

    server = start(state_dir)

    try:
        assert may_reach(Path(f"/proc/{server.child.pid}/exe").readlink(), server_user())
        assert server.is_ready()
    finally:
        server.stop()


@as_root
def test_programs_of_the_system_that_the_user_cannot_run_are_an_error(unreachable: Path) -> None:
    program = shutil.copy(find_postgres().initdb, unreachable / "postgres")
    hidden = PostgresBinaries(Path(program), Path(program), unreachable, ())

    with pytest.raises(ServerDataError, match=r"cannot be run by uid .*chmod o\+x"):
        prepare_home(unreachable, hidden)


def test_data_without_its_password_is_an_error_that_names_both(state_dir: Path) -> None:
    state_dir.mkdir(mode=0o711)
    start(state_dir).stop()
    (state_dir / "postgres_password").unlink()

    with pytest.raises(ServerDataError, match=r"postgres/data is there but .*postgres_password is gone"):
        start(state_dir)


def test_a_pid_file_whose_pid_now_belongs_to_another_program_does_not_stop_the_server(
    state_dir: Path,
) -> None:
    state_dir.mkdir(mode=0o711)
    server = start(state_dir)
    server.kill()
    pid_file = _data(state_dir) / "postmaster.pid"
    # A program of the same user: Postgres alone would take it for a running server.
    bystander = server._spawn(server._run_as_server("bystander", ("/bin/sleep", "600")))
    pid_file.write_text(pid_file.read_text().replace(pid_file.read_text().split("\n")[0], str(bystander.pid)))

    try:
        server.start()
        assert server.is_ready()
    finally:
        server.stop()
        bystander.kill()


def _data(state_dir: Path) -> Path:
    home: PostgresHome = prepare_home(state_dir, find_postgres())
    return home.folder / "data"
