"""Objective to TRL's trainer, its rows and its order of rows. Called by the `trl` engine.

Texts come rendered by the chat template (`train_loops.data`), so they are tokenised here without
special tokens: TRL would add a second begin or end token. Sources: TRL's trainers; DPO
(arXiv:2305.18290), ORPO (arXiv:2403.07691), KTO (arXiv:2402.01306), GRPO (arXiv:2402.03300).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import DatasetInvalid
from train_loops.data.answers import shared_start
from train_loops.data.batches import EpochOrder
from train_loops.data.mask import IGNORED
from train_loops.data.template import token_ids
from train_loops.plan import Plan

if TYPE_CHECKING:
    from datasets import Dataset

Encode = Callable[[str], list[int]]
Row = dict[str, Any]


def rows(plan: Plan, dataset: "Dataset", tokenizer: Any, folder: Path) -> "Dataset":
    """The rows of `dataset` as the objective's trainer wants them; new ones lie in `folder`.

    Raises:
        DatasetInvalid: no row has room for an answer within `max_sequence_length`.
    """
    objective = plan.spec.customization.objective
    if objective in ("sft", "cpt"):
        return dataset
    if objective == "grpo":
        return dataset.select_columns(["prompt", "reference"])
    longest, encode = plan.tuning.max_sequence_length, _encoder(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    made = dataset.map(
        lambda row: _MAKERS[objective](row, encode, longest),
        remove_columns=[name for name in dataset.column_names if name != "label"],
        # Not beside the data, which all ranks of a machine share.
        cache_file_name=str(folder / "tokens.arrow"),
        load_from_cache_file=False,
    ).filter(
        lambda row: not any(value == [] for value in row.values()),
        cache_file_name=str(folder / "kept.arrow"),
        load_from_cache_file=False,
    )
    if not len(made):
        raise DatasetInvalid(
            f"no row's answer begins within max_sequence_length {longest}",
            param="tuning_parameters.max_sequence_length",
            hint="Raise max_sequence_length, or shorten the prompts.",
        )
    return _with_mismatched_answers(made) if objective == "kto" else made


def _encoder(tokenizer: Any) -> Encode:
    def encode(text: str) -> list[int]:
        return token_ids(tokenizer, [text])[0]

    return encode


def _split(encode: Encode, prompt: str, answers: Sequence[str], longest: int) -> list[list[int]]:
    """Token ids of the prompt, then of each answer, cut to `longest` together.

    Where tokens merge across the border, it moves back to the last one that all share.
    """
    asked, whole = encode(prompt), [encode(prompt + answer) for answer in answers]
    border = min(shared_start(asked, ids) for ids in whole)
    return [asked[:border], *(ids[border:longest] for ids in whole)]


def _pair(row: Row, encode: Encode, longest: int) -> Row:
    answers = (row["chosen"], row["rejected"])
    prompt, chosen, rejected = _split(encode, row["prompt"], answers, longest)
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def _judged(row: Row, encode: Encode, longest: int) -> Row:
    prompt, answer = _split(encode, row["prompt"], (row["completion"],), longest)
    return {"prompt_ids": prompt, "completion_ids": answer}


def _compared(row: Row, encode: Encode, longest: int) -> Row:
    pair = _pair(row, encode, longest)
    prompt = pair["prompt_ids"]
    if not (pair["chosen_ids"] and pair["rejected_ids"]):
        return {"chosen_ids": [], "rejected_ids": []}
    return {name: prompt + pair[name] for name in ("chosen_ids", "rejected_ids")}


def _labelled(row: Row, encode: Encode, longest: int) -> Row:
    """ORPO's columns: each answer after its prompt, and the labels of the answer alone."""
    pair = _pair(row, encode, longest)
    prompt = pair["prompt_ids"]
    made: Row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for name in ("chosen", "rejected"):
        answer = pair[f"{name}_ids"]
        made[f"{name}_input_ids"] = prompt + answer if answer else []
        made[f"{name}_attention_mask"] = [1] * (len(prompt) + len(answer))
        made[f"{name}_labels"] = [IGNORED] * len(prompt) + answer
    return made


_MAKERS: dict[str, Callable[[Row, Encode, int], Row]] = {
    "dpo": _pair,
    "orpo": _labelled,
    "kto": _judged,
    "reward": _compared,
}


def _with_mismatched_answers(dataset: "Dataset") -> "Dataset":
    """KTO estimates its divergence on the answers of other prompts: each row gets the one before
    it."""
    answers = dataset["completion_ids"]
    return dataset.add_column("KL_completion_ids", [answers[-1], *answers[:-1]])


class GroupOrder(EpochOrder):
    """Row numbers of GRPO: a step's prompts, each once for every answer, given out once for each of
    the step's micro-batches, because the trainer samples all answers with the first."""

    def __init__(self, rows: int, seed: int, *, prompts: int, generations: int, parts: int) -> None:
        super().__init__(rows, seed)
        self._prompts = prompts
        self._generations = generations
        self._parts = parts

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        order += [order[index % len(order)] for index in range(-len(order) % self._prompts)]
        for start in range(0, len(order), self._prompts):
            for _ in range(self._parts):
                for number in order[start : start + self._prompts]:
                    yield from [number] * self._generations

    def __len__(self) -> int:
        prompts = super().__len__()
        return (prompts + -prompts % self._prompts) * self._generations * self._parts
