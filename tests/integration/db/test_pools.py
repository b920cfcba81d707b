"""A pool's row, which its workers enter, and the tokenizer that they must have in common."""

from __future__ import annotations

from dataclasses import replace

from alembic import command

from db.migrate import alembic_config
from db.records import PoolRow
from db.repositories.pools import PoolRepository
from tests.integration.db.ledger import POOL, Ledger

ROW = PoolRow(
    pool=POOL,
    model_name="someone/base",
    served_model_name=None,
    model_path="/models/base",
    dtype="float32",
    quantization="awq",
    generation_config="none",
    tokenizer="first",
    config={"hidden_size": 64},
)


def test_another_tokenizer_is_refused_while_a_worker_of_the_pool_lives(ledger: Ledger) -> None:
    assert ledger.run(PoolRepository, "enter", ROW, "old") is None
    ledger.worker("old")
    other = replace(ROW, tokenizer="second", model_path="/models/new")

    assert ledger.run(PoolRepository, "enter", other, "new") == "first"
    assert ledger.run(PoolRepository, "enter", replace(other, pool="another"), "new") is None
    assert ledger.run(PoolRepository, "enter", replace(ROW, model_path="/moved"), "new") is None
    assert ledger.run(PoolRepository, "enter", other, "old") is None, "it is alone"
    assert ledger.run(PoolRepository, "enter", ROW, "new") == "second"

    ledger.sql("UPDATE workers SET state = 'gone' RETURNING incarnation")
    assert ledger.run(PoolRepository, "enter", ROW, "new") is None
    assert ROW in ledger.run(PoolRepository, "listed")


def test_the_table_goes_and_comes_back_empty(ledger: Ledger) -> None:
    ledger.run(PoolRepository, "enter", ROW, "one")

    with ledger.database.transaction() as connection:
        command.downgrade(alembic_config(connection), "0010")
    with ledger.database.transaction() as connection:
        command.upgrade(alembic_config(connection), "head")

    assert ledger.run(PoolRepository, "listed") == []
    assert ledger.run(PoolRepository, "enter", ROW, "one") is None
    assert ledger.run(PoolRepository, "listed") == [ROW]
