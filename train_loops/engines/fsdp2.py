"""PyTorch's own tools: FSDP2, DTensor, distributed checkpoints. The loop is ours, on CPU or GPU.

Every decoder layer and the rest of the model are sharded over all ranks (`fully_shard`); frozen
weights too. Objectives `sft` and `cpt`: the rows say by their labels what is learnt. On a GPU each
decoder layer is compiled (`torch.compile`), on CPU nothing is. Each rank reads the whole base model
into main memory before it keeps its shard.
Sources: PyTorch documentation of `fully_shard`; Zhao et al. 2023 (arXiv:2304.11277); for defaults
and weight decay, transformers' Trainer.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_loops.engines import causal_lm, fsdp2_state
from train_loops.engines.base import Inputs, Metrics, Span
from train_loops.engines.fsdp2_group import Group, join_group
from train_loops.engines.fsdp2_model import (
    agreed_adapter,
    reshard,
    shard,
    token_nll,
    trainable_in,
)
from train_loops.plan import Plan

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from train_loops.data.batches import Batch

NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Names of parameters that weight decay leaves alone, as transformers' Trainer has them."""
SEEDS = 2**32


class Fsdp2Engine:
    """Builds loops over a sharded model."""

    name = "fsdp2"
    uses_torch = True

    def build(self, plan: Plan, inputs: Inputs, *, rank: int, world_size: int) -> "Fsdp2Loop":
        group = join_group(plan, rank, world_size)
        try:
            return _loop(plan, inputs, group)
        except BaseException:
            group.leave()
            raise


def _loop(plan: Plan, inputs: Inputs, group: Group) -> "Fsdp2Loop":
    from transformers import set_seed

    from train_loops.data.prepare import load

    set_seed(plan.tuning.seed)
    model, tokenizer = causal_lm.load_base(plan, inputs.model_folder)
    pissa = plan.spec.customization.method == "pissa"
    if pissa:
        # Its singular value decompositions take hours on CPU.
        model.to(group.device)
    model = causal_lm.with_adapter(model, plan)
    initial = agreed_adapter(model, group) if pissa else None
    shard(model, plan, group)
    # So that ranks drop other inputs of their adapters, and rank 0 those of a run alone.
    set_seed((plan.tuning.seed + group.rank) % SEEDS)
    rows, _ = load(inputs.data_folder)
    return Fsdp2Loop(plan, group, model, tokenizer, rows, inputs.data_folder, initial)


