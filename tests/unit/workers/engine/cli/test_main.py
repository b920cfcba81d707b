"""The engine answers from a shell."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples.tiny.recipe import ADAPTERS_DIR, BASE_DIR
from workers.engine.__main__ import main
from workers.engine.cli.command_line import read_command_line

ROOT = Path(__file__).parents[5]
UPPER, REVERSE = str(ADAPTERS_DIR / "upper"), str(ADAPTERS_DIR / "reverse")
ONE_THREAD = ("--threads", "1")


def test_it_prints_one_answer_a_line_and_each_warning_once_beside_them(tmp_path: Path) -> None:
    base = shutil.copytree(BASE_DIR, tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "no_repeat_ngram_size": 3}')
    command = [sys.executable, "-m", "workers.engine", str(base), "-", "melon>", *ONE_THREAD]
    back = _trained_on("/workspace/model", tmp_path, adapter=REVERSE)
    adapters = ["--adapter", UPPER, "--adapter", f"back={back}"]

    ran = subprocess.run(
        command + adapters, cwd=ROOT, input="hello>\n\nbanana>\n", capture_output=True, text=True, check=False
    )

    assert ran.stdout.splitlines() == [
        "upper: HELLO",
        "back: olleh",
        "upper: BANANA",
        "back: ananab",
        "upper: MELON",
        "back: nolem",
    ]
    assert ran.returncode == 0
    of_the_base, of_the_adapter = ran.stderr.splitlines()
    assert of_the_base.startswith(
        f"warning: {base}/generation_config.json: no_repeat_ngram_size not applied: requests are"
    )
    assert of_the_adapter.startswith("warning: back: it calls its base '/workspace/model'; whether that is")


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        ([], ["banana", "melon"]),
        (["--adapter", UPPER], ["BANANA", "MELON"]),
        (["--adapter", UPPER, "--scale", "0"], ["banana", "melon"]),
        (["--adapter", UPPER, "--stream", "--chat"], ["BANANA", "MELON"]),
        (["--adapter", UPPER, "--adapter", REVERSE, "--mix", "0,1"], ["ananab", "nolem"]),
        (["--adapter", UPPER, "--adapter", REVERSE, "--stream"], []),
        (["--adapter", UPPER, "--max-tokens", "2", "--dtype", "bfloat16"], ["BA", "ME"]),
        (["--adapter", UPPER, "--quantization", "int8", "--stop", "O"], ["BANANA", "MEL"]),
    ],
)
def test_its_options_act(options: list[str], answers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(BASE_DIR), "banana>", "melon>", *options, *ONE_THREAD]) == 0

    wanted = answers or ["upper: BANANA", "reverse: ananab", "upper: MELON", "reverse: nolem"]
    assert capsys.readouterr().out.splitlines()[-len(wanted) :] == wanted


@pytest.mark.parametrize(
    ("trained_on", "options"),
    [
        (f"{BASE_DIR}/", []),
        (str(BASE_DIR / ".." / "base"), []),
        ("someone/other", ["--served-model-name", "other"]),
    ],
)
def test_an_adapter_of_this_very_folder_or_of_the_served_name_answers(
    trained_on: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = _trained_on(trained_on, tmp_path)

    assert main([str(BASE_DIR), "melon>", "--adapter", adapter, *options, *ONE_THREAD]) == 0

    assert capsys.readouterr().out.splitlines()[-1] == "MELON"  # the log comes before it


def test_an_adapter_of_another_name_is_refused_with_both_names_and_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = _trained_on("someone/other", tmp_path)

    assert main([str(BASE_DIR), "melon>", "--adapter", adapter, *ONE_THREAD]) == 1

    said = capsys.readouterr().err
    assert "trained on 'someone/other', but 'lorayard/tiny' is served" in said
    assert "(served_model_name, in the pipeline LORAYARD_SERVED_MODEL_NAME)" in said


def _trained_on(base: str, folder: Path, adapter: str = UPPER) -> str:
    """Copy a shipped adapter and have it name its base so."""
    copy = shutil.copytree(adapter, folder / "adapter")
    config = copy / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base}))
    return str(copy)


def test_a_seed_draws_the_same_answers_again(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ["--n", "3", "--temperature", "3", "--seed", "5", "--top-p", "0.99", "--top-k", "40"]

    said = []
    for _ in range(2):
        assert main([str(BASE_DIR), "banana>", *drawn, *ONE_THREAD]) == 0
        said.append(capsys.readouterr().out)

    assert said[0] == said[1]
    assert len(set(said[0].splitlines())) > 1


def test_sampling_that_is_not_given_is_left_to_the_model_unless_its_file_is_not_wanted() -> None:
    asked = read_command_line([str(BASE_DIR), "banana>"])
    told = read_command_line([str(BASE_DIR), "banana>", "--generation-config", "none", "--top-k", "0"])

    assert (asked.config.generation_config, told.config.generation_config) == ("auto", "none")
    params = asked.params
    assert (params.top_p, params.top_k, params.min_p, params.repetition_penalty) == (None,) * 4
    assert (params.temperature, told.params.top_k) == (0.0, 0)


def test_answers_follow_a_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": ["pear", "fig"]}))

    assert main([str(BASE_DIR), "banana>", "--json-schema", str(schema), *ONE_THREAD]) == 0

    assert json.loads(capsys.readouterr().out) in ("pear", "fig")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "x"], "checkpoint: model 'nowhere' is not a folder"),
        ([str(BASE_DIR), ""], "invalid_prompt: the prompt is empty"),
        ([str(BASE_DIR), "-"], "invalid_prompt: standard input holds no prompt"),
        ([str(BASE_DIR), "x", "--max-tokens", "0"], "invalid_params: max_tokens is 0"),
        ([str(BASE_DIR), "x", "--json-schema", "nowhere"], "invalid_params: --json-schema nowhere cannot be"),
        ([str(BASE_DIR), "x", "--adapter", "nowhere"], "adapter_not_found: "),
        ([str(BASE_DIR), "x", "--adapter", UPPER, "--adapter", UPPER], "request: two adapters are called 'u"),
        ([str(BASE_DIR), "x", "--adapter", UPPER, "--mix", "a"], "request: --mix is 'a'"),
        (
            [str(BASE_DIR), "x", "--adapter", UPPER, "--mix", "1,2"],
            "request: --mix is '1,2'; give one number for each --adapter, which are 1",
        ),
        ([str(BASE_DIR), "x", "--dtype", "int4"], "engine_config: dtype is 'int4'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    assert main([*arguments, *ONE_THREAD]) == 1

    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1
