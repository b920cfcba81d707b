"""Cards are what nvidia-smi lists and CUDA_VISIBLE_DEVICES leaves visible; each worker gets one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorayard.local.cards import cards_for, check_workers, memory_share
from lorayard.local.config import StackConfig
from lorayard.local.errors import CardsUnavailable
from lorayard.local.services import Addresses, client_environment, service_environment, worker_environment
from lorayard.local.settings import StackSettings

FIRST, SECOND = "GPU-11111111-aaaa", "GPU-22222222-bbbb"
TWO_CARDS = f"""GPU 0: NVIDIA H100 80GB HBM3 (UUID: {FIRST})
GPU 1: NVIDIA H100 80GB HBM3 (UUID: {SECOND})
"""
CUT_CARD = f"""GPU 0: NVIDIA H100 80GB HBM3 (UUID: {FIRST})
  MIG 3g.40gb     Device  0: (UUID: MIG-33333333-cccc)
  MIG 3g.40gb     Device  1: (UUID: MIG-44444444-dddd)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: {SECOND})
"""
ADDRESSES = Addresses("redis://r", "postgresql+psycopg://p", Path("/store"), "key")

MakeSmi = Callable[..., dict[str, str]]


@pytest.fixture
def smi(tmp_path: Path) -> MakeSmi:
    """Make an nvidia-smi, and return an environment whose PATH has it."""

    def make(listing: str, status: int = 0, **variables: str) -> dict[str, str]:
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!/bin/sh\n[ \"$*\" = -L ] || exit 3\ncat <<'END'\n{listing}END\nexit {status}\n"
        )
        program.chmod(0o755)
        return {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}

    return make


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment without nvidia-smi."""
    return {"PATH": str(tmp_path / "no programs here")}


def test_cards_go_by_their_uuids_as_cuda_counts_them_in_another_order(smi: MakeSmi) -> None:
    assert cards_for("cuda", smi(TWO_CARDS)) == (FIRST, SECOND)


def test_a_card_that_is_cut_up_gives_its_instances(smi: MakeSmi) -> None:
    assert cards_for("cuda", smi(CUT_CARD)) == ("MIG-33333333-cccc", "MIG-44444444-dddd", SECOND)


@pytest.mark.parametrize(
    ("named", "cards"),
    [
        ("1", ("1",)),
        ("1,0", ("1", "0")),
        (f" {SECOND} , {FIRST}", (SECOND, FIRST)),
        ("GPU-2222", ("GPU-2222",)),
        ("MIG-GPU-11111111-aaaa/7/0", ("MIG-GPU-11111111-aaaa/7/0",)),
    ],
)
def test_what_is_made_visible_is_kept_as_it_is_written(
    smi: MakeSmi, bare: dict[str, str], named: str, cards: tuple[str, ...]
) -> None:
    assert cards_for("cuda", smi(TWO_CARDS, CUDA_VISIBLE_DEVICES=named)) == cards
    assert cards_for("cuda", bare | {"CUDA_VISIBLE_DEVICES": named}) == cards


def test_a_numbered_device_is_that_one_of_the_visible_cards(smi: MakeSmi) -> None:
    assert cards_for("cuda:1", smi(TWO_CARDS)) == (SECOND,)
    assert cards_for("cuda:0", smi(TWO_CARDS, CUDA_VISIBLE_DEVICES="1")) == ("1",)
    with pytest.raises(CardsUnavailable, match=r"'cuda:2', but 2 cards are visible .*give cuda:0 to cuda:1"):
        cards_for("cuda:2", smi(TWO_CARDS))


def test_nobody_looks_for_cards_if_none_are_asked_for(smi: MakeSmi) -> None:
    assert cards_for("cpu", smi("out of order", status=9)) == ()


@pytest.mark.parametrize(
    ("listing", "status", "variables", "says"),
    [
        ("No devices were found", 0, {}, r"nvidia-smi -L lists no card, and CUDA_VISIBLE_DEVICES is not set"),
        ("NVIDIA-SMI has failed\n", 9, {}, r"-L ended with status 9 \(NVIDIA-SMI has failed\)"),
        (TWO_CARDS, 0, {"CUDA_VISIBLE_DEVICES": ""}, r"CUDA_VISIBLE_DEVICES='' hides every card"),
        (TWO_CARDS, 0, {"CUDA_VISIBLE_DEVICES": "-1"}, r"CUDA_VISIBLE_DEVICES='-1' hides every card"),
        (None, 0, {}, r"no nvidia-smi is on the PATH, and CUDA_VISIBLE_DEVICES is not set"),
        (None, 0, {"CUDA_VISIBLE_DEVICES": ""}, r"CUDA_VISIBLE_DEVICES='' hides every card"),
    ],
)
def test_no_card_is_refused_with_what_was_looked_at_and_the_remedy(
    smi: MakeSmi,
    bare: dict[str, str],
    listing: str | None,
    status: int,
    variables: dict[str, str],
    says: str,
) -> None:
    environment = bare | variables if listing is None else smi(listing, status, **variables)

    with pytest.raises(CardsUnavailable, match=rf"{says}.*run the workers with --device cpu"):
        cards_for("cuda", environment)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("2", "has '2', but 2 cards are visible"),
        ("GPU-3", "has 'GPU-3', but 2 cards"),
        ("GPU-", "name cards by their number"),
        ("0,0", "has '0' twice"),
        ("0,", "has ''"),
        ("first", "has 'first': name cards by their number"),
    ],
)
def test_a_visible_card_that_is_not_there_is_named(smi: MakeSmi, named: str, says: str) -> None:
    with pytest.raises(CardsUnavailable, match=says):
        cards_for("cuda", smi(TWO_CARDS, CUDA_VISIBLE_DEVICES=named))


