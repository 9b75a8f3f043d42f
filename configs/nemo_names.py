"""NVIDIA's names for the fields of a job, which the `/nemo` API takes beside our own.

`translated` gives a body in our words; `MAPPING`, `LAYERS` and `REFUSED` are the whole table, and
docs are made of them. Called before validation. Sources: NVIDIA NeMo Microservices 25.11 and 25.12,
`POST /v1/customization/jobs`: docs.nvidia.com/nemo/microservices/25.11.0/fine-tune/
manage-customization-jobs/hyperparameters.html and create-job.html; `LoraParameters`,
`DpoParameters` and `JobCreateParams` in the SDK reference.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from configs.errors import RequestInvalid

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Name:
    """One of NVIDIA's fields and what it is here."""

    nemo: str
    """Dotted path in NVIDIA's body."""
    ours: str | None
    """Dotted path in ours; None where the value is what always happens here."""
    values: tuple[tuple[object, object], ...] = ()
    """(NVIDIA's value, ours); empty where every value means the same. Ours is None where the field
    is left out."""


HYPER = "hyperparameters"
MAPPING: list[Name] = [
    Name("name", "job_id"),
    Name("config", "base_model.model_name"),
    Name("config.name", "base_model.model_name"),
    Name("dataset", "datasets"),
    Name("dataset.files_url", "datasets"),
    Name("description", "metadata.description"),
    Name("project", "metadata.project"),
    Name(
        f"{HYPER}.training_type",
        "customization.objective",
        (("sft", "sft"), ("dpo", "dpo"), ("grpo", "grpo")),
    ),
    Name(
        f"{HYPER}.finetuning_type",
        "customization.method",
        (("lora", "lora"), ("all_weights", "full")),
    ),
    Name(f"{HYPER}.epochs", "tuning_parameters.num_epochs"),
    Name(f"{HYPER}.batch_size", "tuning_parameters.batch_size"),
    Name(f"{HYPER}.learning_rate", "tuning_parameters.learning_rate"),
    Name(f"{HYPER}.weight_decay", "tuning_parameters.weight_decay"),
    Name(f"{HYPER}.seed", "tuning_parameters.seed"),
    Name(f"{HYPER}.max_steps", "tuning_parameters.max_steps"),
    Name(f"{HYPER}.sequence_packing_enabled", "tuning_parameters.packing"),
    Name(
        f"{HYPER}.optimizer",
        "tuning_parameters.lr_scheduler",
        (("adamw_with_cosine_annealing", "cosine"), ("adamw_with_flat_lr", "constant")),
    ),
    Name(f"{HYPER}.warmup_steps", "tuning_parameters.warmup_ratio", ((0, 0.0),)),
    Name(f"{HYPER}.min_learning_rate", None, ((0, None),)),
    Name(f"{HYPER}.adam_beta1", None, ((0.9, None),)),
    Name(f"{HYPER}.adam_beta2", None, ((0.999, None),)),
    Name(f"{HYPER}.log_every_n_steps", None, ((1, None),)),
    Name(f"{HYPER}.lora.adapter_dim", "customization.lora.rank"),
    Name(f"{HYPER}.lora.alpha", "customization.lora.alpha"),
    Name(f"{HYPER}.lora.adapter_dropout", "customization.lora.dropout"),
    Name(f"{HYPER}.lora.target_modules", "customization.lora.target_modules"),
    Name(f"{HYPER}.dpo.ref_policy_kl_penalty", "customization.preference.beta"),
    Name(f"{HYPER}.dpo.max_grad_norm", "tuning_parameters.max_grad_norm"),
]

LAYERS: dict[str, tuple[str, ...]] = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
"""Megatron's fused layers in `lora.target_modules`, and the layers of a Llama that they fuse."""

REFUSED: dict[str, str] = {
    "namespace": "Leave it out: job names are unique in the whole service.",
    "output_model": "Leave it out; artifacts.output_uri says where results go.",
    "ownership": "Leave it out: who may do what follows from the API key.",
    "integrations": "Name metric sinks in logging.",
    "wandb_api_key": "Leave it out: the operator holds the sinks' keys.",
    "dataset_parameters": "Leave it out; datasets[].column_mapping names the columns.",
    "dataset.name": "Name the file by its URI: dataset 's3://…', or datasets[].source.",
    "dataset.namespace": "Leave it out; datasets[].source names the file by its URI.",
    f"{HYPER}.val_check_interval": "Leave it out: a run evaluates where it writes a checkpoint.",
    f"{HYPER}.distillation": "There is no distillation here.",
    f"{HYPER}.sft": "Leave it out; customization.lora.dropout is the dropout that there is.",
    f"{HYPER}.grpo": "Use customization.grpo.",
}
"""Fields of NVIDIA's that have no meaning here, and what to do."""

