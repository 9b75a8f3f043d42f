"""Base models from the Hugging Face hub, or any server that speaks its protocol (`HF_ENDPOINT`).

The request's token goes to the hub client and nowhere else; without one the client is anonymous,
so that the operator's own token is never lent.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.base_model import BaseModelSpec
from configs.errors import ModelAccess
from train_loops.layouts import files_of


def snapshot(model: BaseModelSpec, token: str | None, cache: Path) -> Path:
    """Download `model` (weights, config, tokenizer) into the shared cache; its folder.

    The hub is asked first whether this token may read the model, so that one user's download is no
    way around another's missing access.

    Raises:
        ModelAccess: unknown, gated, no weights that are read, or the hub does not answer.
    """
    from huggingface_hub import HfApi, snapshot_download

    # The library reads HF_ENDPOINT at its import, which may be before it is set for this run.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    api = HfApi(endpoint=endpoint, token=token or False)
    with _plain_errors(model, token):
        info = api.model_info(model.model_name, revision=model.revision)
        api.auth_check(model.model_name)
        files = files_of((file.rfilename for file in info.siblings or []), model)
        if files is None:
            raise _no_weights(model)
        folder = snapshot_download(
            model.model_name,
            revision=info.sha,
            endpoint=endpoint,
            token=token or False,
            cache_dir=cache,
            allow_patterns=files.names,
        )
    return Path(folder)


def _no_weights(model: BaseModelSpec) -> ModelAccess:
    wanted = "Meta's consolidated.*.pth with params.json"
    if model.provider != "meta":
        wanted = f"safetensors weights, nor {wanted}"
    return ModelAccess(
        f"{model.model_name}: the repository has no {wanted}",
        param="base_model.model_name",
        hint="Other pickled weights are never read; convert the model, or choose another revision.",
    )


@contextmanager
def _plain_errors(model: BaseModelSpec, token: str | None) -> Iterator[None]:
    """The hub library's many errors as one of ours, without the request that carries the token."""
    # `HTTPError` is that of the library's own HTTP client, whichever that is.
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise _refused(model, "is gated and this token has no access", token) from None
    except RepositoryNotFoundError:
        raise _refused(model, "is unknown, or private and closed to this token", token) from None
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise _refused(model, "was refused by the hub", token) from None
        raise ModelAccess(
            f"{model.model_name}: the hub could not be used ({type(error).__name__})",
            param="base_model.model_name",
            hint="Check the name and revision, and that the service can reach the hub.",
        ) from None


def _refused(model: BaseModelSpec, why: str, token: str | None) -> ModelAccess:
    return ModelAccess(
        f"{model.model_name} {why}",
        param="base_model.huggingface_token" if token else "base_model.model_name",
        hint="Accept the model's licence on the hub and send base_model.huggingface_token."
        if token is None
        else "Check the token's rights on the hub.",
    )
