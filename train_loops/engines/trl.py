"""Hugging Face: transformers, PEFT and TRL's trainers, on CPU or GPU, alone or DeepSpeed-sharded.

The data arrive as token rows or rendered texts (`train_loops.data`), so TRL renders and masks
nothing. What is trained is in `trl_objectives`, which weights move in `peft_methods`, the numbers
in `trl_arguments`.
"""

from configs.errors import ConfigInvalid
from configs.settings import Settings
from train_loops.engines.base import Inputs
from train_loops.engines.causal_lm import load_base
from train_loops.engines.peft_methods import adapted, trainable_kept
from train_loops.engines.trl_arguments import arguments
from train_loops.engines.trl_loop import TrlLoop
from train_loops.engines.trl_objectives import rows
from train_loops.engines.trl_trainers import trainer
from train_loops.plan import Plan, require_supported
from train_loops.rewards import Reward, find


class TrlEngine:
    """Builds loops around TRL's trainers."""

    name = "trl"
    uses_torch = True

    def build(self, plan: Plan, inputs: Inputs, *, rank: int, world_size: int) -> TrlLoop:
        from transformers import set_seed

        from train_loops.data.prepare import load

        require_supported(plan)
        rewards = _rewards(plan)
        args = arguments(plan, inputs.scratch / "trainer", world_size=world_size)
        # Before new weights are drawn, which the Trainer's own seeding does not promise.
        set_seed(plan.tuning.seed)
        model, tokenizer = load_base(plan, inputs.model_folder)
        method = adapted(plan, model, inputs.model_folder)
        dataset, _ = load(inputs.data_folder)
        dataset = rows(plan, dataset, tokenizer, inputs.scratch / "rows")
        try:
            with trainable_kept(method.model):
                built = trainer(plan, args, method, dataset, tokenizer, rewards)
        except ValueError as error:
            # TRL names the argument.
            raise ConfigInvalid(str(error), param="customization") from error
        return TrlLoop(plan, built, method, inputs)


def _rewards(plan: Plan) -> list[Reward]:
    grpo = plan.spec.customization.grpo
    return find(grpo.reward_functions, Settings()) if grpo else []


ENGINE = TrlEngine()
