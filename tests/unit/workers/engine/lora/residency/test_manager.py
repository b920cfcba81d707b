"""What the engine sees: one load for many requests, refusals that cost nobody else, slots kept while used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.polling import eventually
from tests.unit.workers.engine.lora.adapter_writer import config_of, tensors_of, write_adapter
from tests.unit.workers.engine.lora.manager_fixtures import (
    MakeManager,
    MakeRequest,
    acquired,
    new_manager,
    request_of,
)
from workers.engine.core.errors import (
    AdapterDigestMismatch,
    AdapterError,
    AdapterFileError,
    AdapterIOError,
    AdapterNotFound,
    AllSlotsPinned,
    ConfigError,
)
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.residency.host_cache import WANTED_S
from workers.engine.lora.residency.loads import RETRY_AFTER_S
from workers.engine.lora.residency.manager import LoRAManager


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make_manager() -> Iterator[MakeManager]:
    made: list[LoRAManager] = []

    def make(*args: object, **options: object) -> LoRAManager:
        made.append(new_manager(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for manager in made:
        manager.close()


@pytest.fixture
def make_request(tmp_path: Path) -> MakeRequest:
    return lambda number, **options: request_of(tmp_path, number, **options)


def _error_of(manager: LoRAManager, request: LoRARequest) -> AdapterError:
    def ask() -> AdapterError | None:
        try:
            assert manager.acquire(request) is None
        except AdapterError as error:
            return error
        return None

    return eventually(ask, what="a refusal")


def test_the_first_acquire_starts_a_load_and_a_later_one_gives_a_slot(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager, request = make_manager(), make_request(1)

    assert manager.acquire(request) is None
    assert acquired(manager, request) == 0

    assert manager.residency() == {request.revision: "device"}
    assert [change.tier for change in manager.drain_changes()] == ["host", "device"]
    assert manager.epoch == 2
    assert manager.packed(1, "qkv").weights(0) is not None
    assert manager.packed(1, "down").weights(0) is None


def test_behaviour_14_many_requests_for_one_cold_revision_load_it_once(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager, request = make_manager(), make_request(1)
    others = [LoRARequest(f"name-{n}", 10 + n, request.lora_path, request.revision) for n in range(8)]

    for _ in range(3):
        for other in (request, *others):
            manager.acquire(other)
    slots = {acquired(manager, other) for other in (request, *others)}

    stats = manager.stats()
    assert slots == {0}
    assert (stats.loads, stats.failures, stats.num_on_host) == (1, 0, 1)
    assert stats.revisions[str(request.revision)].hits >= 8


def test_behaviour_23_two_names_with_the_same_files_share_one_slot(
    make_manager: MakeManager, make_request: MakeRequest, tmp_path: Path
) -> None:
    manager, request = make_manager(), make_request(1, pinned=False)
    copy = LoRARequest("copy", 2, str(shutil.copytree(request.lora_path, tmp_path / "copy")))

    assert acquired(manager, request) == acquired(manager, copy) == 0

    assert manager.revision_of(request) == manager.revision_of(copy)
    assert manager.stats().num_on_host == 1


def test_behaviour_23_one_path_with_other_files_is_another_revision(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager, request = make_manager(), make_request(1, pinned=False)
    acquired(manager, request)
    before = manager.revision_of(request)
    manager.release(request)

    write_adapter(Path(request.lora_path), rank=4, seed=99)

    assert acquired(manager, request) == 1
    assert manager.revision_of(request) != before
    assert set(manager.residency()) == {before, manager.revision_of(request)}


def test_files_changed_under_a_running_sequence_do_not_change_its_adapter(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager, request = make_manager(), make_request(1, pinned=False)
    slot = acquired(manager, request)
    before = manager.revision_of(request)

    write_adapter(Path(request.lora_path), rank=4, seed=99)

    assert manager.revision_of(request) == before
    assert manager.acquire(request) == slot
    manager.release(request)
    manager.release(request)
    assert acquired(manager, request) != slot


def test_files_that_are_not_the_pinned_revision_are_refused(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager, request = make_manager(), make_request(1)
    write_adapter(Path(request.lora_path), rank=4, seed=99)

    error = _error_of(manager, request)

    assert type(error) is AdapterDigestMismatch
    assert manager.residency() == {}


def test_behaviour_14_every_waiting_request_gets_the_failure_from_one_attempt(
    make_manager: MakeManager, tmp_path: Path
) -> None:
    manager = make_manager()
    waiting = [LoRARequest(f"name-{n}", n + 1, str(tmp_path / "gone")) for n in range(5)]

    errors = [_error_of(manager, request) for request in waiting]

    assert {type(error) for error in errors} == {AdapterNotFound}
    assert len({id(error) for error in errors}) == 5
    assert manager.stats().failures == 1


def test_one_that_says_what_its_base_is_called_does_not_share_the_refusal_of_others(
    make_manager: MakeManager, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", config=config_of(base_model_name_or_path="someone/other"))
    refused = LoRARequest("sql", 1, str(folder))
    manager = make_manager()
    manager.prefetch(refused)

    assert acquired(manager, replace(refused, base_model_name="someone/tiny-base")) == 0
    assert manager.stats().failures == 1


def test_a_pinned_revision_is_read_again_though_the_files_that_were_wrong_look_as_before(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    clock = Clock()
    manager, request = make_manager(clock=clock), make_request(1)
    weights = Path(request.lora_path) / "adapter_model.safetensors"
    content, state = weights.read_bytes(), weights.stat()

    def write(flipped: int) -> None:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ flipped]))
        os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))

    write(flipped=1)
    assert type(_error_of(manager, request)) is AdapterDigestMismatch

    write(flipped=0)
    clock.now += RETRY_AFTER_S
    assert acquired(manager, request) == 0


def test_a_refused_adapter_is_tried_again_once_its_files_change(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager, request = make_manager(), make_request(1, pinned=False)
    weights = Path(request.lora_path) / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    assert type(_error_of(manager, request)) is AdapterFileError
    manager.prefetch(request)
    assert type(_error_of(manager, request)) is AdapterFileError
    assert manager.stats().failures == 1

    weights.write_bytes(content)

    assert acquired(manager, request) == 0


def test_a_failure_that_may_pass_is_tried_again_after_a_while_or_for_a_new_request(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    clock = Clock()
    manager, request = make_manager(clock=clock), make_request(1)
    weights = Path(request.lora_path) / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.symlink_to(weights)  # a loop

    assert type(_error_of(manager, request)) is AdapterIOError
    assert type(_error_of(manager, request)) is AdapterIOError
    assert manager.stats().failures == 1
    clock.now += RETRY_AFTER_S
    assert type(_error_of(manager, request)) is AdapterIOError
    assert manager.stats().failures == 2

    weights.unlink()
    weights.write_bytes(content)
    manager.prefetch(request)
    assert acquired(manager, request) == 0


def test_behaviour_10_a_name_like_a_path_reaches_no_file(make_manager: MakeManager, tmp_path: Path) -> None:
    manager = make_manager()
    write_adapter(tmp_path / "secret")
    (tmp_path / "given" / "empty").mkdir(parents=True)

    for name in ("../../secret", str(tmp_path / "secret")):
        error = _error_of(manager, LoRARequest(name, 1, str(tmp_path / "given" / "empty")))
        assert "adapter_config.json is missing" in str(error)


def test_behaviour_12_a_bad_adapter_evicts_nobody(
    make_manager: MakeManager, make_request: MakeRequest, tmp_path: Path
) -> None:
    manager = make_manager(max_loras=2, max_cpu_loras=2)
    for number in (1, 2):
        acquired(manager, make_request(number))
        manager.release(make_request(number))
    before = manager.residency()
    bad = LoRARequest("bad", 9, str(write_adapter(tmp_path / "bad", config=config_of(use_dora=True))))

    assert "use_dora" in str(_error_of(manager, bad))

    assert manager.residency() == before
    assert manager.stats().evictions == 0


def test_behaviour_17_an_adapter_in_use_is_never_evicted_and_the_newcomer_waits(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager = make_manager(max_loras=1, max_cpu_loras=1)
    first, second = make_request(1), make_request(2)
    acquired(manager, first)
    table = manager.packed(0, "qkv")
    weights = table.weights(0)

    eventually(lambda: manager.acquire(second) is None and manager.stats().loads == 2)
    assert manager.acquire(second) is None
    assert table.weights(0) is weights
    assert manager.tier_of(str(second.revision)) == "host"

    manager.release(first)
    assert acquired(manager, second) == 0
    assert table.weights(0) is not weights
    assert manager.residency() == {second.revision: "device"}


def test_behaviour_12_only_one_load_runs_ahead_of_its_place(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager = make_manager(max_loras=1, max_cpu_loras=1)
    acquired(manager, make_request(1))
    waiting = [make_request(number) for number in range(2, 6)]

    eventually(lambda: [manager.acquire(request) for request in waiting] and manager.stats().loads == 2)
    for request in waiting:
        assert manager.acquire(request) is None

    assert manager.stats().num_loading == 1
    assert manager.stats().num_on_host == 1


def test_two_that_wait_for_one_place_do_not_load_over_each_other(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    clock = Clock()
    manager = make_manager(max_loras=1, max_cpu_loras=2, clock=clock)
    running, second, third = (make_request(number) for number in (1, 2, 3))
    acquired(manager, running)
    eventually(lambda: manager.acquire(second) is None and manager.stats().num_on_host == 2)

    for _ in range(200):
        assert manager.acquire(second) is None
        assert manager.acquire(third) is None

    eventually(lambda: manager.stats().loads == 3)
    assert manager.tier_of(str(second.revision)) == "host"
    assert manager.stats().evictions == 0


def test_the_wish_for_another_adapter_does_not_keep_a_waiting_one_out_for_ever(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    clock = Clock()
    manager = make_manager(max_loras=1, max_cpu_loras=1, clock=clock)
    popular, waiting = make_request(1), make_request(2)
    acquired(manager, popular)
    eventually(lambda: manager.acquire(waiting) is None and manager.stats().loads == 2)
    manager.prefetch(popular)
    manager.release(popular)

    assert manager.acquire(waiting) is None
    clock.now += WANTED_S
    manager.prefetch(popular)

    assert acquired(manager, waiting) == 0


def test_behaviour_16_evicting_from_the_host_frees_the_idle_slot(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager = make_manager(max_loras=2, max_cpu_loras=2)
    requests = [make_request(number) for number in (1, 2, 3)]
    for request in requests:
        acquired(manager, request)
        manager.release(request)

    assert manager.residency() == {requests[1].revision: "device", requests[2].revision: "device"}
    assert [change.tier for change in manager.drain_changes() if change.revision == requests[0].revision] == [
        "host",
        "device",
        "none",
    ]


def test_a_slot_given_up_stays_on_the_host_and_comes_back_without_a_load(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager = make_manager(max_loras=1, max_cpu_loras=2)
    first, second = make_request(1), make_request(2)
    for request in (first, second):
        acquired(manager, request)
        manager.release(request)
    assert manager.residency() == {first.revision: "host", second.revision: "device"}

    assert manager.acquire(first) == 0

    assert manager.stats().loads == 2
    assert manager.stats().slot_evictions == 2


def test_prefetch_brings_an_adapter_to_the_host_without_a_slot(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager, request = make_manager(), make_request(1)

    manager.prefetch(request)
    eventually(lambda: manager.residency() == {request.revision: "host"})

    assert manager.acquire(request) == 0
    assert manager.stats().loads == 1


def test_all_slots_pinned_is_told_to_the_request_at_once(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager = make_manager(max_loras=1, max_cpu_loras=2)
    manager.add(make_request(1))
    manager.pin(1)

    error = _error_of(manager, make_request(2))

    assert type(error) is AllSlotsPinned
    assert manager.acquire(make_request(1)) == 0


def test_release_without_acquire_is_an_error(make_manager: MakeManager, make_request: MakeRequest) -> None:
    manager, unpinned = make_manager(), make_request(1, pinned=False)

    with pytest.raises(ValueError, match="'adapter-1' runs nowhere"):
        manager.release(unpinned)
    with pytest.raises(ValueError, match="is in no running sequence"):
        manager.release(make_request(2))


def test_behaviour_12_a_wrong_shape_deep_in_the_file_leaves_no_residue(
    make_manager: MakeManager, make_request: MakeRequest, tmp_path: Path
) -> None:
    manager = make_manager()
    tensors = tensors_of(rank=4)
    last = list(tensors)[-1]
    folder = write_adapter(
        tmp_path / "bad", rank=4, tensors={**tensors, last: tensors[last][:-1].contiguous()}
    )

    _error_of(manager, LoRARequest("bad", 3, str(folder)))

    assert manager.stats().host_bytes == 0
    assert manager.list() == set()
    assert all(manager.packed(0, "qkv").weights(slot) is None for slot in range(2))
    assert not manager.packed(0, "qkv").table.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loras": 4, "max_cpu_loras": 3}, "max_cpu_loras=3 is below max_loras=4"),
        ({"max_loras": 0}, "max_loras=0"),
        ({"max_lora_rank": 0}, "max_lora_rank=0"),
    ],
)
def test_behaviour_16_impossible_limits_are_refused_with_their_values(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        new_manager(**options)  # type: ignore[arg-type]


def test_behaviour_16_no_host_limit_means_as_many_as_slots(
    make_manager: MakeManager, make_request: MakeRequest
) -> None:
    manager = make_manager(max_loras=1, max_cpu_loras=None)
    for number in (1, 2):
        acquired(manager, make_request(number))
        manager.release(make_request(number))

    assert manager.stats().num_on_host == 1
