"""PyTorch's own tools: FSDP2, DTensor, distributed checkpoints. The loop is ours, on CPU or GPU.

Every decoder layer and the rest of the model are sharded over all ranks (`fully_shard`); frozen
weights too. Objectives `sft` and `cpt`: the rows say by their labels what is learnt. On a GPU each
decoder layer is compiled (`torch.compile`), on CPU nothing is. Each rank reads the whole base model
into main memory before it keeps its shard.
Sources: PyTorch documentation of `fully_shard`; Zhao et al. 2023 (arXiv:2304.11277); for defaults
and weight decay, transformers' Trainer.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_loops.engines import causal_lm, fsdp2_state
from train_loops.engines.base import Inputs, Metrics, Span
from train_loops.engines.fsdp2_model import agree_on_weights, reshard, shard, token_nll
from train_loops.engines.group import Group, join_group
from train_loops.engines.peft_methods import Adapted, adapted, adapter_state, write_adapter
from train_loops.engines.schedule import decayed_names, scheduler, total_steps
from train_loops.plan import Plan, require_supported

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from train_loops.data.batches import Batch

SEEDS = 2**32


class Fsdp2Engine:
    """Builds loops over a sharded model."""

    name = "fsdp2"
    uses_torch = True

    def build(self, plan: Plan, inputs: Inputs, *, rank: int, world_size: int) -> "Fsdp2Loop":
        require_supported(plan)
        with ExitStack() as unless_built:
            group = join_group(plan, rank, world_size)
            unless_built.callback(group.leave)
            loop = _loop(plan, inputs, group)
            unless_built.pop_all()
            return loop


def _loop(plan: Plan, inputs: Inputs, group: Group) -> "Fsdp2Loop":
    from transformers import set_seed

    from train_loops.data.prepare import load

    set_seed(plan.tuning.seed)
    model, tokenizer = causal_lm.load_base(plan, inputs.model_folder)
    pissa = plan.spec.customization.method == "pissa"
    if pissa:
        # Its singular value decompositions take hours on CPU.
        model.to(group.device)
    method = adapted(plan, model, inputs.model_folder)
    if pissa:
        agree_on_weights(method.model, group)
    shard(method.model, plan, group)
    # So that ranks drop other inputs of their adapters, and rank 0 those of a run alone.
    set_seed((plan.tuning.seed + group.rank) % SEEDS)
    rows, _ = load(inputs.data_folder)
    return Fsdp2Loop(plan, group, method, tokenizer, rows, inputs.data_folder)


class Fsdp2Loop:
    """A `TrainLoop` over a sharded model, which is the same on every rank but for its shards."""

    def __init__(
        self,
        plan: Plan,
        group: Group,
        method: Adapted,
        tokenizer: Any,
        rows: "Dataset",
        data_folder: Path,
    ) -> None:
        from train_loops.data.batches import StepBatches

        self._plan = plan
        self._group = group
        self._method = method
        self._model: Any = method.model
        self._tokenizer = tokenizer
        self._data_folder = data_folder
        self._batches = StepBatches(
            rows,
            micro_batch_size=plan.micro_batch_size,
            accumulation_steps=plan.accumulation_steps,
            seed=plan.tuning.seed,
            rank=group.rank,
            world_size=group.world_size,
        )
        self._total_steps = total_steps(plan, self._batches.steps_per_epoch)
        self._optimizer = optimizer(method.model, plan)
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

        from train_loops.data.batches import trainable_in, validation_batches
        from train_loops.data.prepare import load_validation

        rows = load_validation(self._data_folder)
        assert rows is not None
        self._model.eval()
        nll, trainable = 0.0, 0
        with no_grad():
            for batch in validation_batches(
                rows,
                self._plan.micro_batch_size,
                rank=self._group.rank,
                world_size=self._group.world_size,
            ):
                nll += float(token_nll(self._model, _moved(batch, self._group.device)))
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
            write_adapter(
                self._method,
                adapter_state(self._model, weights),
                folder,
                base_model_name=self._plan.spec.base_model.model_name,
                rank=self._group.rank,
            )
        self._tokenizer.save_pretrained(folder)

    def close(self) -> None:
        self._group.leave()

    def _train_step(self, epoch: float, batches: "list[Batch]") -> Metrics:
        from torch.nn.utils import clip_grad_norm_

        from train_loops.data.batches import tokens_in, trainable_in

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

    decayed = decayed_names(model)
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


def _moved(batch: "Batch", device: "torch.device") -> "Batch":
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}


ENGINE = Fsdp2Engine()