def test_an_nvidia_smi_that_hangs_is_given_up(smi: MakeSmi, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = smi(TWO_CARDS)
    (Path(environment["PATH"].split(":")[0]) / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr("lorayard.local.cards._SMI_TIMEOUT_S", 0.2)

    with pytest.raises(CardsUnavailable, match=r"gives no list of cards .*timed out after 0\.2 seconds"):
        cards_for("cuda", environment)


def test_more_workers_than_cards_are_refused_with_the_numbers_unless_they_share() -> None:
    cards = (FIRST, SECOND)

    check_workers(cards, 2, shared=False)
    check_workers(cards, 5, shared=True)
    with pytest.raises(
        CardsUnavailable, match=r"3 workers.* but 2 cards are visible .*give --workers 2, or --share-gpus"
    ):
        check_workers(cards, 3, shared=False)


@pytest.mark.parametrize(
    ("num_workers", "wished", "share"),
    [(2, None, None), (3, None, 0.45), (6, None, 0.3), (2, 0.95, 0.95), (4, 0.5, 0.5)],
)
def test_workers_of_one_card_share_its_memory(
    num_workers: int, wished: float | None, share: float | None
) -> None:
    assert memory_share((FIRST, SECOND), num_workers, wished) == share
    assert memory_share((), num_workers, wished) == wished


def test_more_memory_than_a_card_has_is_refused_with_the_numbers() -> None:
    with pytest.raises(CardsUnavailable, match=r"3 workers share a card.* is 0.4 .*1.2 .*lower it to 0.33"):
        memory_share((FIRST, SECOND), 6, 0.4)


def stack(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], **options: object) -> StackConfig:
    """Configure a stack as `lorayard up` does in this environment."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return StackSettings(**options).to_config()  # type: ignore[arg-type]


def test_the_nth_worker_gets_the_nth_card_and_nobody_else_sees_one(
    smi: MakeSmi, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stack(monkeypatch, smi(TWO_CARDS, LORAYARD_DEVICE="cuda"))

    assert config.num_workers == 2
    workers = [worker_environment(config, number) for number in (1, 2)]
    assert [worker["CUDA_VISIBLE_DEVICES"] for worker in workers] == [FIRST, SECOND]
    assert {worker["LORAYARD_DEVICE"] for worker in workers} == {"cuda"}
    assert service_environment(config, ADDRESSES)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in client_environment(config, ADDRESSES)
    with pytest.raises(CardsUnavailable, match="3 workers, each with a card of its own, but 2 cards"):
        worker_environment(config, 3)


def test_visible_cards_are_given_as_they_are_named(smi: MakeSmi, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = smi(TWO_CARDS, CUDA_VISIBLE_DEVICES=f"{SECOND},0", LORAYARD_DEVICE="cuda")
    config = stack(monkeypatch, environment)

    given = [worker_environment(config, number)["CUDA_VISIBLE_DEVICES"] for number in (1, 2)]

    assert given == [SECOND, "0"]


def test_workers_that_share_take_turns_and_their_part_of_the_memory(
    smi: MakeSmi, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stack(monkeypatch, smi(TWO_CARDS), device="cuda", num_workers=3, share_gpus=True)

    workers = [worker_environment(config, number) for number in (1, 2, 3)]

    assert [worker["CUDA_VISIBLE_DEVICES"] for worker in workers] == [FIRST, SECOND, FIRST]
    assert {worker["LORAYARD_GPU_MEMORY_UTILIZATION"] for worker in workers} == {"0.45"}


def test_workers_on_the_cpu_are_two_and_see_no_card(smi: MakeSmi, monkeypatch: pytest.MonkeyPatch) -> None:
    config = stack(monkeypatch, smi(TWO_CARDS, CUDA_VISIBLE_DEVICES="0"))

    assert (config.num_workers, config.cards) == (2, ())
    assert worker_environment(config, 1) == {"LORAYARD_WORKER_NAME": "worker-1", "LORAYARD_DEVICE": "cpu"}
    assert service_environment(config, ADDRESSES)["CUDA_VISIBLE_DEVICES"] == ""


def run_up(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run `lorayard up`, which refuses to start here; it says at the end whether torch was loaded."""
    code = "import sys; from lorayard.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    inherited = {name: value for name, value in os.environ.items() if "LORAYARD_" not in name}
    inherited.pop("CUDA_VISIBLE_DEVICES", None)
    return subprocess.run(
        [sys.executable, "-c", code, "up", *options],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_refuses_more_workers_than_cards_and_loads_no_torch(smi: MakeSmi) -> None:
    ran = run_up(smi(TWO_CARDS), "--device", "cuda", "--workers", "3")

    assert (ran.returncode, ran.stdout) == (1, "False\n")
    assert ran.stderr.startswith(
        "error: 3 workers, each with a card of its own, but 2 cards are visible (GPU-1"
    )


def test_the_command_refuses_cards_where_there_are_none(bare: dict[str, str]) -> None:
    ran = run_up(bare, "--device", "cuda")

    assert ran.returncode == 1
    assert ran.stderr == (
        "error: no nvidia-smi is on the PATH, and CUDA_VISIBLE_DEVICES is not set: "
        "let this machine see a card, or run the workers with --device cpu\n"
    )


def test_the_command_names_a_device_that_there_is_not(bare: dict[str, str]) -> None:
    ran = run_up(bare, "--device", "rocm")

    assert ran.returncode == 1
    assert "LORAYARD_DEVICE='rocm': give cpu, cuda, or cuda:N" in ran.stderr
