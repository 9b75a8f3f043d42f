"""Steps, learning rate and weight decay of a run, as transformers' Trainer has them. Called by the
engines whose loop is not the Trainer's."""

import math
from typing import TYPE_CHECKING, Any

from train_loops.plan import Plan

if TYPE_CHECKING:
    import torch

_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def total_steps(plan: Plan, steps_per_epoch: int) -> int:
    """Steps until the run has had its epochs, or `max_steps`, whichever comes first."""
    epochs = plan.tuning.num_epochs * steps_per_epoch
    return min(plan.tuning.max_steps or epochs, epochs)


def scheduler(optimizer: "torch.optim.Optimizer", plan: Plan, steps: int) -> Any:
    """The learning rate's course over `steps`, by transformers."""
    from transformers import get_scheduler

    return get_scheduler(
        plan.tuning.lr_scheduler,
        optimizer,
        num_warmup_steps=math.ceil(plan.tuning.warmup_ratio * steps),
        num_training_steps=steps,
    )


def decayed_names(model: Any) -> set[str]:
    """Parameters that weight decay applies to: not biases and norms."""
    import torch
    from transformers.trainer_pt_utils import get_parameter_names

    return set(get_parameter_names(model, [torch.nn.LayerNorm], list(_NO_DECAY)))
