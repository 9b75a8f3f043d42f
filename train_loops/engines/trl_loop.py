"""A run around a transformers Trainer, held at its hooks. Made by the `trl`, `unsloth` engines."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.errors import ConfigInvalid
from train_loops.engines.base import Inputs, Metrics, Span
from train_loops.engines.hooked import HookedRun
from train_loops.engines.peft_methods import Adapted, adapter_state, write_adapter
from train_loops.engines.trl_arguments import sharding
from train_loops.engines.trl_evaluation import mean_loss
from train_loops.plan import Plan


class TrlLoop:
    """A `TrainLoop` over a transformers Trainer."""

    def __init__(self, plan: Plan, trainer: Any, adapted: Adapted, inputs: Inputs) -> None:
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        self._plan = plan
        self._trainer = trainer
        self._adapted = adapted
        self._inputs = inputs
        self._resume_from: str | None = None
        self._run: HookedRun[Span | Metrics | Path] = HookedRun(self._train)
        self._hook = _hook(self._run)
        trainer.add_callback(self._hook)

    def load(self, folder: Path) -> None:
        self._resume_from = str(folder)

    def begin(self) -> Span:
        span = self._run.advance()
        assert isinstance(span, Span)
        self._assert_sharded()
        return span

    def steps(self) -> Iterator[Metrics]:
        while isinstance(metrics := self._run.advance(), Metrics):
            yield metrics

    def evaluate(self) -> float:
        from train_loops.data.prepare import load_validation

        rows = load_validation(self._inputs.data_folder)
        assert rows is not None
        return mean_loss(self._trainer, rows, self._plan.micro_batch_size)

    def save(self, folder: Path) -> None:
        self._hook.save_next = True
        written = self._run.advance()
        assert isinstance(written, Path)
        shutil.move(written, folder)

    def export(self, folder: Path) -> None:
        if self._plan.spec.customization.method == "full":
            self._export_model(folder)
            return
        write_adapter(
            self._adapted,
            adapter_state(self._adapted.model, self._gathered()),
            folder,
            base_model_name=self._plan.spec.base_model.model_name,
            rank=self._trainer.args.process_index,
        )
        if self._trainer.is_world_process_zero():
            self._trainer.processing_class.save_pretrained(str(folder))

    def close(self) -> None:
        # Not by the Trainer's own stop: that would go on to the end of its step, and then wait for
        # ranks that may be gone.
        self._run.end()

    def _train(self) -> None:
        self._trainer.train(resume_from_checkpoint=self._resume_from)

    def _export_model(self, folder: Path) -> None:
        self._trainer.save_model(str(folder))
        if self._trainer.is_world_process_zero():
            # A pickle, and it names this machine's paths.
            (folder / "training_args.bin").unlink(missing_ok=True)

    def _gathered(self) -> Any:
        """All weights on rank 0, where each rank holds a part only; else None."""
        if sharding(self._plan) not in ("fsdp2", "zero3"):
            return None
        return self._trainer.accelerator.get_state_dict(self._trainer.model_wrapped)

    def _assert_sharded(self) -> None:
        """accelerate falls back to plain data parallelism without a word."""
        strategy, wrapped = sharding(self._plan), self._trainer.model_wrapped
        kinds = {kind.__name__ for kind in type(wrapped).__mro__}
        wanted = {"fsdp2": "FSDPModule"}.get(strategy, "DeepSpeedEngine")
        if strategy != "ddp" and wanted not in kinds:
            raise ConfigInvalid(
                f"sharding {strategy!r} did not take hold on {self._plan.device}: the model is a "
                f"plain {type(wrapped).__name__}",
                param="customization.sharding.strategy",
                hint="Use 'ddp'.",
            )


def _hook(run: "HookedRun[Span | Metrics | Path]") -> Any:
    """A TrainerCallback that hands out the span, each logged step, and each written checkpoint."""
    from transformers import TrainerCallback

    class Hook(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.save_next = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.hand_out(Span(state.global_step, state.max_steps))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            run.hand_out(_metrics(state, logs))
            # Answered by the Trainer right after this hook, at the same step.
            control.should_save = self.save_next

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.save_next = False
            run.hand_out(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Hook()


def _metrics(state: Any, logs: dict[str, Any]) -> Metrics:
    return Metrics(
        step=state.global_step,
        epoch=float(state.epoch or 0.0),
        loss=float(logs["loss"]),
        learning_rate=float(logs["learning_rate"]),
        grad_norm=float(logs["grad_norm"]) if "grad_norm" in logs else None,
        tokens=int(logs["tokens"]),
    )
