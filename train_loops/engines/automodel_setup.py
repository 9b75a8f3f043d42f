"""The recipe of a run on NeMo AutoModel, built and made ready for the first step.

Called by `automodel.py`. Source: nemo-automodel 0.7.0, `recipes/llm/train_ft.py`.
"""

from importlib import import_module
from typing import Any

from configs.adapter import LoraSpec
from configs.errors import ConfigInvalid, ModelAccess
from train_loops.engines.automodel_cpu import replaced, without_gpu
from train_loops.engines.automodel_model import draw_adapters, spare_norms, under_autocast
from train_loops.plan import Plan


def recipe_of(config: dict[str, Any], plan: Plan) -> Any:
    """The recipe, set up.

    Raises:
        ModelAccess: the model cannot be read.
        ConfigInvalid: an adapter fits nowhere in it.
    """
    loader: Any = import_module("nemo_automodel.components.config.loader")
    typed_config: Any = import_module("nemo_automodel.recipes._typed_config")
    train_ft: Any = import_module("nemo_automodel.recipes.llm.train_ft")
    typed = typed_config.RecipeConfig(loader.ConfigNode(config))
    # In the place where the recipe keeps what its `dataset` section builds.
    typed.dataloader = NoRows()
    recipe = train_ft.TrainFinetuneRecipeForNextTokenPrediction(typed)
    # They would write this machine's paths into the run's log.
    recipe._log_experiment_details = recipe._log_library_versions = lambda: None
    try:
        # `setup_logging` would reshape the process's log, which is the worker's.
        with without_gpu(), replaced(train_ft, "setup_logging", lambda: None):
            recipe.setup()
    except (OSError, ValueError, KeyError) as error:
        raise _explained(error, plan) from error
    prepare_model(recipe, plan)
    return recipe


def prepare_model(recipe: Any, plan: Plan) -> None:
    """What the recipe has no setting for: adapter weights by the seed, decay, autocast, packing."""
    model = recipe.model_parts[0]
    custom = plan.spec.customization
    # With a cache, transformers would not look for packed rows, and let them attend to each other.
    getattr(model, "module", model).config.use_cache = False
    if custom.method == "full":
        spare_norms(recipe.optimizer[0], model)
    else:
        draw_adapters(model, plan)
    if custom.precision == "bf16":
        under_autocast(model, plan.device)


def _explained(error: Exception, plan: Plan) -> ModelAccess | ConfigInvalid:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "no trainable parameters" in first:
        lora = plan.spec.customization.lora or LoraSpec()
        return ConfigInvalid(
            f"customization.lora.target_modules: NeMo AutoModel finds no linear layer in the model "
            f"that fits {lora.target_modules!r}",
            param="customization.lora.target_modules",
            hint="Name layers as in the model's own module tree; or use engine 'trl'.",
        )
    return ModelAccess(
        f"the base model could not be loaded: {first}",
        param="base_model",
        hint="Weights must be safetensors of a causal language model that transformers knows.",
    )


class NoRows:
    """A loader section for the recipe that builds none: steps get their batches from outside."""

    dataset_builds_on_all_ranks = True
    seed = 0

    def build(self, **_: Any) -> "NoRows":
        return self
