"""What a plan's settings do to the data that lies ready for its workers."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import DatasetInvalid
from configs.settings import Settings
from tests.train_loops.conftest import chats
from tests.train_loops.plans import plan as resolved
from train_loops.data.prepare import load, load_validation
from train_loops.inputs import fetch

PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}


@pytest.fixture
def prepared(tmp_path: Path, model_root: Path) -> Any:
    """A function: rows and settings of a plan to the folder of its data."""

    def prepare(rows: list[Any], engine: str = "trl", **changes: Any) -> Path:
        path = tmp_path / "users/u1/projects/p1/ingestion/rows.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = Settings(
            _env_file=None, home=tmp_path / "home", file_root=tmp_path, model_root=model_root
        )
        plan = resolved(f"file://{tmp_path}", engine=engine, **changes)
        return fetch(plan, settings, None, worker="driver").data_folder

    return prepare


def test_packing_and_held_back_rows_are_as_the_request_says(prepared: Any) -> None:
    tuning = {"packing": True, "validation_share": 0.25, "max_sequence_length": 128}
    folder = prepared(chats(), tuning_parameters=tuning)
    rows, report = load(folder)
    assert "position_ids" in rows.column_names
    assert (report.rows, report.validation_rows) == (18, 6)
    assert len(load_validation(folder) or []) == report.validation_packs


def test_the_objective_is_the_one_of_the_request(prepared: Any) -> None:
    folder = prepared([PAIR], customization={"objective": "dpo"})
    assert load(folder)[0].column_names == ["prompt", "chosen", "rejected"]


def test_an_engine_without_a_model_still_reads_the_rows(prepared: Any) -> None:
    with pytest.raises(DatasetInvalid, match="those belong to objective 'dpo'"):
        prepared([PAIR], engine="simulated")


def test_an_engine_without_a_model_accepts_the_rows_of_any_objective(prepared: Any) -> None:
    folder = prepared([PAIR], engine="simulated", customization={"objective": "dpo"})
    assert not folder.exists()
