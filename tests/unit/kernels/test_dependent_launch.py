"""Where kernels start while others drain; what each reads before it waits is tested with the kernel."""

from __future__ import annotations

import pytest
import torch

from kernels import dependent_launch as launches
from kernels.lora import expand, expand_norm, shrink
from kernels.lora.triton_add import lora_add_triton
from tests.unit.kernels.compiled import Recorder, launch_on
from tests.unit.kernels.random_adapters import make_case

CPU = torch.device("cpu")


@pytest.mark.parametrize(("arch", "is_on"), [(0, False), (80, False), (89, False), (90, True), (120, True)])
def test_only_cards_that_have_it_are_asked_for_it(
    arch: int, is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_on(arch, monkeypatch)

    assert launches.dependent_launch(CPU) == ({"PDL": True, "launch_pdl": True} if is_on else {"PDL": False})


@pytest.mark.parametrize(
    ("level", "within", "across"),
    [("0", None, None), ("1", True, False), ("2", True, True)],
)
def test_the_level_decides_what_overlaps(
    level: str, within: bool | None, across: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_on(90, monkeypatch)
    monkeypatch.setattr(launches, "_LEVEL", level)

    assert launches.dependent_launch(CPU).get("launch_pdl") is within
    assert launches.dependent_launch(CPU, follows_other_stream=True).get("launch_pdl") is across


def test_halves_that_are_launched_on_two_streams_wait_for_each_other_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make_case(ranks=[[4]], slots=[0], in_features=16, slice_widths=[16], dtype=torch.float32)
    launch_on(90, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(shrink, "shrink_kernel", recorder)
    monkeypatch.setattr(expand, "expand_kernel", recorder)
    monkeypatch.setattr(expand_norm, "expand_norm_kernel", recorder)
    weight, residual = torch.ones(16), case.out.clone()
    add, rest = lora_add_triton, (case.segments, case.module)

    add(case.out, case.x, *rest)
    for is_beside in (False, True):
        shrunk = add.shrink(case.x, *rest, is_beside=is_beside)
        add.expand(case.out, shrunk, *rest, is_beside=is_beside)
        add.expand_norm(residual, case.out, shrunk, *rest, weight, 1e-5, is_beside=is_beside)

    launched_early = [launch.options["launch_pdl"] for launch in recorder.launches]
    assert launched_early == [True, True, *[True] * 3, *[False] * 3]
    assert all(launch.options["PDL"] for launch in recorder.launches)


def test_what_the_variable_asks_for_is_taken_or_refused_with_the_choices() -> None:
    assert launches.level({}) == launches.level({"LORAYARD_PDL": ""}) == "1"
    assert launches.level({"LORAYARD_PDL": "0"}) == "0"
    with pytest.raises(ValueError, match=r"LORAYARD_PDL is 'on'; give 0 \(off\), 1 .* or 2"):
        launches.level({"LORAYARD_PDL": "on"})
