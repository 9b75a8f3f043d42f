"""The numbers of a training run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.base import Spec

LrScheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]


class TuningParameters(Spec):
    """Optimisation (AdamW, Loshchilov & Hutter 2019) and the shape of the data it sees."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate."""

    batch_size: Annotated[int, Field(ge=1, le=65536)] = 16
    """Global batch: rows per optimizer step over all workers. Micro-batch, accumulation follow."""

    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Rows per forward pass of one worker; chosen when left out (largest divisor up to 8)."""

    num_epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes over the data. `max_steps` ends the run earlier."""

    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps at most."""

    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps over which the learning rate rises from 0."""

    lr_scheduler: LrScheduler = "linear"
    """Course of the learning rate after warm-up. `constant` has no warm-up."""

    max_sequence_length: Annotated[int, Field(ge=8, le=1_048_576)] = 2048
    """Tokens of a row after the template; longer rows are cut at the end, and counted."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's decoupled weight decay."""

    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Gradients are scaled down to this norm."""

    packing: bool = False
    """Put several rows into one sequence; none attends to another."""

    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Seeded share of the training rows that is held back for validation. Not together with a
    dataset of split `validation`."""

    checkpoint_every_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Steps between checkpoints; a tenth of the run, but 25 at least, when left out."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    """Seed of adapter weights, data order and dropout."""

    @model_validator(mode="after")
    def _adds_up(self) -> "TuningParameters":
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of "
                f"micro_batch_size ({self.micro_batch_size})"
            )
        if self.lr_scheduler == "constant" and self.warmup_ratio:
            raise ValueError(
                "lr_scheduler 'constant' has no warm-up: set warmup_ratio to 0, "
                "or use 'constant_with_warmup'"
            )
        return self
