"""What nemo-automodel 0.7.0 needs in order to be set up without a GPU. On a GPU it does nothing.

The library asks CUDA for its current device wherever it places weights. Called by `automodel.py`
around the recipe's set-up and steps; every patch ends with the `with`.
"""

import contextlib
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import signature
from typing import Any


@contextlib.contextmanager
def without_gpu() -> Iterator[None]:
    """Within: the recipe places its weights on the CPU, and compiles nothing."""
    import torch

    if torch.cuda.is_available():
        yield
        return
    with contextlib.ExitStack() as patches:
        for target, name, value in _patches():
            patches.enter_context(replaced(target, name, value))
        yield


@contextlib.contextmanager
def replaced(target: Any, name: str, value: object) -> Iterator[None]:
    """Within: the attribute `name` of `target` is `value`."""
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


def _patches() -> Iterator[tuple[Any, str, object]]:
    """(object, attribute, value in its place) of each patch."""
    import torch
    import torch._dynamo

    auto_model: Any = import_module("nemo_automodel._transformers.auto_model")
    model_init: Any = import_module("nemo_automodel._transformers.model_init")

    # recipes/llm/train_ft.py, `setup`: CPU builds lack the call behind it.
    yield torch.cuda, "reset_peak_memory_stats", lambda *_, **__: None
    # _transformers/auto_model.py, `from_pretrained` and `_build_model`: asked for without a look at
    # whether there is a GPU.
    yield torch.cuda, "current_device", lambda: 0
    # _transformers/auto_model.py, `_build_model` hands that number on as the device of the weights.
    yield auto_model, "apply_model_infrastructure", _on_cpu(auto_model.apply_model_infrastructure)
    # _transformers/model_init.py, `_init_model_bnb_streaming` does so for weights of 4 bits.
    yield model_init, "_stream_load_bnb_weights", _on_cpu(model_init._stream_load_bnb_weights)
    # torch.compile on the functions of components/distributed and components/loss costs more
    # seconds on a CPU than it saves.
    yield torch._dynamo.config, "disable", True


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the CPU as its `device`."""
    names = signature(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        import torch

        bound = names.bind(*args, **kwargs)
        bound.arguments["device"] = torch.device("cpu")
        return function(*bound.args, **bound.kwargs)

    return call
