"""What the `unsloth` engine refuses, and that looking it up costs nothing. Its kernels need a GPU,
and an environment that this one is not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.errors import ConfigInvalid
from tests.train_loops.trl_cells import Cells
from train_loops.engines import unsloth
from train_loops.engines.base import find_engine


@pytest.fixture
def cells(model_root: Path, tmp_path: Path) -> Cells:
    return Cells(model_root / "tiny-llama", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_refuses(cells: Cells) -> None:
    plan = cells.plan("sft", "qlora", customization={"precision": "bf16"})
    with pytest.raises(ConfigInvalid, match="found no GPU") as refused:
        find_engine("unsloth").build(plan, cells.inputs(plan), rank=0, world_size=1)
    assert refused.value.param == "resources.gpus"


def test_it_must_come_before_transformers() -> None:
    import transformers  # noqa: F401

    with pytest.raises(ConfigInvalid, match=r"transformers.* came before unsloth"):
        unsloth._comes_first()


def test_finding_the_engine_imports_no_heavy_library() -> None:
    code = (
        "import sys; from train_loops.engines.base import find_engine; find_engine('unsloth');"
        "print([m for m in ('unsloth', 'transformers', 'trl', 'peft') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert ran.stdout.strip() == "[]"


def test_a_model_in_16_bits_is_no_qlora_base() -> None:
    with pytest.raises(ConfigInvalid, match="without a single 4-bit weight"):
        unsloth.assert_four_bits(torch.nn.Linear(2, 2))


def test_a_model_in_4_bits_is_one(cells: Cells) -> None:
    from train_loops.engines.causal_lm import load_base

    model, _ = load_base(cells.plan("sft", "qlora"), cells.model_folder)
    unsloth.assert_four_bits(model)
