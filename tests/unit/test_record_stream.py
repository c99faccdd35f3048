"""Records are written as a whole, or the command fails: whatever the buffer, the disk or the pipe."""

import io
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from imcore.cli.output import BlockingFile
from tests.helpers.outputs import FAILING, PIPE_BYTES, Output, stuck_pipe

SHOW = """
import resource
from imcore.cli import output
output.install()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
output.exit_with(lambda: output.say("x" * 5000) or 0)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_record_for_which_the_disk_has_room_in_part_is_an_error(unbuffered: str) -> None:
    with tempfile.TemporaryFile() as file:
        done = subprocess.run(
            [sys.executable, "-c", SHOW],
            stdout=file,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
        written = file.seek(0, os.SEEK_END)

    assert (done.returncode, done.stderr) == (1, b"im: the output could not be written: File too large\n")
    assert written == 4096


def test_a_record_waits_for_a_pipe_that_others_made_non_blocking() -> None:
    with stuck_pipe() as (writer, reader), ThreadPoolExecutor() as pool:
        os.set_blocking(writer, False)
        stream = io.BufferedWriter(BlockingFile(writer, "w", closefd=False))

        writing = pool.submit(lambda: stream.write(bytes(50_000)) and stream.flush())
        read = 0
        while read < PIPE_BYTES + 50_000:
            read += len(os.read(reader, PIPE_BYTES))

        writing.result()
        assert not os.get_blocking(writer)


@pytest.mark.parametrize("output", FAILING, ids=lambda output: output.__name__)
def test_a_write_that_fails_raises(output: Output) -> None:
    with (
        output() as descriptor,
        BlockingFile(descriptor, "w", closefd=False) as raw,
        pytest.raises(OSError, match="Errno"),
    ):
        raw.write(b"x")
