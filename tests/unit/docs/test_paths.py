"""What the documents name as a file, a folder or a module of the repository exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "benchmarks/README.md",
        ROOT / "distributions/server/README.md",
        ROOT / "tests/recorded/README.md",
    ]
)
FOLDERS = "benchmarks|db|deploy|distributions|docs|examples|kernels|lorayard|scheduler|tests|workers"
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w/?(?![\w*<{{])")
MODULE = re.compile(rf"python -m ((?:{FOLDERS})(?:\.\w+)*)")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def named(document: Path) -> Iterator[tuple[str, Path]]:
    text = document.read_text()
    for link in LINK.findall(text):
        yield link, document.parent / link
    for code in CODE.findall(text):
        for path in PATH.findall(code):
            yield path, ROOT / path
    for module in MODULE.findall(text):
        yield module, ROOT / module.replace(".", "/")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    missing = [
        name for name, path in named(document) if not (path.exists() or path.with_suffix(".py").exists())
    ]

    assert missing == []
