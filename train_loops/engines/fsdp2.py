"""PyTorch's own tools: FSDP2, DTensor, distributed checkpoints. The loop is ours, on CPU or GPU.

Every decoder layer and the rest of the model are sharded over all ranks (`fully_shard`); frozen
weights too. Objectives `sft` and `cpt`: the rows say by their labels what is learnt. On a GPU each
decoder layer is compiled (`torch.compile`), on CPU nothing is. Each rank reads the whole base model
into main memory before it keeps its shard.
Sources: PyTorch documentation of `fully_shard`; Zhao et al. 2023 (arXiv:2304.11277); for defaults
and weight decay, transformers' Trainer.
"""

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_loops.engines import causal_lm, fsdp2_state
from train_loops.engines.base import Inputs, Metrics, Span
from train_loops.plan import Plan

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from train_loops.data.batches import Batch

NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Names of parameters that weight decay leaves alone, as transformers' Trainer has them."""

_GROUPS = itertools.count()
"""Numbers the groups that this process has made; every rank makes the same ones."""


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


@dataclass
class Group:
    """The ranks that train together, and this one's place and device."""

    rank: int
    world_size: int
    device: "torch.device"
    ours: bool
    """Whether we made the process group, and so have to end it."""

    def total(self, values: list[Any]) -> "torch.Tensor":
        """Sums over all ranks, float64 (n,), on the device."""
        import torch
        import torch.distributed as dist

        parts = [torch.as_tensor(value, dtype=torch.float64) for value in values]
        sums = torch.stack([part.to(self.device) for part in parts])
        dist.all_reduce(sums)
        return sums

    def leave(self) -> None:
        """End the group, if it is ours. Safe to call twice."""
        import torch.distributed as dist

        if self.ours and dist.is_initialized():
            dist.destroy_process_group()
        self.ours = False


def join_group(plan: Plan, rank: int, world_size: int) -> Group:
    """The process group that is there (Ray made it), or a new one: of the ranks that the
    environment names (`torchrun`), or of this process alone."""
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if plan.device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()
    if ours:
        backend = "nccl" if plan.device == "cuda" else "gloo"
        store = _meeting_place(rank, world_size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    return Group(rank, world_size, device, ours)


def _meeting_place(rank: int, world_size: int) -> Any:
    """Where the ranks of a new group find each other's addresses; alone, none is needed."""
    import torch.distributed as dist

    if world_size == 1:
        return dist.HashStore()
    store, _, _ = next(dist.rendezvous("env://", rank, world_size))
    # `torchrun` keeps one store for the life of the processes, and with it the addresses of groups
    # that have ended.
    return dist.PrefixStore(f"group-{next(_GROUPS)}", store)


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
    initial = _agreed_adapter(model, group) if pissa else None
    shard(model, plan, group)
    # So that ranks drop other inputs of their adapters, and rank 0 those of a run alone.
    set_seed(plan.tuning.seed + group.rank)
    rows, _ = load(inputs.data_folder)
    return Fsdp2Loop(plan, group, model, tokenizer, rows, inputs.data_folder, initial)


def _agreed_adapter(model: Any, group: Group) -> "dict[str, torch.Tensor]":
    """Give every rank rank 0's weights, and that adapter, on CPU: two machines may decompose one
    matrix differently, and shards of two decompositions do not fit together."""
    import torch.distributed as dist

    if group.world_size > 1:
        for weight in model.parameters():
            dist.broadcast(weight.data, src=0)
    drawn = causal_lm.adapter_weights(model)
    return {name: weight.detach().cpu().clone() for name, weight in drawn.items()}


def shard(model: Any, plan: Plan, group: Group) -> None:
    """Shard, place, and on a GPU compile the model, in place. Every rank calls it."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    custom = plan.spec.customization
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.config.use_cache = False
    if custom.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    policy = MixedPrecisionPolicy()
    if custom.precision == "bf16":
        # Gradients are summed in fp32: bf16 would round each rank's share away.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(plan.device, (group.world_size,), mesh_dim_names=("data",))
    for layer in _decoder_layers(base):
        if plan.device == "cuda":
            layer.compile()
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.train()


def _decoder_layers(base: Any) -> list[Any]:
    """The blocks that transformers itself never splits."""
    names = set(base._no_split_modules or ())
    return [module for module in base.modules() if type(module).__name__ in names]


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
        _reshard(self._model)
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


def token_nll(model: Any, batch: "Batch") -> "torch.Tensor":
    """Negative log-likelihood of the trainable tokens of a batch on the model's device, summed, in
    nats, fp32."""
    from torch.nn.functional import cross_entropy

    from train_loops.data.mask import IGNORED

    inputs = {name: values for name, values in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    # Only what is learnt becomes fp32: with large vocabularies, logits are most of the memory.
    learnt = labels != IGNORED
    return cross_entropy(logits[learnt].float(), labels[learnt], reduction="sum")


def trainable_in(batch: "Batch") -> int:
    """Tokens of a batch that the loss counts."""
    from train_loops.data.mask import IGNORED

    return int((batch["labels"][:, 1:] != IGNORED).sum())


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


def _reshard(model: Any) -> None:
    """Give the whole weights up that a forward pass without a backward one leaves in place."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


ENGINE = Fsdp2Engine()
