"""Which pool an adapter goes to, on a ledger that knows one, two or three."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from db import Database
from db.records import PoolRow
from db.repositories.pools import PoolRepository
from lorayard.contract.pool import pool_id, tokenizer_digest
from tests.integration.cli.conftest import ADAPTERS, BASE, Command

UPPER = str(ADAPTERS / "upper")


def base(folder: Path, **config: Any) -> Path:
    """Copy the shipped base and change its configuration."""
    shutil.copytree(BASE, folder)
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def registered(database: Database, folder: Path, dtype: str = "float32") -> str:
    """Enter a pool as its worker would; returns its id."""
    config = json.loads((folder / "config.json").read_text())
    row = PoolRow(
        pool=pool_id(folder, dtype),
        model_name=config["_name_or_path"],
        served_model_name=None,
        model_path=str(folder),
        dtype=dtype,
        quantization=None,
        generation_config="auto",
        tokenizer=tokenizer_digest(folder),
        config=config,
    )
    database.run(lambda connection: PoolRepository(connection).enter(row, "one"))
    return row.pool


@pytest.fixture
def told_nothing(lorayard: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command where LORAYARD_MODEL is not set."""
    monkeypatch.delenv("LORAYARD_MODEL")
    return lorayard


def pools_of(lorayard: Command, *options: str) -> list[tuple[str, str, str]]:
    rows = map(json.loads, lorayard("adapters", "list", "--json", *options).out.splitlines())
    return [(row["name"], row["model"], row["pool"]) for row in rows]


def test_the_only_pool_needs_no_name_and_a_ledger_without_one_says_what_to_give(
    told_nothing: Command, database: Database
) -> None:
    ran = told_nothing("adapters", "add", "upper", UPPER)
    assert (ran.status, "give --model or LORAYARD_MODEL the base's folder, or start a worker" in ran.err) == (
        1,
        True,
    )

    pool = registered(database, BASE)

    assert told_nothing("adapters", "add", "upper", UPPER).status == 0
    assert pools_of(told_nothing) == [("upper", "lorayard/tiny", pool)]
    assert told_nothing("adapters", "remove", "upper").status == 0


def test_of_several_pools_the_one_that_fits_is_found_and_of_several_that_fit_one_must_be_named(
    told_nothing: Command, database: Database, tmp_path: Path
) -> None:
    fits, other = registered(database, BASE), base(tmp_path / "other", _name_or_path="someone/Other-7B")
    registered(database, other)

    assert told_nothing("adapters", "add", "upper", UPPER).status == 0
    assert pools_of(told_nothing) == [("upper", "lorayard/tiny", fits)]

    half = registered(database, BASE, "bfloat16")
    ran = told_nothing("adapters", "add", "lower", UPPER)

    assert ran.status == 1
    assert f"2 pools fit, say which one: --model {min(fits, half)} (lorayard/tiny of {BASE}, " in ran.err
    assert f"--model {half} (lorayard/tiny of {BASE}, bfloat16)" in ran.err
    assert told_nothing("adapters", "add", "upper", UPPER, "--model", half).status == 0
    assert pools_of(told_nothing, "--model", half) == [("upper", "lorayard/tiny", half)]
    assert len(pools_of(told_nothing)) == 2
    ran = told_nothing("adapters", "remove", "upper")
    assert (ran.status, f"--model {half} (lorayard/tiny)" in ran.err) == (1, True)
    assert told_nothing("adapters", "remove", "upper", "--model", half).status == 0
    assert pools_of(told_nothing) == [("upper", "lorayard/tiny", fits)]


def test_if_no_pool_fits_each_says_why(told_nothing: Command, database: Database, tmp_path: Path) -> None:
    names = registered(database, base(tmp_path / "other", _name_or_path="someone/Other-7B"))
    wide = base(tmp_path / "wide", hidden_size=256)
    shapes = registered(database, wide)
    changed = base(tmp_path / "changed", rms_norm_eps=0.5)
    gone = registered(database, changed)
    (changed / "config.json").write_text((BASE / "config.json").read_text())

    ran = told_nothing("adapters", "add", "upper", UPPER)

    assert ran.status == 1
    why = {line.split("(pool ")[1][:16]: line for line in ran.err.splitlines() if "(pool " in line}
    assert set(why) == {names, shapes, gone}
    assert "'someone/Other-7B' is served" in why[names]
    assert "on this base needs (4, 256)" in why[shapes]
    assert "has become another model" in why[gone]


def test_where_the_bases_folder_is_not_the_ledgers_config_decides(
    told_nothing: Command, database: Database, tmp_path: Path
) -> None:
    here, wide = base(tmp_path / "here"), base(tmp_path / "wide", hidden_size=256)
    pool, _ = registered(database, here), registered(database, wide)
    shutil.rmtree(here)
    shutil.rmtree(wide)

    ran = told_nothing("adapters", "add", "upper", UPPER)

    assert ran.status == 0, ran.err
    assert pools_of(told_nothing) == [("upper", "lorayard/tiny", pool)]


def test_a_model_may_be_named_and_what_is_none_is_refused(told_nothing: Command, database: Database) -> None:
    pool = registered(database, BASE)

    assert told_nothing("adapters", "add", "upper", UPPER, "--model", "lorayard/tiny").status == 0
    assert pools_of(told_nothing) == [("upper", "lorayard/tiny", pool)]
    ran = told_nothing("adapters", "list", "--model", "someone/none")

    assert (ran.status, "'someone/none' is neither a folder nor a pool or a model" in ran.err) == (1, True)
