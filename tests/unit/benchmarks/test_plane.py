"""The instant engine keeps to the engine's protocol, and figures are judged by their goals."""

from __future__ import annotations

from multiprocessing import Pipe

from benchmarks.figures import Figure, verdicts
from benchmarks.plane.figures import Run, where_time_goes
from benchmarks.plane.instant_engine import InstantEngine, _receive
from benchmarks.plane.stack import Spent
from workers.engine.core.lora_request import LoRARequest
from workers.engine.core.sampling_params import SamplingParams
from workers.engine.serving.messages import AddRequest, Stop
from workers.engine.serving.step_board import StepBoard


def request(name: str) -> AddRequest:
    return AddRequest(name, "hello", None, SamplingParams(), LoRARequest("sql", 1, "/x", revision="r1"))


def test_every_request_is_answered_in_the_step_that_takes_it_and_an_adapter_is_told_once() -> None:
    ours, theirs = Pipe()
    engine, board = InstantEngine(max_num_seqs=4), StepBoard()
    ours.send((request("a"), request("b")))
    ours.send((request("c"),))

    commands = _receive(theirs, board)
    assert commands is not None
    events = engine.step(commands)

    assert [one.request_id for one in events.started] == ["a", "b", "c"]
    assert [(one.request_id, one.finished) for one in events.finished] == [(n, True) for n in "abc"]
    assert [(change.revision, change.tier) for change in events.residency] == [("r1", "device")]
    assert engine.step([request("d")]).residency == ()
    assert board.read().num_taken == 3

    ours.send((Stop(),))
    assert _receive(theirs, board) is None


def test_a_goal_is_a_bound_from_one_side_and_its_miss_is_shown() -> None:
    fast, slow = Figure("speed", 1200.0, "jobs/s", least=1000), Figure("speed", 900.0, "jobs/s", least=1000)
    wait, info = Figure("wait", 60.0, "ms", most=50), Figure("memory", 3.0, "MB")

    assert [one.is_met for one in (fast, slow, wait, info)] == [True, False, False, True]
    said = verdicts([fast, slow, wait, info]).splitlines()
    assert [line.split("|")[-2].strip() for line in said[2:]] == ["met", "MISSED", "MISSED", ""]


def test_processor_time_is_shared_out_by_process_and_job() -> None:
    spent = Spent({"worker": 3.0, "redis": 1.5}).since(Spent({"worker": 1.0}))
    run = Run("ours", 16, num_jobs=1000, seconds=2.0, spent=spent)

    assert (run.jobs_per_s, run.us_per_job) == (500.0, 3500.0)
    cells = [cell.strip() for cell in where_time_goes([run]).splitlines()[-1].strip("|").split("|")]
    assert cells == ["ours", "16", "500", "3500", "2000", "1500"]
