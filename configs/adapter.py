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
Quantization = Literal["nf4", "int8"]
Sharding = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]

LORA_METHODS: frozenset[Method] = frozenset({"lora", "qlora", "dora", "rslora", "loftq", "pissa"})
LOW_BIT_METHODS: frozenset[Method] = frozenset({"qlora", "loftq"})
"""Those whose frozen weights are of 4 or 8 bits."""
PROMPT_METHODS: frozenset[Method] = frozenset({"prefix_tuning", "prompt_tuning", "p_tuning"})
PREFERENCE_OBJECTIVES: frozenset[Objective] = frozenset({"dpo", "orpo", "kto"})


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


class PromptSpec(Spec):
    """Learnt virtual tokens: prompt tuning (Lester et al. 2021, arXiv:2104.08691), prefix tuning
    (Li & Liang 2021, arXiv:2101.00190), p-tuning (Liu et al. 2021, arXiv:2103.10385)."""

    virtual_tokens: Annotated[int, Field(ge=1, le=1024)] = 20
    """Vectors put before the input (prefix tuning: before the keys and values of each layer)."""


class PreferenceSpec(Spec):
    """Settings of `dpo` (arXiv:2305.18290), `orpo` (arXiv:2403.07691), `kto` (arXiv:2402.01306)."""

    beta: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Weight of the preference term; for `dpo` and `kto`, how closely to stay at the base model."""


class GrpoSpec(Spec):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300)."""

    reward_functions: Annotated[
        list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]],
        Field(min_length=1, max_length=16),
    ]
    """Names of the service's own reward functions or of those that the operator installed; their
    rewards are added. Code never comes with a request."""

    generations: Annotated[int, Field(ge=2, le=64)] = 4
    """Answers sampled to each prompt; they are compared with each other."""

    max_completion_tokens: Annotated[int, Field(ge=1, le=32768)] = 256
    """Tokens of an answer at most."""

    temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    """Of the sampling."""

    beta: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight of the divergence from the base model; 0 leaves it out."""


class ShardingSpec(Spec):
    """How several workers share model, gradients and optimizer."""

    strategy: Sharding | None = None
    """The engine's own default when left out. `ddp`: each worker holds all. `fsdp2`: PyTorch's
    `fully_shard`. `zero1`, `zero2`, `zero3`: DeepSpeed, which shares the optimizer's state, also
    gradients, also weights."""

    offload: bool = False
    """Keep what is shared in main memory (ZeRO only)."""

    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """Workers that compute one layer together; divides the workers."""

    @model_validator(mode="after")
    def _adds_up(self) -> "ShardingSpec":
        if self.offload and not (self.strategy or "").startswith("zero"):
            raise ValueError("offload needs strategy 'zero1', 'zero2' or 'zero3'")
        return self


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

    prompt: PromptSpec | None = None
    """Settings of `prefix_tuning`, `prompt_tuning`, `p_tuning`."""

    quantization: Quantization | None = None
    """Number format of the frozen weights under `qlora`: `nf4` (when left out) or `int8`."""

    preference: PreferenceSpec | None = None
    """Settings of `dpo`, `orpo`, `kto`."""

    grpo: GrpoSpec | None = None
    """Settings of `grpo`, which needs them."""

    sharding: ShardingSpec | None = None
    """How several workers share the model; the engine's own default when left out."""

    @model_validator(mode="after")
    def _adds_up(self) -> "CustomizationSpec":
        given = {name for name in _MEANT_FOR if getattr(self, name) is not None}
        for name in sorted(given):
            field, accepted = _MEANT_FOR[name]
            if (value := getattr(self, field)) not in accepted:
                raise ValueError(
                    f"{name} settings have no meaning for {field} {value!r}: leave them out, or "
                    f"use one of {', '.join(sorted(accepted))}"
                )
        if self.objective == "grpo" and self.grpo is None:
            raise ValueError("objective 'grpo' needs grpo.reward_functions: what an answer earns")
        return self


_MEANT_FOR: dict[str, tuple[str, frozenset[str]]] = {
    "lora": ("method", frozenset(LORA_METHODS)),
    "prompt": ("method", frozenset(PROMPT_METHODS)),
    "quantization": ("method", frozenset({"qlora"})),
    "preference": ("objective", frozenset(PREFERENCE_OBJECTIVES)),
    "grpo": ("objective", frozenset({"grpo"})),
}
