"""Method of a request to PEFT: the quantised base, the adapter around it, the adapter's files.

Called by the engines that train with PEFT. Sources: PEFT's documentation; LoRA (arXiv:2106.09685),
QLoRA (arXiv:2305.14314), DoRA (arXiv:2402.09353), rsLoRA (arXiv:2312.03732), LoftQ
(arXiv:2310.08659), PiSSA (arXiv:2404.02948), IA3 (arXiv:2205.05638), prefix tuning
(arXiv:2101.00190), prompt tuning (arXiv:2104.08691), p-tuning (arXiv:2103.10385).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.adapter import LORA_METHODS, LOW_BIT_METHODS, LoraSpec, PromptSpec
from configs.errors import ConfigInvalid
from train_loops.plan import Plan

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]
HEADS_OF_REWARD_MODELS = ["score", "classifier"]
_ADAPTER = "default"


def weights_dtype(plan: Plan) -> "torch.dtype":
    """Frozen weights take the run's precision; weights that move stay in fp32 under autocast."""
    import torch

    custom = plan.spec.customization
    if custom.method == "full" or custom.precision == "fp32":
        return torch.float32
    return torch.bfloat16 if custom.precision == "bf16" else torch.float16


def quantization(plan: Plan) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` that give the base its few bits; {} for others.

    LoftQ adapts to the base as NF4 rounds it, so it loads the base as QLoRA does.
    """
    if plan.spec.customization.method not in LOW_BIT_METHODS:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    # A new head has nothing to be rounded: it is trained whole.
    whole = [*HEADS_OF_REWARD_MODELS, "lm_head"]
    if plan.spec.customization.quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=weights_dtype(plan),
            llm_int8_skip_modules=whole,
        )
    device = {"": torch.cuda.current_device()} if plan.device == "cuda" else "cpu"
    return {"quantization_config": config, "device_map": device}


def peft_config(plan: Plan) -> Any:
    """PEFT's description of the adapter; None when all weights move."""
    import peft

    custom = plan.spec.customization
    reward = custom.objective == "reward"
    common: dict[str, Any] = {"task_type": "SEQ_CLS" if reward else "CAUSAL_LM"}
    if custom.method in LORA_METHODS:
        return _lora_config(plan, common | ({"modules_to_save": ["score"]} if reward else {}))
    tokens = (custom.prompt or PromptSpec()).virtual_tokens
    if custom.method == "ia3":
        return peft.IA3Config(**common)
    if custom.method == "prompt_tuning":
        return peft.PromptTuningConfig(num_virtual_tokens=tokens, **common)
    if custom.method == "prefix_tuning":
        return peft.PrefixTuningConfig(num_virtual_tokens=tokens, **common)
    if custom.method == "p_tuning":
        return peft.PromptEncoderConfig(num_virtual_tokens=tokens, **common)
    return None


def _lora_config(plan: Plan, common: dict[str, Any]) -> Any:
    from peft import LoraConfig

    custom = plan.spec.customization
    lora = custom.lora or LoraSpec()
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        bias=lora.bias,
        use_dora=custom.method == "dora",
        use_rslora=custom.method == "rslora",
        init_lora_weights="pissa" if custom.method == "pissa" else True,
        **common,
    )


@dataclass(frozen=True, slots=True)
class Adapted:
    """A model ready to train, and where its adapter began if the base was changed to suit it."""

    model: Any
    start: State | None = None
    """PiSSA's first factors, by PEFT's names; the base has lost their product."""
    starts_at_zero: bool = True
    """Whether the base with the adapter switched off is the model that the run starts from."""


def adapted(plan: Plan, model: Any, folder: Path) -> Adapted:
    """`model`, loaded from `folder` with `quantization`, with the method's adapter around it.

    Draws the adapter's weights from torch's global generator: seed it first.

    Raises:
        ConfigInvalid: a target module is missing, or the settings do not fit the model.
    """
    config = peft_config(plan)
    if config is None:
        return Adapted(model)
    from peft import get_peft_model

    custom = plan.spec.customization
    if custom.method in LOW_BIT_METHODS:
        model = _prepared_for_low_bits(model, plan)
    try:
        model = get_peft_model(model, config)
    except ValueError as error:
        # PEFT names the target modules that it did not find.
        lora = custom.method in LORA_METHODS
        raise ConfigInvalid(
            str(error),
            param="customization.lora.target_modules" if lora else "customization.method",
            hint="Name layers of the model, or use 'all-linear'." if lora else None,
        ) from error
    _trainable_in_full_precision(model)
    if custom.method == "loftq":
        _take_up_rounding(model, folder, plan)
    # Only now: a second adapter made from the same settings would change the base once more.
    config.init_lora_weights = True
    return Adapted(
        model,
        start=_factors(model) if custom.method == "pissa" else None,
        starts_at_zero=custom.method not in ("pissa", "loftq"),
    )


def _prepared_for_low_bits(model: Any, plan: Plan) -> Any:
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=plan.spec.customization.gradient_checkpointing
    )


@contextmanager
def trainable_kept(model: Any) -> Iterator[None]:
    """Give the weights that move their values back: TRL rounds those of a low-bit model's adapter
    to 16 bits, where small steps are lost."""
    kept = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
    yield
    for weight, values in kept:
        weight.data = values


def _trainable_in_full_precision(model: Any) -> None:
    """Small steps are lost in 16 bits; autocast still computes in the run's precision."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def _take_up_rounding(model: Any, folder: Path, plan: Plan) -> None:
    """LoftQ with one iteration: each adapter starts as the best low-rank fit of W - Q(W).

    PEFT's own `replace_lora_weights_loftq` computes on a GPU only and leaves out the scaling.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=weights_dtype(plan),
        use_safetensors=True,
        trust_remote_code=plan.spec.base_model.trust_remote_code,
    )
    for name, module in model.get_base_model().named_modules():
        if not hasattr(module, "lora_A") or _ADAPTER not in module.lora_A:
            continue
        rounded = module.get_base_layer().weight
        kept = dequantize_4bit(rounded.data, rounded.quant_state).float()
        error = whole.get_submodule(name).weight.detach().to(kept.device).float() - kept
        left, sizes, right = torch.linalg.svd(error, full_matrices=False)
        rank, scaling = module.r[_ADAPTER], module.scaling[_ADAPTER]
        roots = (sizes[:rank] / scaling).sqrt()
        _put(module.lora_A[_ADAPTER].weight, roots[:, None] * right[:rank])
        _put(module.lora_B[_ADAPTER].weight, left[:, :rank] * roots)


def _put(weight: Any, values: "torch.Tensor") -> None:
    """Write `values` into the corner of `weight`: a matrix may have fewer values than the rank."""
    weight.data.zero_()
    weight.data[: values.shape[0], : values.shape[1]] = values


def _factors(model: Any) -> State:
    return {name: value.detach().cpu().clone() for name, value in adapter_state(model).items()}


def adapter_state(model: Any, state: State | None = None) -> State:
    """The adapter's tensors by the names of PEFT's files; from `state` of the whole model, where
    its weights are spread over ranks."""
    from peft import get_peft_model_state_dict

    found: State = get_peft_model_state_dict(
        model, state_dict=state, adapter_name=_ADAPTER, save_embedding_layers=False
    )
    return found


def write_adapter(
    adapted: Adapted, state: State, folder: Path, *, base_model_name: str, rank: int
) -> None:
    """Write an adapter that PEFT loads on the original base; rank 0 writes, others return.

    `state` is `adapter_state` at the end. PiSSA's becomes a LoRA of twice the rank, the start
    subtracted (PiSSA, section 3; PEFT calls it `path_initial_model_for_weight_conversion`).
    """
    if rank:
        return
    from safetensors.torch import save_file

    config = copy.deepcopy(adapted.model.peft_config[_ADAPTER])
    if adapted.start is not None:
        state = _difference(state, adapted.start)
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    config.inference_mode = True
    config.base_model_name_or_path = base_model_name
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _difference(end: State, start: State) -> State:
    """Factors whose product is end's minus start's: [B1 B0] · [A1; -A0]."""
    import torch

    def joined(name: str, value: "torch.Tensor") -> "torch.Tensor":
        other = start[name].to(value)
        if "lora_A" in name:
            return torch.cat([value, -other])
        return torch.cat([value, other], dim=1) if "lora_B" in name else value

    return {name: joined(name, value) for name, value in end.items()}
