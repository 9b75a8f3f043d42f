"""TRL's trainers with our order of rows, our count of tokens, and no work that nobody reads.

Called by the `trl` and `unsloth` engines. The classes are made on demand: TRL loads in seconds.
"""

from typing import Any

from configs.adapter import GrpoSpec
from train_loops.data.batches import EpochOrder, collate, tokens_in
from train_loops.data.mask import IGNORED
from train_loops.engines.peft_methods import Adapted
from train_loops.engines.trl_arguments import limit_steps
from train_loops.engines.trl_objectives import GroupOrder
from train_loops.plan import Plan
from train_loops.rewards import Reward

TOKEN_MASKS = (
    "attention_mask",
    "chosen_attention_mask",
    "rejected_attention_mask",
    "prompt_mask",
    "completion_mask",
)


def trainer(
    plan: Plan, args: Any, adapted: Adapted, rows: Any, tokenizer: Any, rewards: list[Reward]
) -> Any:
    """The trainer of the plan's objective, ready to train."""
    objective = plan.spec.customization.objective
    limit_steps(args, plan, len(rows))
    how: dict[str, Any] = {
        "model": adapted.model,
        "args": args,
        "train_dataset": rows,
        "processing_class": tokenizer,
    }
    if objective == "grpo":
        return _grpo(plan)(reward_funcs=[_for_trl(reward) for reward in rewards], **how)
    if objective in ("sft", "cpt"):
        return lean_sft()(data_collator=collate, **how)
    made = _pretokenised(objective)(**how)
    _compare_with_base(made, adapted)
    return made


def _compare_with_base(made: Any, adapted: Adapted) -> None:
    """Take away TRL's frozen copy of an adapter that starts at nothing: the base is the reference.

    PiSSA's and LoftQ's adapters start at something, so the copy stays.
    """
    adapters = getattr(made.model, "peft_config", {})
    if "ref" in adapters and adapted.starts_at_zero:
        made.model.delete_adapter("ref")


def _ordered(base: Any) -> Any:
    """`base` with our order of rows, a count of tokens, and checkpoints without a model card."""
    import torch
    from transformers import Trainer

    class Ordered(base):  # type: ignore[misc]
        tokens_seen: Any = 0
        _metrics_of_trl = True

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return EpochOrder(len(self.train_dataset), self.args.seed)

        def _prepare_inputs(self, inputs: Any) -> Any:
            prepared = super()._prepare_inputs(inputs)
            if self.model.training:
                self.tokens_seen = self.tokens_seen + _tokens(prepared)
            return prepared

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                seen = torch.as_tensor(self.tokens_seen, device=self.args.device)
                logs["tokens"] = int(self.accelerator.reduce(seen).item())
                self.tokens_seen = 0
            if self._metrics_of_trl:
                super().log(logs, *args, **kwargs)
            else:
                Trainer.log(self, logs)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            Trainer._save_checkpoint(self, model, trial)

    return Ordered


def _tokens(batch: Any) -> Any:
    masks = [batch[name] for name in TOKEN_MASKS if name in batch]
    return sum(mask.sum() for mask in masks) if masks else tokens_in(batch)


def lean_sft() -> Any:
    """SFTTrainer's loss without its entropy and accuracy, which cost three exchanges and three
    waits for the device in each forward pass."""
    import torch
    from trl import SFTTrainer
    from trl.trainer.utils import add_fused_lm_head

    class LeanSft(_ordered(SFTTrainer)):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # Again, over TRL's: this head computes the log-probabilities only.
            model = self.model
            self._metrics_of_trl = self.aux_loss_enabled
            # The fused head spares the memory of the logits by computing them twice. Without a GPU
            # it does so for every token, trainable or not: a quarter of a step of a small model.
            own = self.args.device.type == "cpu" and self.model_accepts_loss_kwargs
            self.fused = self.aux_loss_enabled or not own
            add_fused_lm_head(model.get_base_model() if hasattr(model, "peft_config") else model)

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            if self.aux_loss_enabled or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            summed, count = summed_loss(model, inputs, fused=self.fused)
            if num_items_in_batch is None:
                return summed / count.clamp(min=1)
            # The count is that of all ranks, and their gradients are averaged.
            ranks = self.accelerator.num_processes
            return summed * ranks / torch.as_tensor(num_items_in_batch).clamp(min=1)

    return LeanSft


def summed_loss(model: Any, batch: Any, *, fused: bool) -> tuple[Any, Any]:
    """(nats, number) of the trainable tokens of `batch`, by TRL's fused head or the model's own."""
    if fused:
        outputs = model(**batch, use_cache=False, fused_lm_head=True)
        return -outputs.log_probs.sum(), outputs.label_mask.sum()
    loss = model(**batch, use_cache=False, num_items_in_batch=1).loss
    return loss, (batch["labels"][:, 1:] != IGNORED).sum()


def _pretokenised(objective: str) -> Any:
    """The preference trainers, which take our token rows as they are."""
    from trl import DPOTrainer, KTOTrainer, RewardTrainer
    from trl.experimental.orpo import ORPOTrainer

    bases = {"dpo": DPOTrainer, "kto": KTOTrainer, "reward": RewardTrainer, "orpo": ORPOTrainer}

    class Pretokenised(_ordered(bases[objective])):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

        def tokenize_row(self, feature: Any, model: Any = None) -> Any:
            return feature

    return Pretokenised


def _grpo(plan: Plan) -> Any:
    from trl import GRPOTrainer

    grpo = plan.spec.customization.grpo
    assert isinstance(grpo, GrpoSpec)
    longest, generations = plan.tuning.max_sequence_length, grpo.generations

    class Grpo(_ordered(GRPOTrainer)):  # type: ignore[misc]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return GroupOrder(
                len(self.train_dataset),
                self.args.seed,
                prompts=plan.tuning.batch_size,
                generations=generations,
                parts=self.args.steps_per_generation,
            )

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            # Rendered texts: no special tokens again. What is too long loses its beginning.
            ids = self.processing_class(text=prompts, add_special_tokens=False)["input_ids"]
            return [each[-longest:] for each in ids], None, {}

    return Grpo


def _for_trl(reward: Reward) -> Any:
    """Our signature of a reward under TRL's: columns come as keywords, and so does much else."""

    def scored(
        prompts: list[str], completions: list[str], reference: list[str], **_: Any
    ) -> list[float]:
        return reward(prompts, completions, reference)

    scored.__name__ = getattr(reward, "__name__", "reward")
    return scored
