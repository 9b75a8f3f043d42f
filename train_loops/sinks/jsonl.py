"""Metrics as JSON lines in a local file, which `train_loops/run_log.py` carries to the store."""

import json
from pathlib import Path
from typing import IO, Any


class JsonlSink:
    """A `Sink` that appends one line per record."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def open(self) -> None:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def log(self, record: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