class Fsdp2Loop:
    """A `TrainLoop` over a sharded model, which is the same on every rank but for its shards."""

    def __init__(
        self,
        plan: Plan,
        group: Group,
        model: Any,
        tokenizer: Any,
        rows: "Dataset",
        data_folder: Path,
        initial: "dict[str, torch.Tensor] | None",
    ) -> None:
        from train_loops.data.batches import StepBatches

        self._plan = plan
        self._group = group
        self._model = model
        self._tokenizer = tokenizer
        self._data_folder = data_folder
        self._initial = initial
        self._batches = StepBatches(
            rows,
            micro_batch_size=plan.micro_batch_size,
            accumulation_steps=plan.accumulation_steps,
            seed=plan.tuning.seed,
            rank=group.rank,
            world_size=group.world_size,
        )
        epochs = plan.tuning.num_epochs * self._batches.steps_per_epoch
        self._total_steps = min(plan.tuning.max_steps or epochs, epochs)
        self._optimizer = optimizer(model, plan)
        self._scheduler = scheduler(self._optimizer, plan, self._total_steps)
        self._step = 0
        self._checkpoint: Path | None = None

    def load(self, folder: Path) -> None:
        self._checkpoint = folder

    def begin(self) -> Span:
        if self._checkpoint is not None:
            self._step = fsdp2_state.load(
                self._checkpoint, self._model, self._optimizer, self._scheduler
            )
        return Span(self._step, self._total_steps)

    def steps(self) -> Iterator[Metrics]:
        for epoch, batches in self._batches.after(self._step, self._total_steps):
            yield self._train_step(epoch, batches)

    def evaluate(self) -> float:
        from torch import no_grad

        from train_loops.data.prepare import load_validation

        rows = load_validation(self._data_folder)
        assert rows is not None
        self._model.eval()
        nll, trainable = 0.0, 0
        with no_grad():
            for batch in _share(rows, self._plan.micro_batch_size, self._group):
                nll += float(token_nll(self._model, batch))
                trainable += trainable_in(batch)
        self._model.train()
        reshard(self._model)
        nll_sum, count = self._group.total([nll, trainable]).tolist()
        return float(nll_sum / max(count, 1))

    def save(self, folder: Path) -> None:
        fsdp2_state.save(folder, self._model, self._optimizer, self._scheduler, self._step)

    def export(self, folder: Path) -> None:
        weights = fsdp2_state.trained_weights(self._model)
        if self._group.rank != 0:
            return
        if self._plan.spec.customization.method == "full":
            causal_lm.write_model(folder, self._model, weights)
        else:
            name = self._plan.spec.base_model.model_name
            causal_lm.write_adapter(folder, self._model, weights, name, self._initial)
        self._tokenizer.save_pretrained(folder)

    def close(self) -> None:
        self._group.leave()

    def _train_step(self, epoch: float, batches: "list[Batch]") -> Metrics:
        from torch.nn.utils import clip_grad_norm_

        from train_loops.data.batches import tokens_in

        trainable = sum(trainable_in(batch) for batch in batches)
        tokens = sum(tokens_in(batch) for batch in batches)
        counts = self._group.total([trainable, tokens])
        nll = self._accumulate(batches, counts[0].clamp(min=1))
        parameters = [weight for weight in self._model.parameters() if weight.requires_grad]
        norm = clip_grad_norm_(parameters, self._plan.tuning.max_grad_norm)
        learning_rate = self._scheduler.get_last_lr()[0]
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        self._step += 1
        return Metrics(
            step=self._step,
            epoch=epoch,
            loss=float(self._group.total([nll])[0] / counts[0].clamp(min=1)),
            learning_rate=float(learning_rate),
            grad_norm=float(norm.full_tensor()),
            tokens=int(counts[1]),
        )

    def _accumulate(self, batches: "list[Batch]", trainable: "torch.Tensor") -> "torch.Tensor":
        """Gradients of the loss per trainable token of the whole step; this rank's summed NLL."""
        import torch

        # Unreduced gradients are whole: fine for an adapter, but as large as the model for `full`.
        always = self._plan.spec.customization.method == "full"
        # FSDP averages over the ranks; the loss is one sum over all of them.
        scale = self._group.world_size / trainable.float()
        total = torch.zeros((), device=self._group.device)
        for number, batch in enumerate(batches, start=1):
            self._model.set_requires_gradient_sync(always or number == len(batches))
            nll = token_nll(self._model, _moved(batch, self._group.device))
            (nll * scale).backward()
            total += nll.detach()
        return total


def optimizer(model: Any, plan: Plan) -> "torch.optim.Optimizer":
    """AdamW over the weights that move (betas 0.9 and 0.999, epsilon 1e-8), fused on a GPU."""
    import torch
    from transformers.trainer_pt_utils import get_parameter_names

    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], list(NO_DECAY)))
    moving = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for name, weight in moving if (name in decayed) == decays],
         "weight_decay": plan.tuning.weight_decay if decays else 0.0}
        for decays in (True, False)
    ]  # fmt: skip
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=plan.tuning.learning_rate,
        fused=plan.device == "cuda",
    )


def scheduler(optimizer: "torch.optim.Optimizer", plan: Plan, total_steps: int) -> Any:
    """The learning rate's course over `total_steps`, by transformers."""
    from transformers import get_scheduler

    return get_scheduler(
        plan.tuning.lr_scheduler,
        optimizer,
        num_warmup_steps=math.ceil(plan.tuning.warmup_ratio * total_steps),
        num_training_steps=total_steps,
    )


def _moved(batch: "Batch", device: "torch.device") -> "Batch":
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}


def _share(rows: "Dataset", size: int, group: Group) -> "Iterator[Batch]":
    """This rank's batches of `rows`, on the device: every rank has the same number, because each
    forward pass is a collective. Where rows run out, the first one comes with nothing to learn."""
    from train_loops.data.batches import collate
    from train_loops.data.mask import IGNORED

    for start in range(group.rank * size, _filled(len(rows), size, group), size * group.world_size):
        numbers = range(start, min(start + size, len(rows)))
        batch = collate([rows[number] for number in numbers or range(1)])
        if not numbers:
            batch["labels"].fill_(IGNORED)
        yield _moved(batch, group.device)


def _filled(rows: int, size: int, group: Group) -> int:
    """`rows` rounded up to a number that gives all ranks the same number of batches."""
    stride = size * group.world_size
    return -(-rows // stride) * stride


ENGINE = Fsdp2Engine()
