"""Starting and ending the local stack's processes, by id and never by name.

Every process carries the stack's mark in its environment, and so do its children. Ray's own rewrite
their title over their environment, but hold a file open in the stack's Ray folder. What `stop_all`
ends is what this stack started, and nothing else on the machine.
"""

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

MARK = "TRAINER_STACK_ID"
GRACE_S = 10.0


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Start a process in a session of its own, so that Ctrl-C reaches only us; its id."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            env=dict(environment), start_new_session=True,
        )  # fmt: skip
    return process.pid


def owned(stack_id: str, ray_folder: str) -> list[psutil.Process]:
    """All living processes of the stack but this one."""
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and _belongs(process, stack_id, ray_folder)
    ]


def _belongs(process: psutil.Process, stack_id: str, ray_folder: str) -> bool:
    try:
        if process.environ().get(MARK) == stack_id:
            return True
        if not ray_folder:
            return False
        files = Path(f"/proc/{process.pid}/fd").iterdir()
        return any(file.readlink().is_relative_to(ray_folder) for file in files)
    except (psutil.Error, OSError):
        return False


def stop_all(stack_id: str, ray_folder: str) -> None:
    """End the stack's processes: SIGTERM, then after a while SIGKILL, until none is left."""
    processes = owned(stack_id, ray_folder)
    for process in processes:
        _signal(process, kill=False)
    psutil.wait_procs(processes, timeout=GRACE_S)
    # Ray's own processes start others while they end, so look again until there are none.
    for _ in range(20):
        if not (left := owned(stack_id, ray_folder)):
            return
        for process in left:
            _signal(process, kill=True)
        psutil.wait_procs(left, timeout=1.0)


def resident_bytes(stack_id: str, ray_folder: str) -> int:
    """Memory that the stack's processes hold for themselves (proportional set size)."""
    total = 0
    for process in owned(stack_id, ray_folder):
        try:
            total += process.memory_full_info().pss
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return total


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return
