"""Hugging Face: transformers, PEFT adapters and TRL's SFTTrainer, on CPU or GPU.

The data arrive tokenised and labelled (`train_loops.data`), so TRL neither renders nor masks.
Sources: PEFT `LoraConfig`, TRL `SFTConfig`, transformers `TrainingArguments`, QLoRA (Dettmers et
al. 2023, arXiv:2305.14314), DoRA (Liu et al. 2024, arXiv:2402.09353).
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.adapter import LoraSpec
from configs.errors import ConfigInvalid, ModelAccess
from train_loops.engines.base import Inputs, Metrics, Span
from train_loops.engines.hooked import HookedRun
from train_loops.plan import Plan


class TrlEngine:
    """Builds loops around TRL's trainers."""

    name = "trl"
    uses_torch = True

    def build(self, plan: Plan, inputs: Inputs, *, rank: int, world_size: int) -> "TrlLoop":
        from transformers import set_seed
        from trl import SFTTrainer

        from train_loops.data.prepare import load

        # Before the adapter's weights are drawn, which the Trainer's own seeding does not promise.
        set_seed(plan.tuning.seed)
        model, tokenizer = load_model(plan, inputs.model_folder)
        dataset, _ = load(inputs.data_folder)
        try:
            trainer = SFTTrainer(
                model=model,
                args=sft_config(plan, inputs.scratch / "trainer"),
                train_dataset=dataset,
                processing_class=tokenizer,
                peft_config=peft_config(plan),
            )
        except ValueError as error:
            # PEFT names the target modules that it did not find, TRL the argument.
            raise ConfigInvalid(str(error), param="customization") from error
        return TrlLoop(trainer, plan.spec.base_model.model_name)


class TrlLoop:
    """A `TrainLoop` over a transformers Trainer, held at its hooks."""

    def __init__(self, trainer: Any, base_model_name: str) -> None:
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        self._trainer = trainer
        self._base_model_name = base_model_name
        self._resume_from: str | None = None
        self._run: HookedRun[Span | Metrics | Path] = HookedRun(self._train)
        self._hook = _hook(self._run)
        trainer.add_callback(self._hook)

    def load(self, folder: Path) -> None:
        self._resume_from = str(folder)

    def begin(self) -> Span:
        span = self._run.advance()
        assert isinstance(span, Span)
        return span

    def steps(self) -> Iterator[Metrics]:
        while isinstance(metrics := self._run.advance(), Metrics):
            yield metrics

    def save(self, folder: Path) -> None:
        self._hook.save_next = True
        written = self._run.advance()
        assert isinstance(written, Path)
        shutil.move(written, folder)

    def export(self, folder: Path) -> None:
        self._trainer.save_model(str(folder))
        if self._trainer.is_world_process_zero():
            _tidy(folder, self._base_model_name)

    def close(self) -> None:
        # Not by the Trainer's own stop: that would go on to the end of its step, and then wait for
        # ranks that may be gone.
        self._run.end()

    def _train(self) -> None:
        self._trainer.train(resume_from_checkpoint=self._resume_from)


