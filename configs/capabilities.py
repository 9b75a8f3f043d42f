"""Which engine can honour what: the one table behind validation, `/capabilities` and the docs."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from configs import combinations
from configs.adapter import (
    EngineName,
    Method,
    Objective,
    Precision,
    Quantization,
    Sharding,
)
from configs.base import Spec
from configs.base_model import ModelProvider
from configs.errors import Unsupported
from configs.names import Backend
from configs.request import ExportFormat, SinkType, TrainRequest


class EngineCapability(Spec):
    """What one engine can do."""

    engine: EngineName
    """Its name."""
    backends: list[Backend]
    """The APIs that use it."""
    summary: str
    """What it is."""
    environment: str | None = None
    """The Python environment that it needs beside the service's own; a machine may lack it."""
    cpu: bool = True
    """Whether it trains without a GPU."""
    trains: dict[Objective, list[Method]]
    """What it can optimise, and for each objective which weights it can move."""
    cpu_precisions: list[Precision]
    """Number formats without a GPU."""
    gpu_precisions: list[Precision]
    """Number formats on a GPU."""
    quantizations: list[Quantization]
    """Number formats of the frozen weights under `qlora`."""
    shardings: list[Sharding]
    """How several workers may share the model; the first is its default."""
    multi_worker: bool = True
    """Whether it trains with several workers."""
    tensor_parallel: bool = False
    """Whether several workers can compute one layer together."""
    providers: list[ModelProvider]
    """Where its base models may come from."""
    exports: list[ExportFormat]
    """What it can write."""
    sinks: list[SinkType]
    """Where its metrics may go."""
    packing: list[Objective]
    """For which objectives it puts several rows into one sequence."""
    validation: list[Objective]
    """For which objectives it evaluates on rows that it does not train on."""
    model_types: list[str] | None = None
    """Architectures (`model_type` of `config.json`) that it trains; any when null."""


class EngineChoice(NamedTuple):
    """The engine of a job and why."""

    engine: EngineName
    reason: str
    proxied_to: Backend | None = None
    """The API whose flow runs the job, when it is not the one that it was posted to."""


_LORA: list[Method] = ["lora", "qlora", "dora", "rslora", "loftq", "pissa"]
_PROMPT: list[Method] = ["prefix_tuning", "prompt_tuning", "p_tuning"]
_EVERY: list[Method] = [*_LORA, "ia3", *_PROMPT, "full"]
_TEXT: list[Objective] = ["sft", "cpt"]
_OBJECTIVES: list[Objective] = [*_TEXT, "dpo", "orpo", "kto", "reward", "grpo"]

ENGINES: dict[EngineName, EngineCapability] = {
    row.engine: row
    for row in (
        EngineCapability(
            engine="unsloth",
            backends=["hf-unsloth"],
            summary="Unsloth's kernels on one GPU, in an environment of their own",
            environment="unsloth",
            cpu=False,
            multi_worker=False,
            trains={objective: ["lora", "qlora", "rslora", "full"] for objective in _TEXT},
            cpu_precisions=[],
            gpu_precisions=["bf16", "fp16"],
            quantizations=["nf4"],
            shardings=["ddp"],
            providers=["huggingface", "meta", "s3", "local"],
            exports=["adapter", "merged_16bit"],
            sinks=["jsonl"],
            packing=_TEXT,
            validation=_TEXT,
        ),
        EngineCapability(
            engine="trl",
            backends=["hf-unsloth"],
            summary="Hugging Face transformers with PEFT and TRL",
            trains={
                "sft": _EVERY,
                "cpt": _EVERY,
                "dpo": [*_LORA, "ia3", "full"],
                "orpo": [*_LORA, "ia3", "full"],
                "kto": [*_LORA, "ia3", "full"],
                "reward": ["lora", "qlora", "dora", "rslora", "full"],
                "grpo": ["lora", "qlora", "dora", "rslora", "full"],
            },
            cpu_precisions=["fp32", "bf16"],
            gpu_precisions=["fp32", "bf16", "fp16"],
            quantizations=["nf4", "int8"],
            shardings=["ddp", "fsdp2", "zero1", "zero2", "zero3"],
            providers=["huggingface", "meta", "s3", "local"],
            exports=["adapter", "merged_16bit", "meta"],
            sinks=["jsonl"],
            packing=_TEXT,
            validation=_TEXT,
        ),
        EngineCapability(
            engine="automodel",
            backends=["nemo", "meta"],
            summary="NVIDIA NeMo AutoModel",
            trains={objective: ["lora", "qlora", "full"] for objective in _TEXT},
            cpu_precisions=["fp32", "bf16"],
            gpu_precisions=["fp32", "bf16"],
            quantizations=["nf4"],
            shardings=["fsdp2", "ddp"],
            tensor_parallel=True,
            providers=["huggingface", "meta", "s3", "local"],
            exports=["adapter", "merged_16bit", "meta"],
            sinks=["jsonl"],
            packing=_TEXT,
            validation=_TEXT,
        ),
        EngineCapability(
            engine="fsdp2",
            backends=["meta"],
            summary="PyTorch's own FSDP2, DTensor and distributed checkpoints, with PEFT adapters",
            trains={objective: ["lora", "dora", "rslora", "pissa", "full"] for objective in _TEXT},
            cpu_precisions=["fp32", "bf16"],
            gpu_precisions=["fp32", "bf16"],
            quantizations=[],
            shardings=["fsdp2"],
            providers=["huggingface", "meta", "s3", "local"],
            exports=["adapter", "merged_16bit", "meta"],
            sinks=["jsonl"],
            packing=_TEXT,
            validation=_TEXT,
            model_types=["llama"],
        ),
        EngineCapability(
            engine="simulated",
            backends=["nemo", "meta", "hf-unsloth"],
            summary="No model: the same states, events, callbacks and artifacts, and it says so",
            trains=dict.fromkeys(_OBJECTIVES, _EVERY),
            cpu_precisions=["fp32", "bf16", "fp16"],
            gpu_precisions=["fp32", "bf16", "fp16"],
            quantizations=["nf4", "int8"],
            shardings=["ddp", "fsdp2", "zero1", "zero2", "zero3"],
            tensor_parallel=True,
            providers=["huggingface", "nemo", "meta", "s3", "local"],
            exports=["adapter", "merged_16bit", "meta"],
            sinks=["jsonl"],
            packing=_OBJECTIVES,
            validation=_OBJECTIVES,
        ),
    )
}
CANDIDATES: dict[Backend, tuple[EngineName, ...]] = {
    "nemo": ("automodel",),
    "meta": ("fsdp2", "automodel"),
    "hf-unsloth": ("unsloth", "trl"),
}
"""The engines that `customization.engine: auto` tries, best first."""
HOME: dict[EngineName, Backend] = {
    "automodel": "nemo", "fsdp2": "meta", "trl": "hf-unsloth", "unsloth": "hf-unsloth",
}  # fmt: skip
"""The API that an engine belongs to; on another one, a job on it is proxied."""


