"""What answers earn, and how the operator's functions are found."""

import pytest

from configs.errors import ConfigInvalid
from configs.settings import Settings
from train_loops import rewards


def settings(**functions: str) -> Settings:
    return Settings(_env_file=None, reward_functions=functions)


def by_length(prompts: list[str], completions: list[str], references: list[str]) -> list[float]:
    """A function as an operator writes it."""
    return [float(len(p + c + r)) for p, c, r in zip(prompts, completions, references, strict=True)]


@pytest.mark.parametrize(
    ("name", "answer", "reference", "earned"),
    [
        ("exact_reference", " Twelve\n", "twelve", 1.0),
        ("exact_reference", "it is twelve", "twelve", 0.0),
        ("contains_reference", "It is  TWELVE indeed", "is twelve", 1.0),
        ("contains_reference", "It is ten", "twelve", 0.0),
        ("contains_reference", "anything", "", 0.0),
        ("last_number", "3 + 4 makes 1,007.0", "#### 1007", 1.0),
        ("last_number", "3 + 4 makes 8", "#### 7", 0.0),
        ("last_number", "no number", "none either", 0.0),
        ("last_number", "it is -3", "3", 0.0),
        ("short_answer", "", "", 1.0),
        ("short_answer", "x" * 100, "", 0.5),
        ("short_answer", "x" * 999, "", 0.0),
    ],
)
def test_an_answer_earns(name: str, answer: str, reference: str, earned: float) -> None:
    (function,) = rewards.find([name], settings())
    assert function(["?"], [answer], [reference]) == [earned]


def test_known_are_our_own_and_the_operators() -> None:
    assert rewards.known(settings(mine="a.b:c")) == {*rewards.BUILT_IN, "mine"}


def test_the_operators_function_is_imported() -> None:
    (found,) = rewards.find(["mine"], settings(mine=f"{__name__}:by_length"))
    assert found(["ab"], ["c"], [""]) == [3.0]


def test_an_operator_may_replace_one_of_ours() -> None:
    (found,) = rewards.find(["short_answer"], settings(short_answer=f"{__name__}:by_length"))
    assert found is not rewards.short_answer


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigInvalid, match=r"'magic'; known: contains_reference") as refused:
        rewards.find(["magic"], settings())
    assert refused.value.param == "customization.grpo.reward_functions"


@pytest.mark.parametrize("place", ["no_such_package:f", f"{__name__}:no_such_name", "", ":f"])
def test_a_function_that_cannot_be_imported_is_refused(place: str) -> None:
    with pytest.raises(ConfigInvalid, match="'mine' is not importable from"):
        rewards.find(["mine"], settings(mine=place))
