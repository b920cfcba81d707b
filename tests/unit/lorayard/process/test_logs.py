"""Log lines that cannot be written are no error of whoever logs, and are counted."""

from __future__ import annotations

import io
import json
import subprocess
import sys

from lorayard.process.logs import LogFile

PROGRAM = """
import structlog
from lorayard.process.logs import configure_logs
configure_logs(process="test")
for _ in range(10_000):
    structlog.get_logger().error("said.often", text="x" * 100)
print("lives")
"""


class Disk(io.StringIO):
    """Full at times."""

    is_full = False

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_lines_that_found_no_room_are_counted_by_the_first_that_does() -> None:
    disk = Disk()
    log = LogFile(disk)

    log.write("one\n")
    disk.is_full = True
    log.write("two\n")
    log.write("three\n")
    disk.is_full = False
    log.write("four\n")
    log.write("five\n")

    first, told, *others = disk.getvalue().splitlines()
    assert (first, others) == ("one", ["four", "five"])
    assert json.loads(told) == {"event": "log.lines_lost", "level": "error", "lines": 2}


def test_a_process_outlives_a_full_disk_under_its_log() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=full, text=True, check=False
        )

    assert ran.stdout == "lives\n"
