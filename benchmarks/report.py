"""The figures of one run, as tables for a person and as JSON for a file."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.api import NOOP_READ, NOOP_WRITE, READ, SUBMIT, ApiResult
from benchmarks.load import LoadResult
from benchmarks.training import Run, TrainingResult

API_GOAL, SPEED_GOAL, MEMORY_GOAL_BYTES = 0.60, 0.97, 3 * 10**9


@dataclass(frozen=True)
class Report:
    """What was measured; None for what was left out."""

    resident_bytes: int
    api: ApiResult | None
    training: TrainingResult | None

    def to_json(self) -> dict[str, Any]:
        """All figures, with the ratios and their goals."""
        ratios: dict[str, Any] = {}
        if self.api:
            ratios["read"] = {"value": self.api.ratio(READ, NOOP_READ), "goal": API_GOAL}
            ratios["submit"] = {"value": self.api.ratio(SUBMIT, NOOP_WRITE), "goal": API_GOAL}
        if self.training:
            ratios["tokens_per_second"] = {"value": self.training.speed_ratio, "goal": SPEED_GOAL}
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


def _show_training(training: TrainingResult, console: Console) -> None:
    columns = ("training", "to first step s", "tokens/s", "of the script's", "goal")
    table = Table(*columns, title=f"Training, {len(training.bare[0].losses)} steps, medians")
    table.add_row("bare script", *_run_cells(training.bare), "", "")
    speed = _goal(training.speed_ratio, SPEED_GOAL)
    table.add_row("service, no checkpoints", *_run_cells(training.service), *speed)
    table.add_row("service, default checkpoints", *_run_cells([training.with_checkpoints]), "", "")
    console.print(table)
    peak = max(run.peak_rss_bytes or 0 for run in training.bare)
    console.print(
        f"largest difference of a step's loss: {training.loss_difference:.2g} nats per token; "
        f"the bare script's peak memory: {peak / 1e9:.2f} GB"
    )


def _run_cells(runs: list[Run]) -> tuple[str, str]:
    return (
        f"{statistics.median(r.seconds_to_first_step for r in runs):.1f}",
        f"{statistics.median(r.tokens_per_second for r in runs):,.0f}",
    )


def _goal(ratio: float, goal: float) -> tuple[str, str]:
    return f"{ratio:.1%}", f"≥ {goal:.0%}, {_verdict(ratio >= goal)}"


def _verdict(met: bool) -> str:
    return "meets" if met else "[bold]misses[/bold]"