def _hook(run: "HookedRun[Span | Metrics | Path]") -> Any:
    """A TrainerCallback that hands out the span, each logged step, and each written checkpoint."""
    from transformers import TrainerCallback

    class Hook(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.save_next = False
            self._tokens = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.hand_out(Span(state.global_step, state.max_steps))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            total = int(logs.get("num_tokens", 0))
            run.hand_out(_metrics(state, logs, total - self._tokens))
            self._tokens = total
            # Answered by the Trainer right after this hook, at the same step.
            control.should_save = self.save_next

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.save_next = False
            run.hand_out(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Hook()


def _metrics(state: Any, logs: dict[str, Any], tokens: int) -> Metrics:
    return Metrics(
        step=state.global_step,
        epoch=float(state.epoch or 0.0),
        loss=float(logs["loss"]),
        learning_rate=float(logs["learning_rate"]),
        grad_norm=float(logs["grad_norm"]) if "grad_norm" in logs else None,
        tokens=tokens,
    )


def _tidy(folder: Path, base_model_name: str) -> None:
    """Name the base as the user did, and drop what is of this machine only.

    Not before: PEFT asks the hub about any name that is no local folder. `training_args.bin` is a
    pickle, and the card repeats this machine's paths.
    """
    config = folder / "adapter_config.json"
    if config.exists():
        settings = json.loads(config.read_text())
        settings["base_model_name_or_path"] = base_model_name
        config.write_text(json.dumps(settings, indent=2) + "\n")
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)


def load_model(plan: Plan, folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of the run, on CPU or on this worker's GPU.

    Raises:
        ModelAccess: no safetensors, an unknown architecture, a broken file.
    """
    from transformers import AutoModelForCausalLM

    from train_loops.data.template import load_tokenizer

    remote_code = plan.spec.base_model.trust_remote_code
    try:
        tokenizer = load_tokenizer(folder, trust_remote_code=remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_weights_dtype(plan),
            use_safetensors=True,
            trust_remote_code=remote_code,
            **_quantization(plan),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelAccess(
            f"the base model could not be loaded: {str(error).splitlines()[0]}",
            param="base_model",
            hint="Weights must be safetensors of a causal language model that transformers knows.",
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if plan.spec.customization.method == "qlora":
        model = _prepared_for_low_bits(model, plan)
    return model, tokenizer


def _weights_dtype(plan: Plan) -> Any:
    """Frozen weights take the run's precision; weights that move stay in fp32 under autocast."""
    import torch

    custom = plan.spec.customization
    if custom.method == "full" or custom.precision == "fp32":
        return torch.float32
    return torch.bfloat16 if custom.precision == "bf16" else torch.float16


def _quantization(plan: Plan) -> dict[str, Any]:
    if plan.spec.customization.method != "qlora":
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_weights_dtype(plan),
    )
    device = {"": torch.cuda.current_device()} if plan.device == "cuda" else "cpu"
    return {"quantization_config": config, "device_map": device}


def _prepared_for_low_bits(model: Any, plan: Plan) -> Any:
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=plan.spec.customization.gradient_checkpointing
    )


def peft_config(plan: Plan) -> Any:
    """PEFT's description of the adapter; None when all weights move."""
    custom = plan.spec.customization
    if custom.method == "full":
        return None
    from peft import LoraConfig

    lora = custom.lora or LoraSpec()
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        bias=lora.bias,
        use_dora=custom.method == "dora",
        use_rslora=custom.method == "rslora",
        task_type="CAUSAL_LM",
    )


def sft_config(plan: Plan, output_dir: Path) -> Any:
    """TRL's arguments for the plan."""
    from trl import SFTConfig

    tuning, custom = plan.tuning, plan.spec.customization
    return SFTConfig(
        output_dir=str(output_dir),
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation_steps,
        num_train_epochs=tuning.num_epochs,
        max_steps=tuning.max_steps or -1,
        learning_rate=tuning.learning_rate,
        lr_scheduler_type=tuning.lr_scheduler,
        # transformers 5 takes a share of all steps as a float below 1 under this name.
        warmup_steps=tuning.warmup_ratio,
        weight_decay=tuning.weight_decay,
        max_grad_norm=tuning.max_grad_norm,
        # Rows come cut to length; when packing, this is the length of a pack. A pack's rows do not
        # attend to each other (block-diagonal by position ids), and are shuffled before packing.
        max_length=tuning.max_sequence_length if tuning.packing else None,
        packing=tuning.packing,
        shuffle_dataset=tuning.packing,
        dataset_kwargs=None if tuning.packing else {"skip_prepare_dataset": True},
        seed=tuning.seed,
        data_seed=tuning.seed,
        use_cpu=plan.device == "cpu",
        bf16=custom.precision == "bf16",
        fp16=custom.precision == "fp16",
        gradient_checkpointing=custom.gradient_checkpointing,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=plan.device == "cuda",
        ddp_find_unused_parameters=False,
    )


ENGINE = TrlEngine()
