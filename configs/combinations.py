"""Settings that an engine has, but not together; `capabilities.refuse` asks after its table."""

from collections.abc import Iterator

from configs.adapter import LOW_BIT_METHODS, PROMPT_METHODS, EngineName, LoraSpec, ShardingSpec
from configs.errors import Unsupported
from configs.request import TrainRequest

_SPLITS_WEIGHTS = ("fsdp2", "zero3")


def refused(request: TrainRequest, engine: EngineName) -> Iterator[Unsupported]:
    """Each pair of settings that `engine` cannot honour together."""
    if engine == "simulated":
        return
    yield from _sharding(request, engine)
    yield from _tensor_parallel(request)
    yield from _adapters(request, engine)
    yield from _exports(request)


def _sharding(request: TrainRequest, engine: EngineName) -> Iterator[Unsupported]:
    custom = request.customization
    strategy, param = _sharding_of(request).strategy, "customization.sharding.strategy"
    # A single worker of the recipe splits nothing, whatever the strategy is called.
    splits = strategy in _SPLITS_WEIGHTS and (engine == "trl" or request.resources.worker_count > 1)
    if splits and custom.method in LOW_BIT_METHODS:
        yield Unsupported(
            f"sharding {strategy!r} cannot split weights of 4 or 8 bits",
            param,
            "Use 'ddp' or leave the strategy out, or use method 'lora'.",
        )
    if engine == "trl" and strategy == "fsdp2" and not request.resources.gpus:
        yield Unsupported(
            "sharding 'fsdp2': accelerate shards on GPUs only, and this job has none",
            param,
            "Use 'ddp' or 'zero3', or post to /meta/train.",
        )


def _tensor_parallel(request: TrainRequest) -> Iterator[Unsupported]:
    custom, sharding = request.customization, _sharding_of(request)
    param = "customization.sharding.tensor_parallel"
    if sharding.tensor_parallel == 1:
        return
    if custom.method == "qlora" or sharding.strategy == "ddp":
        yield Unsupported(
            "tensor_parallel needs strategy 'fsdp2', and method 'lora' or 'full'",
            param,
            "Leave tensor_parallel out.",
        )
    if custom.method == "lora" and (custom.lora or LoraSpec()).dropout:
        # Each worker would drop other inputs of the same adapter.
        yield Unsupported(
            "tensor_parallel cannot be combined with the adapter's dropout",
            "customization.lora.dropout",
            "Use dropout 0, or leave tensor_parallel out.",
        )


def _adapters(request: TrainRequest, engine: EngineName) -> Iterator[Unsupported]:
    custom = request.customization
    if custom.method == "prefix_tuning" and custom.gradient_checkpointing:
        yield Unsupported(
            "gradient_checkpointing leaves out the keys and values that prefix_tuning learns",
            "customization.gradient_checkpointing",
            "Set it to false, or use prompt_tuning or p_tuning.",
        )
    if custom.method in PROMPT_METHODS and request.tuning_parameters.packing:
        yield Unsupported(
            f"packing with {custom.method!r}: only the first row of a pack would see the learnt "
            f"tokens",
            "tuning_parameters.packing",
            "Set packing to false.",
        )
    if engine == "automodel" and custom.lora is not None and custom.lora.bias != "none":
        yield Unsupported(
            f"lora.bias {custom.lora.bias!r}: NeMo AutoModel trains no biases",
            "customization.lora.bias",
            "Use 'none', or post to /hf-unsloth/train.",
        )


def _exports(request: TrainRequest) -> Iterator[Unsupported]:
    """Merging adds an adapter to the weights of a language model, so both must be there."""
    custom, param = request.customization, "artifacts.export"
    if not {"merged_16bit", "meta"}.intersection(request.artifacts.export or []):
        return
    if custom.method in PROMPT_METHODS:
        yield Unsupported(
            f"artifacts.export: what {custom.method!r} learns is no part of the model's weights "
            "and cannot be merged into them",
            param,
            "Leave artifacts.export out, or use method 'lora'.",
        )
    if custom.objective == "reward":
        yield Unsupported(
            "artifacts.export: a reward model scores text, it is no language model to merge into",
            param,
            "Leave artifacts.export out.",
        )


def _sharding_of(request: TrainRequest) -> ShardingSpec:
    return request.customization.sharding or ShardingSpec()
