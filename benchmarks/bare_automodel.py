"""The same training as a job's by NeMo AutoModel's own recipe, data loader and loop.

Called by `bare.py`. Of the service it imports one thing: what lets the recipe run without a GPU.
"""

import tempfile
import time
from typing import Any


def train(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Each step's `at`, `loss` and tokens so far."""
    from nemo_automodel.components.config.loader import ConfigNode
    from nemo_automodel.recipes._typed_config import RecipeConfig
    from nemo_automodel.recipes.llm.train_ft import TrainFinetuneRecipeForNextTokenPrediction

    from train_loops.engines.automodel_cpu import without_gpu

    steps: list[dict[str, Any]] = []

    class Recorded(TrainFinetuneRecipeForNextTokenPrediction):  # type: ignore[misc]
        def log_train_metrics(self, log_data: Any) -> None:
            metrics = log_data.metrics
            seen = (steps[-1]["seen"] if steps else 0) + int(metrics["num_tokens_per_step"])
            steps.append({"at": time.time(), "loss": float(metrics["loss"]), "seen": seen})

    with tempfile.TemporaryDirectory() as folder, without_gpu():
        trained = Recorded(RecipeConfig(ConfigNode(_config(recipe, folder))))
        trained.setup()
        trained.run_train_validation_loop()
    return steps


def _config(recipe: dict[str, Any], folder: str) -> dict[str, Any]:
    arguments, lora = recipe["arguments"], recipe["lora"]
    micro = arguments["per_device_train_batch_size"]
    return {
        "recipe": "TrainFinetuneRecipeForNextTokenPrediction",
        "seed": arguments["seed"],
        "dist_env": {"backend": "gloo"},
        "model": {
            "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": recipe["model"],
            "torch_dtype": "float32",
            "attn_implementation": "sdpa",
            "force_hf": True,
            "use_liger_kernel": False,
        },
        "distributed": {
            "strategy": "fsdp2",
            "tp_size": 1,
            # Left out, the recipe computes in bf16, which a CPU does many times slower.
            "mp_policy": {
                "_target_": "torch.distributed.fsdp.MixedPrecisionPolicy",
                "param_dtype": "float32",
                "reduce_dtype": "float32",
                "cast_forward_inputs": False,
            },
        },
        "step_scheduler": {
            "global_batch_size": micro * arguments["gradient_accumulation_steps"],
            "local_batch_size": micro,
            "num_epochs": arguments["num_train_epochs"],
            "ckpt_every_steps": 10**6,
        },
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "lr": arguments["learning_rate"],
            "weight_decay": 0.0,
        },
        "checkpoint": {"enabled": False, "checkpoint_dir": folder},
        "dataset": {
            "_target_": "nemo_automodel.components.datasets.llm.chat_dataset.ChatDataset",
            "path_or_dataset_id": recipe["dataset"],
            "split": "train",
        },
        "dataloader": {
            "_target_": "torchdata.stateful_dataloader.StatefulDataLoader",
            "collate_fn": "nemo_automodel.components.datasets.utils.default_collater",
            "shuffle": True,
        },
        "loss_fn": {"_target_": "nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy"},
        "peft": {
            "_target_": "nemo_automodel.components._peft.lora.PeftConfig",
            # All linear layers of a Llama but the head.
            "target_modules": "*_proj",
            "dim": lora["r"],
            "alpha": lora["lora_alpha"],
            "lora_dtype": "float32",
            "use_triton": False,
        },
    }
