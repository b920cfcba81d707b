"""An engine says what it computes on, and refuses a card that torch cannot use with what torch says of it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from workers.engine import EngineConfig, LLMEngine
from workers.engine.core import device_facts as module
from workers.engine.core.device_facts import DeviceFacts, device_facts
from workers.engine.core.errors import ConfigError

H100_BYTES = 85_029_158_912


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A torch that sees two cards; returns where the driver writes its version."""
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=H100_BYTES)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(module, "_DRIVER_VERSION_FILE", tmp_path / "version")
    return tmp_path / "version"


def test_the_cpu_has_no_card_to_tell_of() -> None:
    facts = device_facts("cpu")

    assert facts == DeviceFacts("cpu", None, None, None, torch.__version__)
    assert type(facts.torch_version) is str  # the worker's own process reads it without torch


@pytest.mark.parametrize(("device", "named"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_a_card_has_its_name_memory_and_driver(card: Path, device: str, named: str) -> None:
    card.write_text("580.65.06\n")

    facts = device_facts(device)

    assert facts == (named, "NVIDIA H100 80GB HBM3", H100_BYTES, "580.65.06", torch.__version__)


def test_the_drivers_library_is_asked_where_its_file_is_hidden(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        shut_down = 0

        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlSystemGetDriverVersion(self, version: ctypes.Array[ctypes.c_char], length: int) -> int:
            assert length == len(version)
            version.value = b"580.65.06"
            return 0

        def nvmlShutdown(self) -> None:
            self.shut_down += 1

    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)

    assert device_facts("cuda").driver_version == "580.65.06"
    assert library.shut_down == 1


def test_a_driver_that_does_not_tell_its_version_is_no_reason_to_refuse(card: Path) -> None:
    assert device_facts("cuda").driver_version is None


def test_a_card_that_is_not_there_is_refused_with_the_number_of_those_that_are(card: Path) -> None:
    with pytest.raises(ConfigError, match=r"device is 'cuda:2', but torch sees 2 cards, counted from 0"):
        device_facts("cuda:2")


@pytest.mark.parametrize(
    "said",
    [
        "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
        "Found no NVIDIA driver on your system.",
        "No CUDA GPUs are available",
    ],
)
def test_what_torch_has_against_the_driver_is_told_with_a_remedy(
    card: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def refuse() -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.cuda, "init", refuse)

    with pytest.raises(ConfigError) as refused:
        device_facts("cuda")

    assert said in str(refused.value)
    assert f"torch {torch.__version__} cannot use a card" in str(refused.value)
    assert "or give device 'cpu'" in str(refused.value)


def test_a_card_that_has_failed_is_no_matter_of_configuration(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")

    monkeypatch.setattr(torch.cuda, "init", fail)

    with pytest.raises(torch.AcceleratorError, match="ECC"):
        device_facts("cuda")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_an_engine_on_a_torch_without_cuda_is_refused_before_it_reads_anything() -> None:
    with pytest.raises(ConfigError, match=r"device is 'cuda', but torch .* cannot use a card: Torch not"):
        LLMEngine(EngineConfig(model="/no/such/model", device="cuda"))


def test_an_engine_tells_what_it_computes_on(checkpoint: Path) -> None:
    with LLMEngine(EngineConfig(model=str(checkpoint), num_threads=1)) as engine:
        info = engine.info

    assert (info.device, info.torch_version) == ("cpu", torch.__version__)
    assert (info.device_name, info.device_memory_bytes, info.driver_version) == (None, None, None)