def choose_engine(
    request: TrainRequest,
    backend: Backend,
    forced: EngineName | None = None,
    environments: Collection[str] = (),
) -> EngineChoice:
    """The engine that will run `request` on `backend`.

    `forced` is the operator's choice for all jobs; `environments` are the further Python
    environments that this service has.

    Raises:
        Unsupported: the request names an engine or a feature that this API cannot honour.
    """
    named = request.customization.engine
    if forced is not None:
        return _only(request, forced, f"the operator runs every job on {forced!r}", environments)
    if named != "auto":
        if backend not in ENGINES[named].backends:
            raise Unsupported(
                f"the {backend!r} API does not run engine {named!r}",
                param="customization.engine",
                hint=f"Post to {_apis(ENGINES[named].backends)}, or use engine 'auto'.",
            )
        choice = _only(request, named, "named in the request", environments)
        return choice._replace(proxied_to=_proxy(named, backend))
    return _first_able(request, backend, environments)


def fallback(
    request: TrainRequest, backend: Backend, engine: EngineName, model_type: str
) -> EngineChoice | None:
    """What runs the job when its model turns out to be none of the engine's; None: `engine` can.

    Raises:
        Unsupported: the request names that engine, or no other can honour it.
    """
    accepted = ENGINES[engine].model_types
    if accepted is None or model_type in accepted:
        return None
    why = f"{engine!r} trains {', '.join(accepted)} models, and this one is {model_type!r}"
    others = CANDIDATES[backend][CANDIDATES[backend].index(engine) + 1 :]
    able = [other for other in others if not any(refuse(request, ENGINES[other]))]
    if request.customization.engine != "auto" or not able:
        raise Unsupported(
            why,
            param="base_model.model_name",
            hint=f"Use engine 'auto', or post to {_apis(['nemo', 'hf-unsloth'])}.",
        )
    return EngineChoice(able[0], why, _proxy(able[0], backend))


def _first_able(
    request: TrainRequest, backend: Backend, environments: Collection[str]
) -> EngineChoice:
    """The best of the API's engines that can honour all of `request`; the reason names what kept
    the better ones back. Where none can, the refusals are those of the last, the most general."""
    kept_back: list[str] = []
    refusals: list[Unsupported] = []
    for engine in CANDIDATES[backend]:
        refusals = list(refuse(request, ENGINES[engine], environments))
        if not refusals:
            reason = "; ".join(kept_back) or f"the native engine of the {backend!r} API"
            return EngineChoice(engine, reason, _proxy(engine, backend))
        kept_back.append(f"{engine!r} was passed over: {refusals[0].message}")
    raise _all_of(refusals)


def _only(
    request: TrainRequest, engine: EngineName, reason: str, environments: Collection[str]
) -> EngineChoice:
    if refusals := list(refuse(request, ENGINES[engine], environments)):
        raise _all_of(refusals)
    return EngineChoice(engine, reason)


