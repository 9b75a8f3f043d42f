"""The fsdp2 engine against the trl engine, and models that cannot be opened. What it shares with
other loops of ours: `test_own_loops.py`; two ranks: `test_fsdp2_ranks.py`."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from configs.errors import ModelAccess
from tests.train_loops.bench import Bench
from train_loops.data.batches import collate
from train_loops.data.prepare import load
from train_loops.engines.fsdp2_model import token_nll


@pytest.fixture(scope="module")
def bench(file_root: Path, model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(file_root, model_root, tmp_path_factory.mktemp("home"), "fsdp2", max_steps=4)


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "full"])
def test_every_loss_is_that_of_the_trl_engine(method: str, bench: Bench) -> None:
    theirs = bench.trained(bench.plan(method, method, engine="trl"))
    assert bench.trained(bench.plan(method, method)) == pytest.approx(theirs, abs=1e-3)


def test_schedule_decay_and_precision_are_those_of_the_trl_engine(bench: Bench) -> None:
    how: dict[str, Any] = {
        "customization": {"precision": "bf16"},
        "tuning": {"weight_decay": 0.2, "warmup_ratio": 0.3, "lr_scheduler": "cosine"},
    }
    plans = [bench.plan("schedule", engine=name, **how) for name in ("fsdp2", "trl")]
    for plan in plans:
        bench.run(plan)
    ours, theirs = (bench.metrics(plan) for plan in plans)
    for name in ("train_loss", "learning_rate", "grad_norm"):
        expected = [line[name] for line in theirs]
        assert [line[name] for line in ours] == pytest.approx(expected, abs=1e-3), name


def test_an_uneven_last_batch_and_a_second_epoch_are_those_of_the_trl_engine(bench: Bench) -> None:
    tuning = {"batch_size": 10, "micro_batch_size": 5, "num_epochs": 2, "max_steps": 6}
    ours, theirs = (
        bench.trained(bench.plan("epochs", engine=name, tuning=tuning)) for name in ("fsdp2", "trl")
    )
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00not json"])
def test_broken_weights_are_an_unreadable_model(content: bytes, bench: Bench) -> None:
    folder = bench.model_root / f"broken-llama-{len(content)}"
    shutil.copytree(bench.model_root / "tiny-llama", folder)
    (folder / "model.safetensors").write_bytes(content)
    plan = bench.plan(folder.name, base_model={"model_name": folder.name})
    with pytest.raises(ModelAccess, match="could not be loaded"):
        bench.run(plan)
    assert not dist.is_initialized()


def test_a_pack_has_the_loss_of_its_rows_alone(bench: Bench) -> None:
    rows, _ = load(bench.inputs(bench.plan("rows")).data_folder)
    some = [rows[number] for number in range(3)]
    pack = {name: [item for row in some for item in row[name]] for name in ("input_ids", "labels")}
    pack["position_ids"] = [place for row in some for place in range(len(row["input_ids"]))]
    model = bench.base_model().eval()
    with torch.no_grad():
        apart = sum(float(token_nll(model, collate([row]))) for row in some)
        together = float(token_nll(model, collate([pack])))
    assert together == pytest.approx(apart, rel=1e-5)
