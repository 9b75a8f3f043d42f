"""A load generator: a closed loop over keep-alive connections, for any route.

It runs in a process of its own (`python -m benchmarks.load`, a `Load` as JSON on stdin, a
`LoadResult` on stdout), so that it never waits for its caller. Standard library only: whatever the
client needs of the processor, the server lacks.
"""

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNIQUE = "@unique@"
"""Replaced in each body by a text that no other request has."""


@dataclass(frozen=True)
class Load:
    """One route, and how hard it is pressed."""

    host: str
    port: int
    method: str
    path: str
    seconds: float
    body: str = ""
    token: str = ""
    connections: int = 8
    warm_up_s: float = 0.5


@dataclass(frozen=True)
class LoadResult:
    """What came of it; errors count in neither the rate nor the latencies."""

    rate_per_s: float
    p50_ms: float
    p99_ms: float
    succeeded: int
    errors: int


@dataclass
class _Tally:
    latencies_s: list[float] = field(default_factory=list)
    errors: int = 0


class _Connection:
    """One keep-alive connection; opened anew after an error."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def status(self, request: bytes) -> int:
        """Send the request, read the whole answer, return its status; 0 when there was none."""
        try:
            return await self._exchange(request)
        except (OSError, EOFError, ValueError):
            self.close()
            # So that a server that is down is not asked a million times.
            await asyncio.sleep(0.01)
            return 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _exchange(self, request: bytes) -> int:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                self._load.host, self._load.port
            )
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        # No length (a chunked answer) is a ValueError: no route here answers so.
        _, _, rest = head.partition(b"\r\ncontent-length:")
        await self._reader.readexactly(int(rest.partition(b"\r\n")[0]))
        return int(head.split(b" ", 2)[1])


def press(load: Load) -> LoadResult:
    """Press the route from a process of its own, and wait for the result."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(asdict(load)), capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return LoadResult(**json.loads(done.stdout))


async def _press(load: Load) -> LoadResult:
    run, numbers = uuid.uuid4().hex[:8], itertools.count()
    connections = [_Connection(load) for _ in range(load.connections)]
    tally, elapsed_s = _Tally(), 0.0
    # The first round warms up connections and caches, and is forgotten.
    for seconds in (load.warm_up_s, load.seconds):
        tally, started = _Tally(), time.perf_counter()
        loops = (_loop(load, c, started + seconds, tally, run, numbers) for c in connections)
        await asyncio.gather(*loops)
        elapsed_s = time.perf_counter() - started
    for connection in connections:
        connection.close()
    return _result(tally, elapsed_s)


async def _loop(
    load: Load, connection: _Connection, deadline: float, tally: _Tally, run: str,
    numbers: "itertools.count[int]",
) -> None:  # fmt: skip
    """The next request leaves when the last answer is there."""
    while (sent_at := time.perf_counter()) < deadline:
        status = await connection.status(_request(load, f"{run}-{next(numbers)}"))
        if 200 <= status < 300:
            tally.latencies_s.append(time.perf_counter() - sent_at)
        else:
            tally.errors += 1


def _request(load: Load, unique: str) -> bytes:
    body = load.body.replace(UNIQUE, unique).encode()
    lines = [f"{load.method} {load.path} HTTP/1.1", f"Host: {load.host}:{load.port}"]
    if load.token:
        lines.append(f"X-TRAINER-TOKEN: {load.token}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _result(tally: _Tally, elapsed_s: float) -> LoadResult:
    latencies_ms = [1000 * latency for latency in tally.latencies_s]
    # Two points at least; a route that never answered shows zeros and its errors.
    cuts = statistics.quantiles(latencies_ms, n=100) if len(latencies_ms) > 1 else [0.0] * 99
    count = len(latencies_ms)
    return LoadResult(count / elapsed_s, cuts[49], cuts[98], count, tally.errors)


def main() -> int:
    """One load from stdin, its result to stdout."""
    result = asyncio.run(_press(Load(**json.loads(sys.stdin.read()))))
    sys.stdout.write(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
