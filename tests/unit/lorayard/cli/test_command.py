"""The command says what it is without importing what its verbs need."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import lorayard
from lorayard.cli import main
from lorayard.cli.command import VERBS, loaded

# A verb of each kind, to show that the modules below are looked for in the right place.
_RUN = """
import sys
from lorayard.cli import main
for arguments in (["--version"], ["--help"], ["usage", "--help"]):
    try:
        main(arguments)
    except SystemExit as ended:
        found = [name for name in ("pydantic", "redis", "httpx", "lorayard.cli.usage") if name in sys.modules]
        print(arguments[0], ended.code, *found, file=sys.stderr)
"""


def test_help_and_version_import_no_verb() -> None:
    ran = subprocess.run([sys.executable, "-c", _RUN], capture_output=True, text=True, timeout=60, check=True)

    assert ran.stderr.splitlines() == ["--version 0", "--help 0", "usage 0 pydantic lorayard.cli.usage"]


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"lorayard {version('lorayard')}\n"
    assert lorayard.__version__ == version("lorayard")


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_says_of_a_verb_what_its_own_help_does(verb: str) -> None:
    command = loaded(verb)

    assert (command.name, command.help.partition("\n")[0]) == (verb, VERBS[verb])


def test_a_misspelled_verb_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sumbit", "hello"])

    assert ended.value.code == 2
    assert "Did you mean 'submit'?" in capsys.readouterr().err