_VALUE_HINTS = {
    f"{HYPER}.finetuning_type": "For 'lora_merged' use 'lora' and artifacts.export "
    "['adapter', 'merged_16bit'].",
    f"{HYPER}.warmup_steps": "Use tuning_parameters.warmup_ratio: the share of all steps.",
}
_SECTIONS = ("config", "dataset", HYPER, f"{HYPER}.lora", f"{HYPER}.dpo")
_PROVIDER = "huggingface"
_TOPS = frozenset(path.split(".")[0] for path in (*(name.nemo for name in MAPPING), *REFUSED))
"""The top-level names that are NVIDIA's."""


def translated(body: Body) -> Body:
    """`body` with NVIDIA's fields in our words; what is ours already stays. The argument is kept.

    A model that is named by `config` alone is one of the Hugging Face hub.

    Raises:
        RequestInvalid: a field has no meaning here, has a value that has none, or is given under
            both names.
    """
    given = list(_given(body))
    ours = {key: value for key, value in body.items() if key not in _TOPS}
    for path, value in given:
        name = _known(path)
        meant = _meant(name, value)
        if name.ours is not None and meant is not None:
            ours = _with(ours, name.ours.split("."), meant, name)
    model = ours.get("base_model")
    if isinstance(model, dict) and any(path.startswith("config") for path, _ in given):
        ours["base_model"] = {"provider": _PROVIDER, **model}
    return ours


def speaks_nemo(body: Body) -> bool:
    """Whether any of the body's fields is NVIDIA's."""
    return not _TOPS.isdisjoint(body)


def _given(body: Body) -> Iterator[tuple[str, Any]]:
    """(path, value) of each of NVIDIA's fields in `body`; null is left out, as if not given."""
    for top, value in body.items():
        if top in _TOPS:
            yield from _leaves(top, value)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if value is None:
        return
    if path in _SECTIONS and isinstance(value, dict):
        for key in value:
            yield from _leaves(f"{path}.{key}", value[key])
    else:
        yield path, value


def _known(path: str) -> Name:
    name = next((name for name in MAPPING if name.nemo == path), None)
    if name is not None:
        return name
    if path in REFUSED:
        raise _refused(path, "has no meaning here", REFUSED[path])
    inside = path.rpartition(".")[0]
    raise _refused(path, "unknown field", f"Accepted here: {', '.join(_inside(inside))}.")


def _inside(section: str) -> list[str]:
    """The names that are accepted in one of NVIDIA's objects."""
    prefix = f"{section}." if section else ""
    names = (name.nemo for name in MAPPING if name.nemo.startswith(prefix))
    return list(dict.fromkeys(name.removeprefix(prefix).split(".")[0] for name in names))


def _meant(name: Name, value: Any) -> Any:
    """The value in our words; None: nothing is to be said."""
    if name.values:
        for theirs, ours in name.values:
            if value == theirs and not isinstance(value, bool):
                return ours
        accepted = ", ".join(repr(theirs) for theirs, _ in name.values)
        raise _refused(name.nemo, f"accepted: {accepted}", _VALUE_HINTS.get(name.nemo))
    form = _FORMS.get(name.nemo)
    return value if form is None else form(value)


def _model(value: Any) -> str:
    if not isinstance(value, str):
        raise _refused("config", "must be a text: the name of a model")
    if "@" in value:
        # What stands behind it is NVIDIA's name for a set of GPUs.
        hint = "Leave '@…' out; resources says where the job runs."
        raise _refused("config", "a version has no meaning here", hint)
    return value


def _datasets(value: Any) -> list[Body]:
    if not isinstance(value, str):
        raise _refused("dataset", "must be a text: the URI of a file", REFUSED["dataset.name"])
    return [{"source": value}]


def _steps(value: Any) -> Any:
    """NVIDIA's -1, and 0, mean no limit."""
    return None if value in (-1, 0) and not isinstance(value, bool) else value


def _layers(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [layer for name in value for layer in _unfused(name)]


def _unfused(layer: Any) -> tuple[Any, ...]:
    return LAYERS.get(layer, (layer,)) if isinstance(layer, str) else (layer,)


_FORMS: dict[str, Callable[[Any], Any]] = {
    "config": _model,
    "config.name": _model,
    "dataset": _datasets,
    "dataset.files_url": _datasets,
    f"{HYPER}.max_steps": _steps,
    f"{HYPER}.lora.target_modules": _layers,
}


def _with(body: Body, path: list[str], value: Any, name: Name) -> Body:
    """`body` with `value` at `path`, where nothing may be yet."""
    key, rest = path[0], path[1:]
    if not rest:
        if key in body:
            raise _refused(
                name.nemo, f"given under both names, also as {name.ours}", "Leave one of them out."
            )
        return {**body, key: value}
    inner = body.get(key) or {}
    if not isinstance(inner, dict):
        # Left for validation, which says what the field must be.
        return body
    return {**body, key: _with(inner, rest, value, name)}


def _refused(path: str, why: str, hint: str | None = None) -> RequestInvalid:
    """Without the value: it may be a secret in the wrong place."""
    shown = path[:128]
    return RequestInvalid(f"{shown}: {why}", shown, hint)
