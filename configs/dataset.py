"""One dataset of a job: where its rows lie and how to read them."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from configs.base import Spec

DatasetFormat = Literal["jsonl", "json", "csv", "parquet"]
Split = Literal["train", "validation"]
DatasetField = Literal[
    "messages", "conversations", "tools", "prompt", "completion", "instruction", "input", "output",
    "text", "chosen", "rejected", "label", "reference",
]  # fmt: skip

_STORE_URI = re.compile(r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/|file:///)[^\s\\?#%\x00-\x1f]+$")


def check_store_uri(uri: str) -> str:
    """Return `uri` when it names an object under `s3://bucket/…` or `file:///…`, without `..`."""
    if not _STORE_URI.fullmatch(uri) or any(part in ("..", ".") for part in uri.split("/")):
        raise ValueError(
            "not a store URI; accepted: 's3://bucket/key' or 'file:///path', "
            "without spaces, '..', '\\', '?', '#' or '%'"
        )
    return uri


StoreUri = Annotated[str, Field(min_length=8, max_length=1024), AfterValidator(check_store_uri)]


class DatasetSpec(Spec):
    """A file of rows. Every row of one file has the same shape (see `docs/USAGE.md`)."""

    source: StoreUri
    """`s3://bucket/users/<userId>/projects/<projectId>/ingestion/<file>`, or `file:///…` under the
    operator's file root."""

    format: DatasetFormat = "jsonl"
    """`jsonl`: an object a line. `json`: one array of objects. `csv`: a header line. `parquet`."""

    split: Split = "train"
    """What the rows are for: `train`, or `validation` for evaluation."""

    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often an epoch sees each row: 2 means twice, 0.5 means a seeded half of the rows."""

    column_mapping: Annotated[
        dict[
            DatasetField,
            Annotated[str, Field(min_length=1, max_length=256)],
        ],
        Field(max_length=8, default_factory=dict),
    ]
    """From our field to the file's column: `{"prompt": "question", "completion": "answer"}`."""
