"""What the engine's process tells of its steps is read whole, or known to be torn, also after its death."""

from __future__ import annotations

import os
import struct

from workers.engine.serving.step_board import Phase, StepBoard


def test_the_other_side_reads_each_word() -> None:
    file, size = StepBoard.make_file(2)
    writer, reader = StepBoard(file, size), StepBoard(file, size)
    os.close(file)

    fresh = reader.read()
    writer.take("one:1")
    taking = reader.read()
    writer.enter(Phase.STEPPING, ("one:1", "two:1"), num_tokens=40, predicted_s=1.5)
    stepping = reader.read()
    writer.settle()
    settled = reader.read()
    writer.enter(Phase.WAITING)
    waiting = reader.read()

    assert (fresh.phase, fresh.num_moves, fresh.request_ids) == (Phase.LOADING, 0, ())
    assert (taking.phase, taking.num_taken, taking.request_ids) == (Phase.TAKING, 1, ("one:1",))
    assert str(stepping) == "step 1 of 2 requests and 40 tokens, predicted to take 1.500 s"
    assert stepping.request_ids == settled.request_ids == ("one:1", "two:1")
    assert settled.num_steps == 1
    assert (waiting.phase, waiting.request_ids, str(waiting)) == (Phase.WAITING, (), "waiting")
    moves = [word.num_moves for word in (fresh, taking, stepping, settled, waiting)]
    assert moves == sorted(set(moves))


def test_names_that_find_no_room_are_told_as_unknown_with_their_number() -> None:
    file, size = StepBoard.make_file(1)
    board = StepBoard(file, size)
    os.close(file)

    board.enter(Phase.STEPPING, tuple(f"{number:0100d}" for number in range(3)), num_tokens=3)
    too_long = board.read()
    board.enter(Phase.STEPPING, ("short",), num_tokens=1)

    assert (too_long.request_ids, too_long.num_requests) == (None, 3)
    assert board.read().request_ids == ("short",)


def test_a_word_that_was_being_written_when_its_writer_died_names_nobody() -> None:
    file, size = StepBoard.make_file(1)
    board = StepBoard(file, size)
    board.enter(Phase.STEPPING, ("one:1",), num_tokens=1)

    os.pwrite(file, struct.pack("=Q", 3), 0)  # an odd version
    os.close(file)

    assert board.read().request_ids is None
