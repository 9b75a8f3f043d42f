"""Which engine can honour what: the one table behind validation, `/capabilities` and the docs."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from configs.adapter import EngineName, Method, Objective, Precision
from configs.base import Spec
from configs.base_model import ModelProvider
from configs.errors import NotImplementedYet, Unsupported
from configs.names import Backend
from configs.request import ExportFormat, SinkType, TrainRequest


class EngineCapability(Spec):
    """What one engine can do."""

    engine: EngineName
    """Its name."""
    backends: list[Backend]
    """The APIs that use it."""
    available: bool
    """Whether this build has it; otherwise its API answers 501."""
    summary: str
    """What it is."""
    methods: list[Method]
    """Which weights it can move."""
    objectives: list[Objective]
    """What it can optimise."""
    cpu_precisions: list[Precision]
    """Number formats without a GPU."""
    gpu_precisions: list[Precision]
    """Number formats on a GPU."""
    providers: list[ModelProvider]
    """Where its base models may come from."""
    exports: list[ExportFormat]
    """What it can write."""
    sinks: list[SinkType]
    """Where its metrics may go."""
    validation: bool
    """Whether it evaluates on `split: validation` datasets."""
    multi_worker: bool
    """Whether it trains with several workers."""


class EngineChoice(NamedTuple):
    """The engine of a job and why."""

    engine: EngineName
    reason: str


_ALL: dict[str, Any] = {
    "methods": ["lora", "qlora", "dora", "rslora", "loftq", "pissa", "ia3",
                "prefix_tuning", "prompt_tuning", "p_tuning", "full"],
    "objectives": ["sft", "cpt", "dpo", "orpo", "kto", "reward", "grpo"],
}  # fmt: skip
_PLANNED: dict[str, Any] = {
    "available": False,
    "methods": [], "objectives": [], "cpu_precisions": [], "gpu_precisions": [],
    "providers": [], "exports": [], "sinks": [], "validation": False, "multi_worker": False,
}  # fmt: skip

ENGINES: dict[EngineName, EngineCapability] = {
    row.engine: row
    for row in (
        EngineCapability(
            engine="trl",
            backends=["hf-unsloth"],
            available=True,
            summary="Hugging Face transformers with PEFT and TRL",
            methods=["lora", "qlora", "dora", "rslora", "full"],
            objectives=["sft"],
            cpu_precisions=["fp32", "bf16"],
            gpu_precisions=["fp32", "bf16", "fp16"],
            providers=["huggingface", "s3", "local"],
            exports=["adapter"],
            sinks=["jsonl"],
            validation=False,
            multi_worker=True,
        ),
        EngineCapability(
            engine="unsloth",
            backends=["hf-unsloth"],
            summary="Unsloth's kernels, in an environment of their own, on a GPU",
            **_PLANNED,
        ),
        EngineCapability(
            engine="automodel", backends=["nemo"], summary="NVIDIA NeMo AutoModel", **_PLANNED
        ),
        EngineCapability(
            engine="fsdp2",
            backends=["meta"],
            summary="PyTorch FSDP2, Meta's native tooling",
            **_PLANNED,
        ),
        EngineCapability(
            engine="simulated",
            backends=["nemo", "meta", "hf-unsloth"],
            available=True,
            summary="No model: the same states, events, callbacks and artifacts, and it says so",
            **_ALL,
            cpu_precisions=["fp32", "bf16", "fp16"],
            gpu_precisions=["fp32", "bf16", "fp16"],
            providers=["huggingface", "nemo", "meta", "s3", "local"],
            exports=["adapter", "merged_16bit", "meta"],
            sinks=["jsonl"],
            validation=False,
            multi_worker=True,
        ),
    )
}
NATIVE: dict[Backend, EngineName] = {"nemo": "automodel", "meta": "fsdp2", "hf-unsloth": "trl"}


def choose_engine(
    request: TrainRequest, backend: Backend, forced: EngineName | None = None
) -> EngineChoice:
    """The engine that will run `request` on `backend`; the operator may force one for all.

    Raises:
        Unsupported: the request names an engine or a feature that this API cannot honour.
        NotImplementedYet: the API's engine is not in this build.
    """
    choice = _named(request, backend, forced)
    capability = ENGINES[choice.engine]
    if not capability.available:
        raise NotImplementedYet(
            f"the {backend!r} API's engine {choice.engine!r} is not in this build",
            param="customization.engine",
            hint=_available_hint(),
        )
    if refusals := list(refuse(request, capability)):
        first = refusals[0]
        details = [{"param": r.param, "message": r.message, "hint": r.hint} for r in refusals]
        raise Unsupported(first.message, first.param, first.hint, details)
    return choice


def _named(request: TrainRequest, backend: Backend, forced: EngineName | None) -> EngineChoice:
    named = request.customization.engine
    if forced is not None:
        return EngineChoice(forced, f"the operator runs every job on {forced!r}")
    if named == "auto":
        return EngineChoice(NATIVE[backend], f"the native engine of the {backend!r} API")
    if backend not in ENGINES[named].backends:
        raise Unsupported(
            f"the {backend!r} API does not run engine {named!r}",
            param="customization.engine",
            hint=f"Post to {_apis(ENGINES[named].backends)}, or use engine 'auto'.",
        )
    return EngineChoice(named, "named in the request")


def refuse(request: TrainRequest, capability: EngineCapability) -> Iterator[Unsupported]:
    """Each field of `request` that the engine cannot honour, with who can."""
    for param, wanted, field in _demands(request):
        accepted = getattr(capability, field)
        if wanted not in accepted:
            yield Unsupported(
                f"{param}: engine {capability.engine!r} cannot do {wanted!r}; "
                f"accepted: {', '.join(accepted)}",
                param=param,
                hint=_who_can(field, wanted),
            )
    if not capability.validation and any(d.split == "validation" for d in request.datasets):
        yield Unsupported(
            f"datasets: engine {capability.engine!r} does not evaluate; leave out the datasets "
            f"with split 'validation'",
            param="datasets",
        )


def _demands(request: TrainRequest) -> Iterator[tuple[str, str, str]]:
    """(request field, value asked for, capability column) of all that must be in the table."""
    custom = request.customization
    yield "customization.method", custom.method, "methods"
    yield "customization.objective", custom.objective, "objectives"
    column = "gpu_precisions" if request.resources.gpus else "cpu_precisions"
    yield "customization.precision", custom.precision, column
    yield "base_model.provider", request.base_model.provider, "providers"
    for export in request.artifacts.export or []:
        yield "artifacts.export", export, "exports"
    for index, sink in enumerate(request.logging):
        yield f"logging[{index}].type", sink.type, "sinks"


def _who_can(field: str, wanted: str) -> str:
    able = [
        row
        for row in ENGINES.values()
        if row.available and row.engine != "simulated" and wanted in getattr(row, field)
    ]
    if not able:
        return f"No API of this build can do {wanted!r} yet."
    return f"Post to {_apis(sorted({b for row in able for b in row.backends}))} for {wanted!r}."


def _available_hint() -> str:
    real = [r for r in ENGINES.values() if r.available and r.engine != "simulated"]
    apis = _apis(sorted({b for row in real for b in row.backends}))
    return f"Post to {apis}, or set customization.engine to 'simulated'."


def _apis(backends: list[Backend]) -> str:
    return ", ".join(f"/{backend}/train" for backend in backends)
