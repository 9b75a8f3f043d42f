"""The local stack's edges: whose processes it ends, when it refuses to start, what a person reads.

No Ray here; the processes are plain ones that do nothing.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from configs.errors import ConfigInvalid
from configs.job import Progress
from configs.settings import Settings
from serve_app.local import processes
from serve_app.local.demo import numbers
from serve_app.local.stack import LocalStack
from tests.serve_app.conftest import make_job

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
SLEEP = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
STUBBORN = (
    "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
)


@pytest.fixture
def stack_id(tmp_path: Path) -> Iterator[str]:
    """A mark of this test's own; what carries it is gone when the test has ended."""
    name = f"test-{os.getpid()}-{tmp_path.name}"
    yield name
    processes.stop_all(name, nowhere(tmp_path))


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of another stack."""
    environment = {**os.environ, processes.MARK: "another"}
    with subprocess.Popen([sys.executable, "-c", SLEEP], env=environment) as process:
        yield process
        process.kill()


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody listens on, who does not answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


def nowhere(tmp_path: Path) -> str:
    """A Ray folder that nobody has a file open in."""
    return str(tmp_path / "ray")


def start(tmp_path: Path, stack_id: str, code: str, *arguments: str) -> int:
    environment = {**os.environ, processes.MARK: stack_id}
    command = [sys.executable, "-c", code, *arguments]
    return processes.start(command, tmp_path / "logs" / "out.log", environment)


def eventually(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def owned(tmp_path: Path, stack_id: str) -> set[int]:
    return {process.pid for process in processes.owned(stack_id, nowhere(tmp_path))}


def test_a_marked_process_and_its_children_are_owned(tmp_path: Path, stack_id: str) -> None:
    pid = start(tmp_path, stack_id, PARENT)
    eventually(lambda: len(owned(tmp_path, stack_id)) == 2)
    assert pid in owned(tmp_path, stack_id)


def test_stop_all_ends_the_marked_and_their_children_and_nobody_else(
    tmp_path: Path, stack_id: str, stranger: subprocess.Popen[bytes]
) -> None:
    start(tmp_path, stack_id, PARENT)
    eventually(lambda: len(owned(tmp_path, stack_id)) == 2)
    pids = owned(tmp_path, stack_id)
    processes.stop_all(stack_id, nowhere(tmp_path))
    assert owned(tmp_path, stack_id) == set()
    eventually(lambda: not any(is_running(pid) for pid in pids))
    assert stranger.poll() is None


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, stack_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    deaf = tmp_path / "deaf"
    start(tmp_path, stack_id, STUBBORN, str(deaf))
    eventually(deaf.exists)
    processes.stop_all(stack_id, nowhere(tmp_path))
    assert owned(tmp_path, stack_id) == set()


def test_a_process_without_the_mark_is_known_by_a_file_it_holds_open_in_the_ray_folder(
    tmp_path: Path,
) -> None:
    ray_folder = tmp_path / "ray"
    ray_folder.mkdir()
    log = ray_folder / "session.log"
    pid = processes.start([sys.executable, "-c", SLEEP], log, os.environ)
    eventually(lambda: [p.pid for p in processes.owned("no such mark", str(ray_folder))] == [pid])
    processes.stop_all("no such mark", str(ray_folder))
    assert processes.owned("no such mark", str(ray_folder)) == []


def test_a_folder_whose_name_only_begins_alike_is_not_ours(tmp_path: Path) -> None:
    pid = processes.start([sys.executable, "-c", SLEEP], tmp_path / "ray-2" / "a.log", os.environ)
    process = psutil.Process(pid)
    eventually(lambda: [p.pid for p in processes.owned("none", f"{tmp_path}/ray-2")] == [pid])
    assert processes.owned("none", f"{tmp_path}/ray") == []
    process.kill()
    process.wait(PATIENCE_S)


def test_to_stop_where_nothing_runs_is_no_error(tmp_path: Path, stack_id: str) -> None:
    processes.stop_all(stack_id, nowhere(tmp_path))


def test_this_process_is_never_owned(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w"):
        assert processes.owned("none", str(tmp_path)) == []


def test_a_free_port_can_be_listened_on() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", processes.free_port()))


def test_a_taken_port_is_refused_and_nothing_is_started(tmp_path: Path, taken_port: int) -> None:
    stack = LocalStack(Settings(home=tmp_path / "home", port=taken_port))
    said: list[str] = []
    with pytest.raises(ConfigInvalid, match=f"port {taken_port} is taken"):
        stack.start(said.append)
    assert said == []
    assert not (tmp_path / "home").exists()
    assert stack.state is None


def test_a_second_stack_of_one_home_is_refused_and_leaves_the_first_alone(
    tmp_path: Path, stack_id: str
) -> None:
    stack = LocalStack(Settings(home=tmp_path / "home", port=processes.free_port()))
    pid = start(tmp_path, stack_id, SLEEP)
    eventually(lambda: owned(tmp_path, stack_id) == {pid})
    write_state(tmp_path, stack_id)
    with pytest.raises(ConfigInvalid, match="runs already"):
        stack.start(lambda _: None)
    assert owned(tmp_path, stack_id) == {pid}


def test_stop_ends_what_an_earlier_command_started(tmp_path: Path, stack_id: str) -> None:
    stack = LocalStack(Settings(home=tmp_path / "home", port=processes.free_port()))
    pid = start(tmp_path, stack_id, SLEEP)
    eventually(lambda: owned(tmp_path, stack_id) == {pid})
    write_state(tmp_path, stack_id)
    stack.stop()
    assert owned(tmp_path, stack_id) == set()
    assert stack.state is None
    assert not (tmp_path / "home" / "stack.json").exists()


def write_state(tmp_path: Path, stack_id: str) -> None:
    from serve_app.local.stack import StackState

    (tmp_path / "home").mkdir()
    state = StackState(
        stack_id=stack_id,
        base_url="http://127.0.0.1:1",
        s3_endpoint="http://127.0.0.1:2",
        dashboard_url="http://127.0.0.1:3",
        ray_folder=nowhere(tmp_path),
        ray_token_file=str(tmp_path / "home" / "ray.token"),
    )
    (tmp_path / "home" / "stack.json").write_text(state.model_dump_json())


def test_stop_on_nothing_is_no_error(tmp_path: Path) -> None:
    LocalStack(Settings(home=tmp_path / "home")).stop()
    assert not (tmp_path / "home").exists()


def test_the_demo_shows_step_loss_speed_and_time_left() -> None:
    progress = Progress(
        step=3, total_steps=40, loss=1.23456, tokens_per_second=5432.1, eta_seconds=12.4
    )
    shown = numbers(make_job(progress=progress))
    assert shown == "step 3/40  loss 1.235  5,432 tokens/s  12 s left"


def test_the_demo_shows_the_first_step_before_its_speed_is_known() -> None:
    shown = numbers(make_job(progress=Progress(step=1, total_steps=40, loss=4.0)))
    assert "step 1/40" in shown and "loss 4.000" in shown


def test_before_training_the_demo_shows_what_is_waited_for() -> None:
    assert numbers(make_job(detail="4 CPUs; the cluster has 2")) == "4 CPUs; the cluster has 2"


def command_line(
    home: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve_app.cli", *arguments],
        cwd=home, capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRAINER_HOME": str(home), **environment},
    )  # fmt: skip


def test_the_command_line_tells_our_own_errors_in_one_line(tmp_path: Path, taken_port: int) -> None:
    done = command_line(tmp_path, "up", TRAINER_PORT=str(taken_port))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error port {taken_port} is taken; set TRAINER_PORT to a free one"
    ]


def test_down_on_nothing_says_so(tmp_path: Path) -> None:
    done = command_line(tmp_path, "down")
    assert (done.returncode, done.stdout) == (0, "No service was running here.\n")
