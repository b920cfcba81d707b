"""A field that only the contract and the engine know goes all the way from a client to the engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from lorayard import Client
from lorayard.contract import request, trusted
from lorayard.contract.errors import InvalidJob, JobFailed
from lorayard.contract.job import JobSpec
from lorayard.contract.keys import POOLS_KEY
from lorayard.contract.messages import JobEnvelope
from lorayard.contract.request import GenerationRequest, described
from lorayard.contract.states import JobState
from lorayard.contract.version import RELEASE
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker
from tests.polling import eventually
from workers import requests
from workers.engine.core.sampling_params import SamplingParams
from workers.requests import AdapterIds, add_request

MODELS = (GenerationRequest, JobSpec, JobEnvelope)


def rebuild() -> None:
    for model in MODELS:
        model.model_rebuild(force=True)
    request._request_fields.cache_clear()
    trusted._blank.cache_clear()
    requests._shared_params.cache_clear()


@pytest.fixture
def one_more_field(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give requests and the engine's parameters a field `sparkle`; nothing else learns of it."""
    field = described(0.0, "how much it sparkles", "give a number from 0 to 1", ge=0.0, le=1.0)
    for model in (GenerationRequest, JobSpec):
        made = FieldInfo.from_annotated_attribute(float, field)
        monkeypatch.setitem(model.__pydantic_fields__, "sparkle", made)
    rebuild()
    params = dataclasses.make_dataclass(
        "SamplingParams", [("sparkle", float, 0.0)], bases=(SamplingParams,), frozen=True, slots=True
    )
    monkeypatch.setattr(requests, "SamplingParams", params)
    yield
    monkeypatch.undo()
    rebuild()


@pytest.mark.usefixtures("one_more_field")
def test_a_new_field_arrives_in_the_engines_parameters(rig: PoolRig) -> None:
    with rig.scheduler(), ScriptedWorker(rig) as worker, Client(rig.redis_url) as client:
        eventually(lambda: rig.redis.hlen(POOLS_KEY))
        with_it, without = client.submit_many([{"prompt": "a", "sparkle": 0.5}, {"prompt": "b"}])
        outputs = [handle.result(20).output for handle in (with_it, without)]
        asked = {job.job_id: add_request(job, AdapterIds(Path("/store"))).params for job in worker.jobs}

        with pytest.raises(InvalidJob, match=r"sparkle=2\.0: .*; give a number from 0 to 1"):
            client.submit("a", sparkle=2.0)  # type: ignore[call-arg]

    assert outputs == ["A", "B"]
    assert [asked[handle.id].sparkle for handle in (with_it, without)] == [0.5, 0.0]  # type: ignore[attr-defined]
    (kept,) = rig.sql("SELECT request FROM job_inputs WHERE job_id = :id", id=with_it.id)
    assert kept.request == {"prompt": "a", "sparkle": 0.5}


def test_a_job_of_a_later_client_is_rejected_alone_and_its_producer_hears_why(rig: PoolRig) -> None:
    later = rig.envelope()
    body = json.loads(later.to_body())
    body["spec"]["sparkle"] = 0.5
    with rig.scheduler(), ScriptedWorker(rig), Client(rig.redis_url) as client:
        eventually(lambda: rig.redis.hlen(POOLS_KEY))
        stream = rig.keys.jobs("normal")
        rig.redis.xadd(stream, {"body": json.dumps(body), "writer": "9.1.0"})
        good = client.submit("a")

        rig.wait_for(JobState.REJECTED, later.job_id)
        with pytest.raises(JobFailed) as raised:
            client.job(later.job_id).result(20)
        assert good.result(20).output == "A"

    error = raised.value.result.error
    assert error is not None
    assert error.code == "unsupported_field"
    assert "sparkle" in error.message
    assert f"written by lorayard 9.1.0, this is lorayard {RELEASE}" in error.message
    assert rig.sql("SELECT * FROM intake_rejects") == []
    assert rig.reply(job_id=later.job_id).state is JobState.REJECTED
