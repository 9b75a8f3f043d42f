"""The model that a job starts from, and the tokens that open it."""

import re
from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from configs.base import Spec

ModelProvider = Literal["huggingface", "nemo", "meta", "s3", "local"]

Token = Annotated[SecretStr, Field(min_length=1, max_length=4096)]

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_S3_NAME = re.compile(r"^s3://[a-z0-9][a-z0-9.-]+(/[^\s\\]+)+/?$")
_LOCAL_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$")


class BaseModelSpec(Spec):
    """Where the base model comes from: weights as safetensors, or in Meta's own layout
    (`consolidated.*.pth` with `params.json`). Other pickles are never read."""

    provider: ModelProvider
    """`huggingface`: a hub repository. `s3`: a folder in a bucket. `local`: a folder under the
    operator's model root. `meta`: a hub repository, read in Meta's layout. `nemo`: NeMo's own
    checkpoints, which only the simulated engine takes."""

    model_name: Annotated[str, Field(min_length=1, max_length=512)]
    """`org/name` on the hub, an `s3://bucket/folder`, or a folder name under the model root."""

    revision: Annotated[str, Field(pattern=r"^[\w./-]{1,128}$")] | None = None
    """Branch, tag or commit of a hub repository; its default branch when left out."""

    auth_token: Token | None = None
    """Token for the model's provider. For the hub, `huggingface_token` wins over it."""

    huggingface_token: Token | None = None
    """Hugging Face token. It reaches the hub client and nothing else, and is never shown again."""

    trust_remote_code: bool = False
    """Run Python code that the model repository ships. Refused unless the operator allows it."""

    @model_validator(mode="after")
    def _name_fits_provider(self) -> "BaseModelSpec":
        pattern, accepted = _ACCEPTED_NAMES[self.provider]
        if not pattern.fullmatch(self.model_name) or ".." in self.model_name:
            raise ValueError(
                f"model_name does not fit provider {self.provider!r}; accepted: {accepted}"
            )
        if self.revision is not None and self.provider != "huggingface":
            raise ValueError("revision is a hub term: leave it out, or use provider 'huggingface'")
        return self

    @property
    def hub_token(self) -> SecretStr | None:
        """The token for the Hugging Face hub: `huggingface_token` wins over `auth_token`."""
        return self.huggingface_token or self.auth_token


_ACCEPTED_NAMES = {
    "huggingface": (_HUB_NAME, "'org/name', such as 'meta-llama/Llama-2-7b'"),
    "nemo": (_HUB_NAME, "'org/name'"),
    "meta": (_HUB_NAME, "'org/name'"),
    "s3": (_S3_NAME, "'s3://bucket/folder'"),
    "local": (_LOCAL_NAME, "a relative folder name without '..', such as 'demo-llama'"),
}
