from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.unit.workers.engine.lora.adapter_writer import BASE, write_adapter
from workers.engine.core.errors import AdapterIOError, AdapterNotFound, ConfigError
from workers.engine.lora.files.hub_resolver import HubResolver
from workers.engine.lora.files.resolvers import ResolverChain


def test_the_hub_is_asked_for_allowed_repositories_and_adapter_files_only(tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(write_adapter(tmp_path / "snapshot"))

    chain = ResolverChain([HubResolver({"team/sql"}, download=download)], base=BASE, max_rank=64)

    assert chain.resolve("team/sql").lora_path == str(tmp_path / "snapshot")
    with pytest.raises(AdapterNotFound):
        chain.resolve("team/other")
    assert asked == [
        (
            "team/sql",
            {"revision": None, "allow_patterns": ["adapter_config.json", "adapter_model*.safetensors"]},
        )
    ]


def test_a_hub_that_does_not_answer_may_be_asked_again(tmp_path: Path) -> None:
    def download(name: str, **_: Any) -> str:
        raise ConnectionError("no route")

    with pytest.raises(AdapterIOError, match="'team/sql': the hub did not give its files") as raised:
        HubResolver(["team/sql"], download=download).find("team/sql")
    assert raised.value.retryable


def test_without_huggingface_hub_the_hub_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)

    with pytest.raises(ConfigError, match="pip install huggingface_hub"):
        HubResolver(["team/sql"])
