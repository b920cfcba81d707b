"""Files read again under an id in use: what runs keeps what it began with, what comes later has the new."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.workers.engine.lora.adapter_writer import write_adapter
from tests.unit.workers.engine.lora.manager_fixtures import acquired, new_manager, request_of
from workers.engine.core.errors import AdapterFileError, AllSlotsPinned
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.digest import adapter_digest
from workers.engine.lora.residency import identities
from workers.engine.lora.residency.manager import LoRAManager


@pytest.fixture
def manager() -> Iterator[LoRAManager]:
    manager = new_manager(max_loras=2, max_cpu_loras=3)
    yield manager
    manager.close()


@pytest.fixture
def request_(tmp_path: Path) -> LoRARequest:
    return request_of(tmp_path, 1, pinned=False)


def _pinned(manager: LoRAManager, request: LoRARequest) -> LoRARequest:
    """Return the request as a running sequence holds it."""
    return LoRARequest(
        request.lora_name, request.lora_int_id, request.lora_path, manager.revision_of(request)
    )


def test_behaviour_22_what_runs_keeps_its_weights_and_what_comes_later_has_the_new_ones(
    manager: LoRAManager, request_: LoRARequest
) -> None:
    old_slot = acquired(manager, request_)
    running = _pinned(manager, request_)
    old_entry = manager.packed(0, "qkv").weights(old_slot)
    write_adapter(Path(request_.lora_path), rank=4, seed=99)

    assert manager.add(request_, load_inplace=True)

    later = _pinned(manager, request_)
    assert later.revision != running.revision
    assert acquired(manager, request_) != old_slot
    assert manager.packed(0, "qkv").weights(old_slot) is old_entry
    assert manager.stats().loads == 2
    assert manager.retired == {running.revision}

    manager.drop_retired({running.revision})
    assert manager.packed(0, "qkv").weights(old_slot) is old_entry
    manager.release(running)
    manager.drop_retired(set())
    assert set(manager.residency()) == {later.revision}
    assert manager.list() == {1}


def test_files_that_did_not_change_are_read_once_and_nothing_moves(
    manager: LoRAManager, request_: LoRARequest
) -> None:
    manager.add(request_)
    before = manager.residency()

    assert not manager.add(request_, load_inplace=True)
    for _ in range(3):
        acquired(manager, request_)

    assert manager.residency() == before
    assert manager.stats().loads == 2
    assert manager.retired == frozenset()


def test_a_bad_new_version_leaves_the_old_one_in_its_place(
    manager: LoRAManager, request_: LoRARequest
) -> None:
    manager.add(request_)
    before = manager.residency()
    weights = Path(request_.lora_path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])

    with pytest.raises(AdapterFileError, match="'adapter-1'"):
        manager.add(request_, load_inplace=True)

    assert manager.residency() == before
    assert manager.list() == {1}


def test_a_pin_goes_over_to_the_new_version(manager: LoRAManager, request_: LoRARequest) -> None:
    manager.add(request_)
    manager.pin(1)
    write_adapter(Path(request_.lora_path), rank=4, seed=99)

    manager.add(request_, load_inplace=True)
    manager.drop_retired(set())

    assert manager.unpin(1)
    assert manager.residency() == {manager.revision_of(request_): "device"}


def test_reading_again_does_not_wait_for_what_another_request_had_loaded(tmp_path: Path) -> None:
    manager = new_manager(max_loras=1, max_cpu_loras=1)
    busy, by_path = request_of(tmp_path, 1), request_of(tmp_path, 2, pinned=False)
    acquired(manager, busy)
    manager.prefetch(by_path)
    while not manager.is_loaded(by_path):  # it arrives, and finds no place
        manager.collect()
    of_revision = replace(by_path, revision=adapter_digest(by_path.lora_path))

    with pytest.raises(AllSlotsPinned, match="'adapter-2' has no place on the host"):
        manager.add(of_revision, load_inplace=True)

    manager.release(busy)
    assert manager.add(of_revision, load_inplace=True)
    manager.close()


def test_files_that_are_being_read_are_not_looked_at_in_every_step(
    manager: LoRAManager, request_: LoRARequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquired(manager, request_)
    manager.release(request_)
    assert manager.remove(request_.lora_int_id)
    assert manager.acquire_all([request_]) is None  # which has it loaded once more

    with monkeypatch.context() as patch:
        patch.setattr(identities, "stamp", lambda path: pytest.fail(f"looked at {path}"))
        for _ in range(3):
            assert manager.acquire_all([request_]) is None
            assert not manager.is_loaded(request_)

    acquired(manager, request_)
    assert manager.stats().loads == 2
