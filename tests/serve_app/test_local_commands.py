"""`up` and `down` beside a stack that runs: whose processes they end, and whose not."""

from pathlib import Path

import psutil
import pytest

from serve_app.local import processes
from tests.serve_app.test_local import SLEEP, command_line, eventually, start, write_state
from tests.serve_app.test_local import stack_id as _stack_id

stack_id = _stack_id


@pytest.fixture
def running(tmp_path: Path, stack_id: str) -> psutil.Process:
    """The one process of the stack that an earlier `up` started from `home`."""
    process = psutil.Process(start(tmp_path, stack_id, SLEEP))
    eventually(lambda: process.environ().get(processes.MARK) == stack_id)
    write_state(tmp_path, stack_id)
    return process


def test_a_second_up_is_refused_and_does_not_end_the_first(
    tmp_path: Path, running: psutil.Process
) -> None:
    done = command_line(tmp_path / "home", "up", TRAINER_PORT=str(processes.free_port()))
    assert done.returncode == 1
    assert "a stack runs already" in done.stderr
    assert running.status() != psutil.STATUS_ZOMBIE


def test_without_a_ray_folder_nobody_is_owned_by_open_files(stack_id: str) -> None:
    assert processes.owned(stack_id, "") == []
