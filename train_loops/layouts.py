"""Which files of a model folder a run reads, and how it comes to the layout that engines read.

Two layouts: Hugging Face's (`config.json`, safetensors) and Meta's own (`params.json`,
`consolidated.NN.pth`). Other pickles are never fetched: a stranger's would run code, and Meta's is
opened with `weights_only`. Called by `hub.py` and `inputs.py` with the names of all files.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from configs.base_model import BaseModelSpec

_META_WEIGHTS = re.compile(r"(?P<folder>|.*/)consolidated\.\d\d\.pth")
_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")
_CODE_SUFFIX = ".py"
_CONVERTED = "model-from-meta"


class Files(NamedTuple):
    """What of a model is read."""

    names: list[str]
    meta_folder: str | None
    """Folder of Meta's layout within the model, with its slash; None: Hugging Face's layout."""


def files_of(names: Iterable[str], model: BaseModelSpec) -> Files | None:
    """Those of `names` that a run reads; None when neither layout is whole.

    A repository that has both is read in Hugging Face's, unless the provider says `meta`.
    """
    names = list(names)
    has_safetensors = any(name.endswith(".safetensors") for name in names)
    if model.provider != "meta" and has_safetensors:
        suffixes = (*_SUFFIXES, _CODE_SUFFIX) if model.trust_remote_code else _SUFFIXES
        return Files([name for name in names if name.endswith(suffixes)], None)
    folder = _meta_folder(names)
    if folder is None:
        return None
    inside = [name for name in names if name.rpartition("/")[0] == folder.removesuffix("/")]
    readable = (*_SUFFIXES, ".pth")
    return Files([n for n in inside if n.endswith(readable) and ".safetensors" not in n], folder)


def as_hugging_face(folder: Path, model: BaseModelSpec, shared: Path) -> Path:
    """`folder`, or its conversion below `shared` where it holds Meta's layout.

    Raises:
        ModelAccess: Meta's layout is not whole.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    found = files_of(names, model)
    if found is None or found.meta_folder is None:
        return folder
    target = shared / _CONVERTED
    if not (target / "config.json").exists():
        from train_loops.meta_layout import to_hugging_face

        to_hugging_face(folder / found.meta_folder, target)
    return target


def _meta_folder(names: list[str]) -> str | None:
    matches = (_META_WEIGHTS.fullmatch(name) for name in names)
    folders = {match["folder"] for match in matches if match}
    return min((f for f in folders if f"{f}params.json" in names), key=len, default=None)
