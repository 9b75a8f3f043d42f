"""Merged models and Meta's layout of real small runs: they answer as base and adapter do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import ConfigInvalid
from configs.settings import Settings
from tests.train_loops.plans import OrderingReporter
from tests.train_loops.plans import plan as resolved
from train_loops import exports
from train_loops.meta_layout import from_hugging_face, to_hugging_face
from train_loops.plan import Plan
from train_loops.run import run

TUNING = {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-2}
ROUNDING = 0.1
"""Far above what bf16 loses on logits of this size, far below what a wrong merge changes."""


@pytest.fixture(scope="module")
def settings(
    file_root: Path, model_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    home = tmp_path_factory.mktemp("home")
    return Settings(_env_file=None, home=home, file_root=file_root, model_root=model_root)


def trained(settings: Settings, job_id: str, export: list[str], **changes: Any) -> Path:
    """Results folder of a finished run."""
    plan = resolved(
        f"file://{settings.file_root}",
        job_id=job_id,
        engine=changes.pop("engine", "fsdp2"),
        artifacts={"export": export},
        tuning_parameters=TUNING,
        **changes,
    )
    run(plan, settings, OrderingReporter())
    return Path(plan.results_uri.removeprefix("file://"))


@pytest.fixture(scope="module")
def lora(settings: Settings) -> Path:
    return trained(settings, "merged-lora", ["adapter", "merged_16bit", "meta"])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.arange(5, 25)[None]).logits
    return found


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_the_merged_model_answers_as_base_and_adapter_do(lora: Path, model_root: Path) -> None:
    from peft import PeftModel

    base = loaded(model_root / "tiny-llama")
    before = logits(base)
    tuned = logits(PeftModel.from_pretrained(base, str(lora / "adapter")))
    merged = logits(loaded(lora / "merged_16bit"))
    assert (merged - tuned).abs().max() < ROUNDING < (tuned - before).abs().max()


def test_the_report_tells_the_largest_difference(lora: Path) -> None:
    report = json.loads((lora / "merge.json").read_text())
    assert report["compared_rows"] == 4
    assert report["largest_logit_difference"] < 1e-4
    assert 0 < report["largest_logit_difference_rounded"] < ROUNDING
    assert report["merged_into"] == "the base's own weights"


def test_the_merged_model_is_in_16_bits_with_its_tokenizer(lora: Path) -> None:
    from transformers import AutoTokenizer

    config = json.loads((lora / "merged_16bit/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert AutoTokenizer.from_pretrained(lora / "merged_16bit").chat_template


def test_metas_layout_holds_the_same_weights(lora: Path, tmp_path: Path) -> None:
    assert {path.name for path in (lora / "meta").iterdir()} >= {
        "consolidated.00.pth", "params.json", "tokenizer.json"
    }  # fmt: skip
    to_hugging_face(lora / "meta", tmp_path / "back")
    assert torch.equal(logits(loaded(tmp_path / "back")), logits(loaded(lora / "merged_16bit")))


def test_a_merged_qlora_says_what_it_was_merged_into(settings: Settings) -> None:
    folder = trained(
        settings, "merged-qlora", ["merged_16bit"], engine="trl", customization={"method": "qlora"}
    )
    assert (
        "not the quantized copy" in json.loads((folder / "merge.json").read_text())["merged_into"]
    )
    assert not (folder / "meta").exists()


def test_a_full_run_is_cast_and_nothing_is_merged(settings: Settings) -> None:
    folder = trained(
        settings, "cast-full", ["merged_16bit", "meta"], customization={"method": "full"}
    )
    assert not (folder / "merge.json").exists()
    difference = logits(loaded(folder / "merged_16bit")) - logits(loaded(folder / "model"))
    assert difference.abs().max() < ROUNDING
    assert (folder / "meta/params.json").exists()


def test_a_model_in_metas_layout_trains(settings: Settings, model_root: Path) -> None:
    from_hugging_face(model_root / "tiny-llama", model_root / "in-metas-layout")
    try:
        model = {"model_name": "in-metas-layout"}
        folder = trained(settings, "from-meta", ["adapter"], base_model=model)
        assert (folder / "adapter/adapter_model.safetensors").exists()
    finally:
        shutil.rmtree(model_root / "in-metas-layout")


def test_a_simulated_run_leaves_folders_that_say_so(settings: Settings) -> None:
    folder = trained(settings, "not-real", ["merged_16bit"], engine="simulated")
    said = json.loads((folder / "merged_16bit/SIMULATED.json").read_text())
    assert said["simulated"] is True


def test_metas_layout_of_another_architecture_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    asked: Plan = resolved(artifacts={"export": ["meta"]})
    with pytest.raises(ConfigInvalid, match="qwen3"):
        exports.check(asked, tmp_path)
