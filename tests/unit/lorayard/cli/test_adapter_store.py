"""Who else puts the same revision into the store, in whatever moment, spoils nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lorayard.cli.adapter_store import AdapterStore
from lorayard.contract.errors import LorayardError
from lorayard.server.adapter_store import MARKER
from tests.unit.workers.engine.lora.adapter_writer import write_adapter
from workers.engine.lora import adapter_digest


class RacingStore(AdapterStore):
    """Somebody else acts just before the finished copy gets its name."""

    def __init__(self, root: Path, act: Callable[[Path], object], *, has_looked: bool) -> None:
        """`has_looked`: not before, but after it was seen that what stands there is damaged."""
        super().__init__(root)
        self._act = act
        self._has_looked = has_looked
        self._is_installing = False

    def _install(self, incoming: Path, target: Path, digest: str) -> None:
        self._is_installing = True
        if not self._has_looked:
            self._act(target)
        super()._install(incoming, target, digest)

    def _is_sound(self, target: Path, digest: str) -> bool:  # type: ignore[override]
        is_sound = super()._is_sound(target, digest)
        if self._is_installing and self._has_looked:
            self._has_looked = False
            self._act(target)
        return is_sound


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def damage(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    (target / "adapter_config.json").write_text("{")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    AdapterStore(tmp_path / "store").open(may_be_new=True)
    return tmp_path / "store"


@pytest.mark.parametrize(("was_damaged", "has_looked"), [(False, False), (True, False), (True, True)])
def test_another_who_puts_the_same_revision_in_between_is_welcome(
    source: Path, root: Path, was_damaged: bool, has_looked: bool
) -> None:
    digest = adapter_digest(source)
    store = RacingStore(root, lambda _: AdapterStore(root).put(source, digest), has_looked=has_looked)
    if was_damaged:
        damage(store.path_of(digest))

    placed = store.put(source, digest)

    assert adapter_digest(placed) == digest
    assert {*root.iterdir()} == {placed, root / MARKER}


def test_a_damaged_revision_that_another_has_just_moved_away_is_replaced(
    source: Path, root: Path, tmp_path: Path
) -> None:
    digest = adapter_digest(source)
    store = RacingStore(root, lambda target: target.rename(tmp_path / "moved"), has_looked=True)
    damage(store.path_of(digest))

    placed = store.put(source, digest)

    assert adapter_digest(placed) == digest
    assert {*root.iterdir()} == {placed, root / MARKER}


def test_a_store_of_a_release_without_markers_is_known_by_its_revisions(root: Path, source: Path) -> None:
    AdapterStore(root).put(source, adapter_digest(source))
    (root / MARKER).unlink()

    AdapterStore(root).open(may_be_new=False)

    assert (root / MARKER).is_file()


def test_the_first_store_of_a_pool_is_not_made_where_its_parent_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "mnt" / "store"

    with pytest.raises(LorayardError, match=f"there is no folder {tmp_path / 'mnt'} to make it in"):
        AdapterStore(root).open(may_be_new=True)


def test_a_store_that_goes_away_while_adapters_are_added_is_not_made_anew(root: Path, source: Path) -> None:
    store = AdapterStore(root)
    store.open(may_be_new=False)
    (root / MARKER).unlink()  # as of a file system that is no longer mounted

    with pytest.raises(FileNotFoundError):
        store.put(source, adapter_digest(source))

    assert not any(root.iterdir())
