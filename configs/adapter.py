"""What is trained: which weights move (`method`), towards what (`objective`), by which engine."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.base import Spec

Method = Literal[
    "lora", "qlora", "dora", "rslora", "loftq", "pissa", "ia3",
    "prefix_tuning", "prompt_tuning", "p_tuning", "full",
]  # fmt: skip
Objective = Literal["sft", "cpt", "dpo", "orpo", "kto", "reward", "grpo"]
Precision = Literal["fp32", "bf16", "fp16"]
EngineName = Literal["automodel", "fsdp2", "trl", "unsloth", "simulated"]

LORA_METHODS: frozenset[Method] = frozenset({"lora", "qlora", "dora", "rslora", "loftq", "pissa"})


class LoraSpec(Spec):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), as PEFT's `LoraConfig` names them."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """r: the inner dimension of the two small matrices."""

    alpha: Annotated[float, Field(gt=0, le=4096)] = 32
    """The update is scaled by alpha / rank (alpha / sqrt(rank) for `rslora`)."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping an input of the adapter during training."""

    target_modules: (
        Annotated[
            list[Annotated[str, Field(pattern=r"^[\w.]{1,128}$")]],
            Field(min_length=1, max_length=64),
        ]
        | Literal["all-linear"]
    ) = "all-linear"
    """Names of the layers that get an adapter, or `all-linear`: all linear ones but the head."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which bias vectors are trained beside the adapters."""


class CustomizationSpec(Spec):
    """How the base model is changed."""

    method: Method
    """Which weights move: `full` moves all, the others train an adapter beside frozen weights."""

    objective: Objective = "sft"
    """What is optimised: `sft` is next-token loss on the assistant's tokens."""

    precision: Precision = "bf16"
    """Number format of the computation. `fp16` needs a GPU."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    engine: Literal["auto"] | EngineName = "auto"
    """The stack that computes a step. Naming one means that one or a refusal."""

    lora: LoraSpec | None = None
    """Settings of the LoRA family; its defaults when left out."""

    @model_validator(mode="after")
    def _lora_fits_method(self) -> "CustomizationSpec":
        if self.lora is not None and self.method not in LORA_METHODS:
            accepted = ", ".join(sorted(LORA_METHODS))
            raise ValueError(
                f"lora settings have no meaning for method {self.method!r}: "
                f"leave them out, or use one of {accepted}"
            )
        return self
