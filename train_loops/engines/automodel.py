"""NVIDIA NeMo AutoModel: its fine-tuning recipe, set up in this process and run a step at a time.

The recipe places and shards the model, computes, clips and steps. Rows, order and micro-batches are
`train_loops.data`'s and the learning rate is transformers', so that its losses are those of the
other engines. Source: nemo-automodel 0.7.0, `TrainFinetuneRecipeForNextTokenPrediction`.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_loops.data.mask import IGNORED
from train_loops.engines.automodel_cpu import without_gpu
from train_loops.engines.automodel_export import export_adapter, export_model
from train_loops.engines.automodel_recipe import recipe_config
from train_loops.engines.automodel_setup import recipe_of
from train_loops.engines.automodel_state import restore, store
from train_loops.engines.base import Inputs, Metrics, Span
from train_loops.engines.group import Group, join_group
from train_loops.engines.schedule import scheduler, total_steps
from train_loops.plan import Plan

if TYPE_CHECKING:
    import torch

    from train_loops.data.batches import Batch, StepBatches


class AutomodelEngine:
    """Builds loops around the recipe."""

    name = "automodel"
    uses_torch = True

    def build(self, plan: Plan, inputs: Inputs, *, rank: int, world_size: int) -> "AutomodelLoop":
        from train_loops.data.template import load_tokenizer

        config = recipe_config(plan, inputs.model_folder, inputs.scratch / "automodel")
        remote_code = plan.spec.base_model.trust_remote_code
        load_tokenizer(inputs.model_folder, trust_remote_code=remote_code)
        with ExitStack() as unless_built:
            group = join_group(plan, rank, world_size)
            unless_built.callback(group.leave)
            loop = AutomodelLoop(plan, inputs, recipe_of(config, plan), group)
            unless_built.pop_all()
            return loop


class AutomodelLoop:
    """A `TrainLoop` that takes the recipe's optimizer steps one by one."""

    def __init__(self, plan: Plan, inputs: Inputs, recipe: Any, group: Group) -> None:
        self._plan = plan
        self._inputs = inputs
        self._recipe: Any = recipe
        self._rank = group.rank
        self._group = group
        self._step = 0
        self._resume_from: Path | None = None
        self._batches = self._step_batches()
        self._total_steps = total_steps(plan, self._batches.steps_per_epoch)
        self._rate = rate_of_step(plan, self._total_steps)

    def load(self, folder: Path) -> None:
        self._resume_from = folder

    def begin(self) -> Span:
        if self._resume_from is not None:
            self._step = restore(self._recipe, self._resume_from)
        self._model.train()
        # As the recipe's own loop does: its steps measure their time.
        self._recipe.timestamp = time.perf_counter()
        return Span(self._step, self._total_steps)

    def steps(self) -> Iterator[Metrics]:
        from train_loops.data.batches import tokens_in

        for epoch, batches in self._batches.after(self._step, self._total_steps):
            rate = self._plan.tuning.learning_rate * self._rate(self._step)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            with without_gpu():
                done = self._recipe._run_train_optim_step(
                    [for_recipe(batch) for batch in batches], self._plan.tuning.max_grad_norm
                )
            self._step += 1
            yield Metrics(
                step=self._step,
                epoch=epoch,
                loss=float(done.metrics["loss"]),
                learning_rate=rate,
                grad_norm=float(done.metrics["grad_norm"]),
                tokens=int(self._sum(sum(tokens_in(batch) for batch in batches))),
            )

    def evaluate(self) -> float:
        import torch

        losses: list[torch.Tensor] = []
        tokens = 0
        self._model.eval()
        with torch.no_grad(), without_gpu():
            for batch in self._validation_batches():
                tokens += int((batch["labels"] != IGNORED).sum())
                self._recipe._forward_backward_step(
                    0,
                    batch,
                    loss_buffer=losses,
                    num_label_tokens=None,
                    num_batches=1,
                    is_train=False,
                )
        self._model.train()
        total = self._sum(sum(float(loss) for loss in losses))
        return total / max(self._sum(tokens), 1.0)

    def save(self, folder: Path) -> None:
        store(self._recipe, folder, self._step)

    def export(self, folder: Path) -> None:
        if self._plan.spec.customization.method == "full":
            export_model(self._model, self._plan, self._inputs.model_folder, folder, self._rank)
        else:
            export_adapter(self._model, self._plan, self._inputs.model_folder, folder, self._rank)

    def close(self) -> None:
        if self._recipe is None:
            return
        self._recipe.metric_logger_train.close()
        self._recipe = None
        self._group.leave()

    @property
    def _model(self) -> Any:
        return self._recipe.model_parts[0]

    @property
    def _optimizer(self) -> "torch.optim.Optimizer":
        optimizer: torch.optim.Optimizer = self._recipe.optimizer[0]
        return optimizer

    def _step_batches(self) -> "StepBatches":
        from train_loops.data.batches import StepBatches
        from train_loops.data.prepare import load

        rows, _ = load(self._inputs.data_folder)
        return StepBatches(
            rows,
            micro_batch_size=self._plan.micro_batch_size,
            accumulation_steps=self._plan.accumulation_steps,
            seed=self._plan.tuning.seed,
            rank=self._recipe._get_dp_rank(),
            world_size=self._recipe._get_dp_group_size(),
        )

    def _validation_batches(self) -> "Iterator[Batch]":
        """This rank's validation rows."""
        from train_loops.data.batches import validation_batches
        from train_loops.data.prepare import load_validation

        rows = load_validation(self._inputs.data_folder)
        assert rows is not None
        batches = validation_batches(
            rows,
            self._plan.micro_batch_size,
            rank=self._recipe._get_dp_rank(),
            world_size=self._recipe._get_dp_group_size(),
        )
        return map(for_recipe, batches)

    def _sum(self, value: float) -> float:
        """Over all data-parallel ranks."""
        import torch

        return float(self._recipe._dp_allreduce(torch.tensor(value, dtype=torch.float64)))


def rate_of_step(plan: Plan, steps: int) -> Any:
    """Share of the peak learning rate at a step (from 0): transformers' schedules.

    A function of the step, so that a resumed run needs no state of it.
    """
    import torch

    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule: Any = scheduler(unused, plan, steps)
    return schedule.lr_lambdas[0]


def for_recipe(batch: "Batch") -> "Batch":
    """The batch with each token's label being the next token, as the recipe's loss takes it.

    Transformers shifts labels in the model's own loss; the recipe computes the loss outside. The
    first token of a packed row has no one before it that could foretell it.
    """
    import torch

    labels = batch["labels"]
    if "position_ids" in batch:
        labels = labels.masked_fill(batch["position_ids"] == 0, IGNORED)
    ends = torch.full_like(labels[:, :1], IGNORED)
    return {**batch, "labels": torch.cat([labels[:, 1:], ends], dim=1)}


ENGINE = AutomodelEngine()
