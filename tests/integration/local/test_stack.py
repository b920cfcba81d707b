"""The stack starts and stops its processes in order, configures them, and says which one failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from lorayard.local import (
    EVERYTHING,
    SERVERS,
    CardsUnavailable,
    ChildFailed,
    LocalStackError,
    Stack,
    StackConfig,
    UnknownPart,
)
from lorayard.local.processes import ProcessIdentity
from tests.polling import eventually


@pytest.fixture
def config(servers: Stack, state_dir: Path, small_env: dict[str, str]) -> StackConfig:
    """Lorayard's own processes, without Flower, on the run's servers."""
    return StackConfig(
        state_dir=state_dir,
        parts=EVERYTHING - {"flower"},
        redis_url=servers.redis.url,
        database_url=servers.postgres.url,
        extra_env=small_env,
        start_timeout_s=60,
        drain_grace_s=5,
    )


def lines(diary: Path) -> list[str]:
    return diary.read_text().splitlines()


def settings_of(diary: Path, name: str) -> dict[str, str]:
    settings: dict[str, str] = json.loads(diary.with_name(f"{name}.json").read_text())
    return settings


def test_the_whole_stack_starts_with_flower_and_stops_in_the_order_that_loses_nothing(
    state_dir: Path, small_env: dict[str, str], diary: Path
) -> None:
    config = StackConfig(state_dir=state_dir, durable=False, extra_env=small_env, num_workers=1)
    with Stack(config) as stack:
        names = list(stack.children)
        family = [child.identity for child in stack.children.values()]
        flower_url = stack.client_env()["LORAYARD_FLOWER_URL"]
        known = httpx.get(f"{flower_url}/api/tasks", trust_env=False)
        unknown = httpx.get(f"http://127.0.0.1:{stack.flower.port}/api/tasks", trust_env=False)
        told = Path(f"/proc/{stack.flower.child.pid}/environ").read_text()
        secrets = [stack.client_env()["LORAYARD_SECRET_KEY"], stack.postgres.url.split("@")[0]]

    assert names == ["redis", "postgres", "scheduler", "worker-1", "relay", "flower"]
    assert (known.status_code, unknown.status_code) == (httpx.codes.OK, httpx.codes.UNAUTHORIZED)
    assert not any(secret in told for secret in secrets)
    assert lines(diary)[:2] == ["migrate began", "migrate ended"]
    assert lines(diary)[-3:] == ["worker-1 ended", "relay ended", "scheduler ended"]
    assert not any(identity.is_running() for identity in family)


def test_servers_that_the_caller_names_are_used_and_none_is_started(config: StackConfig, diary: Path) -> None:
    with Stack(replace(config, num_workers=2)) as stack:
        assert sorted(stack.children) == ["relay", "scheduler", "worker-1", "worker-2"]
        with pytest.raises(UnknownPart, match="no 'redis'; it runs: scheduler"):
            _ = stack.redis

    assert settings_of(diary, "scheduler")["LORAYARD_REDIS_URL"] == config.redis_url
    assert settings_of(diary, "scheduler")["LORAYARD_DATABASE_URL"] == config.database_url


def test_every_process_gets_its_configuration_from_the_environment(
    config: StackConfig, diary: Path, tmp_path: Path
) -> None:
    configured = replace(config, model=tmp_path / "base", max_loras=3, dtype="float32", num_workers=1)
    with Stack(configured) as stack:
        client_env = stack.client_env()

    worker = settings_of(diary, "worker-1")
    assert worker["LORAYARD_WORKER_NAME"] == "worker-1"
    assert worker["LORAYARD_MODEL"] == str(tmp_path / "base")
    assert worker["LORAYARD_MAX_LORAS"] == "3"
    assert worker["LORAYARD_DTYPE"] == "float32"
    assert worker["LORAYARD_AUTO_TENANTS"] == "true"
    assert worker["LORAYARD_WEBHOOK_ALLOW"] == "127.0.0.0/8"
    assert worker["LORAYARD_DRAIN_GRACE_S"] == "5"
    assert "LORAYARD_MAX_NUM_SEQS" not in worker
    assert client_env.items() <= worker.items()
    assert client_env["LORAYARD_SECRET_KEY"] == settings_of(diary, "relay")["LORAYARD_SECRET_KEY"]


def test_each_worker_has_a_card_of_its_own_and_no_other_process_sees_one(
    config: StackConfig, diary: Path
) -> None:
    inherited = {**config.inherited_env, "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    with Stack(replace(config, inherited_env=inherited, cards=("GPU-a", "GPU-b"))) as stack:
        with pytest.raises(CardsUnavailable, match="3 workers, each with a card of its own, but 2 cards"):
            stack.start_worker()
        stack.kill("worker-2")
        stack.restart("worker-2")

    seen = {
        name: settings_of(diary, name)["CUDA_VISIBLE_DEVICES"]
        for name in ("scheduler", "worker-1", "worker-2", "relay")
    }
    assert seen == {"scheduler": "", "worker-1": "GPU-a", "worker-2": "GPU-b", "relay": ""}
    assert settings_of(diary, "worker-1")["LORAYARD_DEVICE"] == "cuda"


def test_the_secret_key_made_for_a_directory_is_kept(config: StackConfig) -> None:
    with Stack(config) as stack:
        first = stack.client_env()["LORAYARD_SECRET_KEY"]
    with Stack(config) as stack:
        assert stack.client_env()["LORAYARD_SECRET_KEY"] == first


@pytest.mark.parametrize("name", ["migrate", "scheduler", "worker-2", "relay"])
def test_a_process_that_dies_fails_the_start_at_once_with_its_last_words(
    config: StackConfig, name: str
) -> None:
    # It would read "was not ready within" had the start waited its time out.
    with pytest.raises(ChildFailed, match=rf"(?s)^{name} .*status 1.*{name}: no bread in the house"):
        Stack(replace(config, extra_env={**config.extra_env, "DIES": name})).start()


def test_a_failed_start_leaves_no_process_and_frees_the_directory(config: StackConfig) -> None:
    failing = Stack(replace(config, extra_env={**config.extra_env, "DIES": "relay"}))
    with pytest.raises(ChildFailed):
        failing.start()

    written = json.loads((config.state_dir / "processes.json").read_text())

    assert written["processes"] == []
    with Stack(config):
        pass


def test_a_killed_worker_stays_down_until_it_is_restarted(config: StackConfig) -> None:
    with Stack(config) as stack:
        before = stack.children["worker-1"].identity

        stack.kill("worker-1")

        assert not before.is_running()
        assert [part.name for part in stack.ended()] == ["worker-1"]
        stack.restart("worker-1")
        assert stack.ended() == []
        assert stack.children["worker-1"].identity != before


@pytest.mark.parametrize("act", [Stack.stop_part, Stack.restart], ids=["stop", "restart"])
def test_a_part_that_is_stopped_or_restarted_may_end_in_order(
    config: StackConfig, diary: Path, act: Callable[[Stack, str], object]
) -> None:
    with Stack(config) as stack:
        act(stack, "scheduler")

        assert "scheduler ended" in lines(diary)


def test_a_worker_can_be_added_under_a_new_name(config: StackConfig, diary: Path) -> None:
    with Stack(replace(config, num_workers=1)) as stack:
        assert stack.start_worker() == "worker-2"
        assert stack.children["worker-2"].alive

    assert "worker-2 ended" in lines(diary)


def test_a_stack_that_is_left_can_be_entered_again(config: StackConfig) -> None:
    stack = Stack(replace(config, num_workers=1))
    with stack:
        first: ProcessIdentity = stack.children["scheduler"].identity
    with stack:
        assert stack.children["scheduler"].identity != first
        assert sorted(stack.children) == ["relay", "scheduler", "worker-1"]


@pytest.mark.parametrize(
    ("option", "url", "message"),
    [
        ("redis_url", "redis://:secret@127.0.0.1:1/0", r"at redis://:\*\*\*@127\.0\.0\.1:1/0 cannot be used"),
        ("redis_url", "http://127.0.0.1", "REDIS_URL: 'http://127.0.0.1' is not a Redis URL"),
        ("redis_url", "redis://:secret#x@127.0.0.1/0", "REDIS_URL: 'redis://.*percent-encode"),
        ("database_url", "postgresql://u:secret@127.0.0.1:1/d", r"at postgresql://u:\*\*\*@127\.0\.0\.1:1/d"),
        ("database_url", "postgresql://u:secret", "the port is not a number"),
        ("database_url", "postgresql://u:secret@[::1/d", "libpq cannot read the URL"),
        ("database_url", "mysql://u:secret@127.0.0.1/d", "is no Postgres address"),
        ("database_url", "postgresql://u:secret/x@127.0.0.1/d", "percent-encode it as %2F"),
        ("database_url", "postgresql://u:secret%zz@127.0.0.1/d", "%25 for a percent sign"),
        ("database_url", "postgresql://u:secret@127.0.0.1:54x2/d", "port '54x2' is not a number"),
        ("database_url", "postgresql://u:secret@127.0.0.1:1/d?pool_size=5", 'invalid URI .*"pool_size"'),
    ],
)
def test_a_named_server_that_cannot_be_used_is_an_error_without_its_password(
    config: StackConfig, option: str, url: str, message: str
) -> None:
    with pytest.raises(LocalStackError, match=message) as caught:
        Stack(replace(config, **{option: url})).start()  # type: ignore[arg-type]

    assert "secret" not in str(caught.value)


def test_own_processes_without_servers_are_refused(state_dir: Path) -> None:
    with pytest.raises(LocalStackError, match="need a Redis and a Postgres"):
        Stack(StackConfig(state_dir=state_dir, parts=EVERYTHING - SERVERS)).start()


def test_the_processes_of_a_stack_are_written_down_while_they_run(config: StackConfig) -> None:
    with Stack(config) as stack:
        expected = {child.pid for child in stack.children.values()}
        stack.start_worker()

        def written() -> set[int]:
            rows = json.loads((config.state_dir / "processes.json").read_text())["processes"]
            return {row["pid"] for row in rows}

        eventually(lambda: written() == expected | {stack.children["worker-3"].pid})
