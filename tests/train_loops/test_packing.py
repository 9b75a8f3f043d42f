"""Several rows in one sequence: the rows stay strangers, so the loss is that of rows alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.settings import Settings
from tests.train_loops.conftest import chats
from tests.train_loops.plans import plan as resolved
from train_loops.report import SilentReporter
from train_loops.run import run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def first_step(
    job_id: str, home: Path, file_root: Path, model_root: Path, **tuning: Any
) -> dict[str, Any]:
    """The metrics of a run's only step, before any weight has moved."""
    settings = Settings(_env_file=None, home=home, file_root=file_root, model_root=model_root)
    plan = resolved(
        f"file://{file_root}",
        job_id=job_id,
        engine="trl",
        tuning_parameters={"max_steps": 1, **tuning},
    )
    run(plan, settings, SilentReporter())
    path = Path(plan.log_uri.removeprefix("file://")) / "metrics.jsonl"
    metrics: dict[str, Any] = json.loads(path.read_text())
    return metrics


def test_the_loss_of_a_pack_is_the_token_weighted_loss_of_its_rows(
    home: Path, file_root: Path, model_root: Path
) -> None:
    rows = len(chats())
    apart = first_step(
        "rows-apart", home, file_root, model_root, batch_size=rows, micro_batch_size=6
    )
    packed = first_step(
        "rows-in-a-pack", home, file_root, model_root,
        batch_size=1, packing=True, max_sequence_length=4096,
    )  # fmt: skip
    assert packed["train_loss"] == pytest.approx(apart["train_loss"], abs=1e-3)
    assert packed["epoch"] == apart["epoch"] == 1
