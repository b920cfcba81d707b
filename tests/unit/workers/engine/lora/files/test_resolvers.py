"""Names lead to adapters: places in order, good ones only, never out of their folder."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.polling import eventually
from tests.unit.workers.engine.lora.adapter_writer import BASE, write_adapter
from tests.unit.workers.engine.lora.manager_fixtures import acquired, new_manager
from workers.engine.core.errors import AdapterFileError, AdapterNotFound, AdapterRankError
from workers.engine.lora.files import resolvers
from workers.engine.lora.files.digest import adapter_digest
from workers.engine.lora.files.resolvers import FolderResolver, ResolverChain
from workers.engine.lora.files.validate import validate_adapter


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return [tmp_path / "first", tmp_path / "second"]


def chain_of(places: list[Path], max_rank: int = 64) -> ResolverChain:
    return ResolverChain([FolderResolver(place) for place in places], base=BASE, max_rank=max_rank)


def test_behaviour_14_places_are_asked_in_order_and_the_first_good_adapter_wins(places: list[Path]) -> None:
    first, second = places
    for place in places:
        write_adapter(place / "both", seed=len(str(place)))
    write_adapter(second / "later")
    (first / "mended").mkdir()
    write_adapter(second / "mended")
    chain = chain_of(places)

    found = {name: chain.resolve(name).lora_path for name in ("both", "later", "mended")}

    assert found == {
        "both": str(first / "both"),
        "later": str(second / "later"),
        "mended": str(second / "mended"),
    }


def test_behaviour_14_not_found_and_found_but_bad_are_different_errors(places: list[Path]) -> None:
    (places[0] / "empty").mkdir()
    write_adapter(places[1] / "large", rank=32)
    chain = chain_of(places, max_rank=16)

    with pytest.raises(AdapterNotFound, match=r"adapter 'gone' is in none of .*first, .*second; put its"):
        chain.resolve("gone")
    with pytest.raises(AdapterFileError, match=r"adapter 'empty' .*adapter_config.json is missing"):
        chain.resolve("empty")
    with pytest.raises(AdapterRankError, match="adapter 'large'"):
        chain.resolve("large")


def test_behaviour_14_files_are_checked_once_until_they_change(
    places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(places[0] / "mine", seed=1)
    checked: list[str] = []
    check = validate_adapter

    def count(path: Path, **options: Any) -> object:
        checked.append(str(path))
        return check(path, **options)

    monkeypatch.setattr(resolvers, "validate_adapter", count)
    chain = chain_of(places)

    assert len({chain.resolve("mine") for _ in range(8)}) == 1
    assert len(checked) == 1

    shutil.rmtree(folder)
    write_adapter(folder, seed=2)
    assert chain.resolve("mine").revision == adapter_digest(folder)
    assert len(checked) == 2


@pytest.mark.parametrize(
    "name", ["../secret", "..", ".", "", "a/../../secret", "/etc", "a\\b", "a\0", "x" * 5000]
)
def test_behaviour_10_a_name_that_is_a_path_finds_nothing(name: str, places: list[Path]) -> None:
    write_adapter(places[0].parent / "secret")
    write_adapter(places[0] / "a")

    with pytest.raises(AdapterNotFound):
        chain_of(places).resolve(name)


def test_behaviour_30_ids_come_from_the_files_in_every_process_alike(places: list[Path]) -> None:
    write_adapter(places[0] / "one", seed=1)
    write_adapter(places[0] / "other", seed=2)
    shutil.copytree(places[0] / "one", places[1] / "copy")
    requests = {name: chain_of(places).resolve(name) for name in ("one", "other", "copy")}

    assert requests["one"].lora_int_id == requests["copy"].lora_int_id != requests["other"].lora_int_id
    digits = adapter_digest(places[0] / "one").removeprefix("sha256:")[:15]
    assert requests["one"].lora_int_id == int(digits, 16) + 1


def test_what_was_resolved_is_served(places: list[Path]) -> None:
    write_adapter(places[0] / "mine")
    request = chain_of(places).resolve("mine")
    manager = new_manager()

    slot = acquired(manager, request)
    manager.close()

    assert slot == 0
    assert manager.stats().loads == 1


def test_behaviour_14_many_that_want_one_cold_name_look_for_it_and_load_it_once(tmp_path: Path) -> None:
    write_adapter(tmp_path / "sql")
    looked: list[str] = []
    may_find = threading.Event()

    class Slow(FolderResolver):
        def find(self, name: str) -> Path | None:
            looked.append(name)
            may_find.wait(10)
            return super().find(name)

    chain = ResolverChain([Slow(tmp_path)], base=BASE, max_rank=64)
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(chain.resolve, "sql") for _ in range(8)]
        eventually(lambda: "sql" in chain._searches)
        waiters = chain._searches["sql"]._condition._waiters  # type: ignore[attr-defined]
        eventually(lambda: len(waiters) == 7, what="seven that wait for the eighth")
        may_find.set()
        requests = [one.result() for one in found]
    manager = new_manager()
    slots = {acquired(manager, request) for request in requests}
    manager.close()

    assert looked == ["sql"]
    assert len(set(requests)) == 1
    assert slots == {0}
    assert manager.stats().loads == 1