def _all_of(refusals: list[Unsupported]) -> Unsupported:
    """One error for all of them; it speaks of the first."""
    first = refusals[0]
    details = [{"param": r.param, "message": r.message, "hint": r.hint} for r in refusals]
    return Unsupported(first.message, first.param, first.hint, details)


def _proxy(engine: EngineName, backend: Backend) -> Backend | None:
    home = HOME.get(engine, backend)
    return None if home == backend else home


def refuse(
    request: TrainRequest, row: EngineCapability, environments: Collection[str] = ()
) -> Iterator[Unsupported]:
    """Each field of `request` that the engine cannot honour, with who can."""
    if not row.cpu and not request.resources.gpus:
        yield Unsupported(
            f"resources.gpus: engine {row.engine!r} needs a GPU",
            param="resources.gpus",
            hint="Ask for a GPU, or use engine 'auto'.",
        )
    if row.environment is not None and row.environment not in environments:
        yield Unsupported(
            f"customization.engine: the environment {row.environment!r} of engine {row.engine!r} "
            f"is not installed here",
            param="customization.engine",
            hint="Use engine 'auto'; the operator can install it and set TRAINER_ENVS_ROOT.",
        )
    for param, wanted, accepted, column in _demands(request, row):
        if wanted not in accepted:
            yield Unsupported(
                f"{param}: engine {row.engine!r} cannot do {wanted!r}{_within(param, request)}; "
                f"accepted: {', '.join(accepted) or 'none'}",
                param=param,
                hint=_who_can(request, column, wanted),
            )
    yield from _refuse_workers(request, row)
    yield from combinations.refused(request, row.engine)


def _demands(
    request: TrainRequest, row: EngineCapability
) -> Iterator[tuple[str, str, Collection[str], str]]:
    """(request field, value asked for, what the engine accepts, table column) of each demand."""
    custom = request.customization
    yield "customization.objective", custom.objective, row.trains, "trains"
    if custom.objective in row.trains:
        yield "customization.method", custom.method, row.trains[custom.objective], "methods"
    column = "gpu_precisions" if request.resources.gpus else "cpu_precisions"
    yield "customization.precision", custom.precision, getattr(row, column), column
    if custom.method == "qlora":
        wanted = custom.quantization or "nf4"
        yield "customization.quantization", wanted, row.quantizations, "quantizations"
    if custom.sharding is not None and custom.sharding.strategy is not None:
        strategy = custom.sharding.strategy
        yield "customization.sharding.strategy", strategy, row.shardings, "shardings"
    if request.tuning_parameters.packing:
        yield "tuning_parameters.packing", custom.objective, row.packing, "packing"
    if any(dataset.split == "validation" for dataset in request.datasets):
        yield "datasets", custom.objective, row.validation, "validation"
    if request.tuning_parameters.validation_share:
        param = "tuning_parameters.validation_share"
        yield param, custom.objective, row.validation, "validation"
    yield "base_model.provider", request.base_model.provider, row.providers, "providers"
    for export in request.artifacts.export or []:
        yield "artifacts.export", export, row.exports, "exports"
    for index, sink in enumerate(request.logging):
        yield f"logging[{index}].type", sink.type, row.sinks, "sinks"


def _refuse_workers(request: TrainRequest, row: EngineCapability) -> Iterator[Unsupported]:
    sharding = request.customization.sharding
    if sharding is not None and sharding.tensor_parallel > 1 and not row.tensor_parallel:
        yield Unsupported(
            f"customization.sharding.tensor_parallel: engine {row.engine!r} computes each layer "
            f"on one worker",
            param="customization.sharding.tensor_parallel",
            hint=_who_can(request, "tensor_parallel", "tensor_parallel"),
        )
    if not row.multi_worker and request.resources.worker_count > 1:
        yield Unsupported(
            f"resources.gpus: engine {row.engine!r} trains on one GPU",
            param="resources.gpus",
            hint="Ask for one GPU, or use engine 'auto'.",
        )


def _within(param: str, request: TrainRequest) -> str:
    return f" for {request.customization.objective!r}" if param == "customization.method" else ""


def _who_can(request: TrainRequest, column: str, wanted: str) -> str:
    custom = request.customization
    if column in ("trains", "methods"):
        wanted = f"{custom.objective} with {custom.method}"
    able = [
        row for row in ENGINES.values() if row.engine != "simulated" and _can(request, row, column)
    ]
    if not able:
        return f"No API can do {wanted!r}."
    return f"Post to {_apis(sorted({b for row in able for b in row.backends}))} for {wanted!r}."


def _can(request: TrainRequest, row: EngineCapability, column: str) -> bool:
    """Whether the engine has what this column lacks, for what the request trains."""
    custom = request.customization
    if custom.method not in row.trains.get(custom.objective, []):
        return False
    if column == "tensor_parallel":
        return row.tensor_parallel
    demands = _demands(request, row)
    return all(wanted in accepted for _, wanted, accepted, name in demands if name == column)


def _apis(backends: list[Any]) -> str:
    return ", ".join(f"/{backend}/train" for backend in backends)
