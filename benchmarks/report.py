"""The figures of one run, as tables for a person and as JSON for a file."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.api import NOOP_READ, NOOP_WRITE, READ, SUBMIT, ApiResult
from benchmarks.load import LoadResult
from benchmarks.packing import PackingResult
from benchmarks.training import Run, TrainingResult

API_GOAL, SPEED_GOAL, PACKING_GOAL, MEMORY_GOAL_BYTES = 0.60, 0.97, 1.5, 3 * 10**9


@dataclass(frozen=True)
class Report:
    """What was measured; None for what was left out."""

    resident_bytes: int
    api: ApiResult | None
    training: list[TrainingResult]
    packing: PackingResult | None

    def to_json(self) -> dict[str, Any]:
        """All figures, with the ratios and their goals."""
        ratios: dict[str, Any] = {}
        if self.api:
            ratios["read"] = {"value": self.api.ratio(READ, NOOP_READ), "goal": API_GOAL}
            ratios["submit"] = {"value": self.api.ratio(SUBMIT, NOOP_WRITE), "goal": API_GOAL}
        for one in self.training:
            ratios[f"tokens_per_second/{one.engine}"] = {
                "value": one.speed_ratio,
                "goal": SPEED_GOAL,
            }
        if self.packing:
            ratios["packing"] = {"value": self.packing.gain, "goal": PACKING_GOAL}
        return {"ratios": ratios, **asdict(self)}

    def show(self, console: Console) -> None:
        """Print what there is."""
        memory = f"{self.resident_bytes / 1e9:.2f} GB"
        console.print(
            f"memory at rest (proportional set size): {memory}, "
            f"{_verdict(self.resident_bytes < MEMORY_GOAL_BYTES)} the goal of under 3 GB"
        )
        if self.api:
            _show_api(self.api, console)
        if self.training:
            _show_training(self.training, console)
        if self.packing:
            _show_packing(self.packing, console)


def _show_api(api: ApiResult, console: Console) -> None:
    columns = ("route", "requests/s", "p50 ms", "p99 ms", "errors", "of the no-op's rate", "goal")
    table = Table(*columns, title="API, 8 connections, medians of rounds")
    for name, beside in (
        (NOOP_READ, ""),
        (READ, NOOP_READ),
        (NOOP_WRITE, ""),
        (SUBMIT, NOOP_WRITE),
    ):
        goal = _goal(api.ratio(name, beside), API_GOAL) if beside else ("", "")
        table.add_row(name, *_load_cells(api.rounds[name]), *goal)
    console.print(table)
    noticed = "not in time" if api.seconds_to_notice is None else f"{api.seconds_to_notice:.1f} s"
    console.print(
        f"{api.queued_jobs} jobs were queued at the end; submitted jobs wait for 4 × A100. "
        f"Until the tracker has seen one more: {noticed}"
    )


def _load_cells(rounds: list[LoadResult]) -> tuple[str, str, str, str]:
    return (
        f"{statistics.median(r.rate_per_s for r in rounds):,.0f}",
        f"{statistics.median(r.p50_ms for r in rounds):.1f}",
        f"{statistics.median(r.p99_ms for r in rounds):.1f}",
        str(sum(r.errors for r in rounds)),
    )


def _show_training(training: list[TrainingResult], console: Console) -> None:
    columns = (
        "engine", "", "to first step s", "tokens/s", "peak GB", "of the script's", "goal"
    )  # fmt: skip
    table = Table(*columns, title=f"Training, {len(training[0].bare[0].losses)} steps, medians")
    for one in training:
        table.add_row(one.engine, "bare script", *_run_cells(one.bare), "", "")
        speed = _goal(one.speed_ratio, SPEED_GOAL)
        table.add_row("", "service, no checkpoints", *_run_cells(one.service), *speed)
        if one.with_checkpoints:
            cells = _run_cells([one.with_checkpoints])
            table.add_row("", "service, default checkpoints", *cells, "", "")
    console.print(table)
    for one in training:
        console.print(
            f"{one.engine}: mean loss of the last quarter, service minus script: "
            f"{one.loss_difference:+.3f} nats per token"
        )


def _show_packing(packing: PackingResult, console: Console) -> None:
    table = Table("packing", "tokens/s", title=f"Packing, {packing.dataset}")
    table.add_row("TRL's defaults", f"{packing.unpacked_tokens_per_second:,.0f}")
    table.add_row("packed", f"{packing.packed_tokens_per_second:,.0f}")
    console.print(table)
    console.print(f"gain: {packing.gain:.2f} × ({_verdict(packing.gain >= PACKING_GOAL)} 1.5 ×)")


def _run_cells(runs: list[Run]) -> tuple[str, str, str]:
    return (
        f"{statistics.median(r.seconds_to_first_step for r in runs):.1f}",
        f"{statistics.median(r.tokens_per_second for r in runs):,.0f}",
        f"{max(r.peak_rss_bytes for r in runs) / 1e9:.2f}",
    )


def _goal(ratio: float, goal: float) -> tuple[str, str]:
    return f"{ratio:.1%}", f"≥ {goal:.0%}, {_verdict(ratio >= goal)}"


def _verdict(met: bool) -> str:
    return "meets" if met else "[bold]misses[/bold]"
