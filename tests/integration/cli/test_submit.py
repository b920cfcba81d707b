"""`lorayard submit` and `lorayard up` as a shell sees them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from lorayard.cli import main
from lorayard.cli.request_options import option_names
from lorayard.contract.messages import JobEnvelope
from lorayard.contract.request import GenerationRequest
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState
from tests.integration.client.tiny_leader import TinyLeader, register_pool


@pytest.fixture
def pool_url(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Redis with a pool, named in the environment."""
    register_pool(redis_url, adapters=("upper",))
    monkeypatch.setenv("LORAYARD_REDIS_URL", redis_url)
    return redis_url


def status_of(*arguments: str) -> int:
    """Run the command and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_the_output_is_printed(pool_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with TinyLeader(pool_url) as leader:
        status = status_of(
            "submit", "hello", "--adapter", "upper", "--max-tokens", "7", "--stop", "a", "--stop", "b",
            "--priority", "high", "--tenant", "acme", "--metadata", '{"run": 7}',
        )  # fmt: skip

    spec = next(iter(leader.envelopes.values())).spec
    assert (status, capsys.readouterr().out) == (0, "HELLO\n")
    assert (spec.adapter, spec.max_tokens, spec.stop, spec.priority, spec.tenant, spec.metadata) == (
        "upper", 7, ("a", "b"), "high", "acme", {"run": 7},
    )  # fmt: skip


def test_every_field_of_a_request_has_its_option(pool_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with TinyLeader(pool_url) as leader:
        status = status_of(
            "submit", "hello", "--adapter", "upper", "--adapter-scale", "-0.5", "--temperature", "0.5",
            "--top-p", "0.9", "--top-k", "7", "--min-p", "0.1", "--seed", "3", "--stop-token-ids", "5",
            "--stop-token-ids", "6", "--include-stop-str-in-output", "--ignore-eos", "--min-tokens", "2",
            "--repetition-penalty", "1.5", "--presence-penalty", "-1", "--frequency-penalty", "0.5",
            "--logit-bias", '{"5": -1.5}', "--bad-words", "no", "--bad-words", "never",
            "--no-skip-special-tokens", "--structured-outputs", '{"regex": "a+"}', "--max-tokens", "9",
            "--stop", "x",
        )  # fmt: skip

    spec = next(iter(leader.envelopes.values())).spec
    assert (status, capsys.readouterr().out) == (0, "HELLO\n")
    assert json.loads(spec.request_json()) == {
        "prompt": "hello", "adapter_scale": -0.5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1,
        "seed": 3, "stop": ["x"], "stop_token_ids": [5, 6], "include_stop_str_in_output": True,
        "ignore_eos": True, "min_tokens": 2, "repetition_penalty": 1.5, "presence_penalty": -1.0,
        "frequency_penalty": 0.5, "logit_bias": {"5": -1.5}, "bad_words": ["no", "never"],
        "skip_special_tokens": False, "structured_outputs": {"regex": "a+"}, "max_tokens": 9,
    }  # fmt: skip
    assert set(option_names()) == spec.model_fields_set & set(GenerationRequest.model_fields) - {"prompt"}


def test_what_is_not_given_is_not_sent(pool_url: str) -> None:
    with TinyLeader(pool_url) as leader:
        assert status_of("submit", "hello") == 0

    assert next(iter(leader.envelopes.values())).spec.request_json() == '{"prompt":"hello"}'


def test_without_waiting_the_id_is_printed(pool_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("submit", "hello", "--no-wait") == 0
    assert status_of("submit", "hello", "--no-wait", "--json") == 0

    plain, as_json = capsys.readouterr().out.splitlines()
    assert UUID(plain) != UUID(json.loads(as_json)["job_id"])


def test_a_dash_reads_the_prompt_from_standard_input(
    pool_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))

    with TinyLeader(pool_url):
        assert status_of("submit", "-") == 0

    assert capsys.readouterr().out == "FROM A PIPE\n"


def test_a_job_that_fails_ends_with_status_1(pool_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(envelope: JobEnvelope) -> JobResult:
        error = JobError(code="adapter_io", message="disk on fire")
        return JobResult(job_id=envelope.job_id, state=JobState.FAILED, error=error)

    with TinyLeader(pool_url, fail):
        assert status_of("submit", "hello") == 1

    assert "failed, adapter_io: disk on fire" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("hello", "--temperature", "-1"), "temperature=-1.0"),
        (("hello", "--adapter", "uper"), "did you mean 'upper'?"),
        (("hello", "--logit-bias", "5"), "give a dict of at most 1024 token ids"),
        (("hello", "--logit-bias", "{5"), "--logit-bias '{5' is not JSON"),
        (("hello", "--callback-url", "nowhere"), "callback_url 'nowhere' is not an http(s) URL"),
        (("",), "the prompt is empty"),
        (("hello", "--timeout", "0.05"), "has not ended within 0.05 s"),
    ],
)
def test_what_goes_wrong_is_one_line(
    arguments: tuple[str, ...], complaint: str, pool_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("submit", *arguments) == 1

    shown = capsys.readouterr().err
    assert complaint in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


def test_an_unreachable_redis_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORAYARD_REDIS_URL", "redis://:secret@127.0.0.1:1/0")

    assert status_of("submit", "hello") == 1

    shown = capsys.readouterr().err
    assert shown.startswith("error: Redis at redis://:***@127.0.0.1:1/0 cannot be reached")
    assert shown.count("\n") == 1


def test_up_without_a_base_model_is_told_with_the_remedy(tmp_path: Path) -> None:
    # In a process of its own: `up` takes the signal handlers over.
    ran = subprocess.run(
        [sys.executable, "-c", "from lorayard.cli import main; main()", "up", "--state-dir", str(tmp_path)],
        env={name: value for name, value in os.environ.items() if name != "LORAYARD_MODEL"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (
        1,
        "error: no base model: set LORAYARD_MODEL to the folder of a Hugging Face checkpoint\n",
    )
