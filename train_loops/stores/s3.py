"""Objects in S3, or in anything that speaks it, by boto3.

Endpoint, region and keys come by the AWS environment names (`AWS_ENDPOINT_URL`, `AWS_REGION`,
`AWS_ACCESS_KEY_ID`, …) or from the machine's role.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from configs.errors import StorageFailed
from train_loops.stores.base import StoredObject

_ABSENT = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})


class S3Store:
    """An `ObjectStore` for `s3://` URIs. Puts are atomic: S3 shows an object when it is whole."""

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        retries: Any = {"mode": "standard", "max_attempts": 5}
        # boto3 by itself reads AWS_DEFAULT_REGION only; the other AWS SDKs read AWS_REGION.
        return boto3.client(
            "s3",
            region_name=os.environ.get("AWS_REGION") or None,
            config=Config(retries=retries, connect_timeout=10, read_timeout=60),
        )

    def put(self, path: Path, uri: str) -> None:
        bucket, key = split(uri)
        # Not `upload_file`: its error hides what the store answered.
        with path.open("rb") as file, _plain_errors(uri, absent=frozenset()):
            self._client.upload_fileobj(file, bucket, key)

    def put_bytes(self, data: bytes, uri: str) -> None:
        bucket, key = split(uri)
        with _plain_errors(uri, absent=frozenset()):
            self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def get(self, uri: str, path: Path) -> None:
        bucket, key = split(uri)
        with _plain_errors(uri):
            self._client.download_file(bucket, key, str(path))

    def get_bytes(self, uri: str) -> bytes:
        bucket, key = split(uri)
        with _plain_errors(uri):
            body = self._client.get_object(Bucket=bucket, Key=key)["Body"]
            return bytes(body.read())

    def list(self, prefix: str) -> Iterator[StoredObject]:
        bucket, key = split(prefix)
        with _plain_errors(prefix):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=bucket, Prefix=key):
                for item in page.get("Contents", []):
                    yield StoredObject(f"s3://{bucket}/{item['Key']}", item["Size"])


def split(uri: str) -> tuple[str, str]:
    """`s3://bucket/a/b` → (`bucket`, `a/b`)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@contextmanager
def _plain_errors(uri: str, absent: frozenset[str] = _ABSENT) -> Iterator[None]:
    """boto3's many errors as two of ours, without the request that may carry a signature."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown")
        if code in absent:
            raise FileNotFoundError(uri) from None
        raise StorageFailed(f"{uri}: the object store answered {code!r}") from None
    except (BotoCoreError, Boto3Error) as error:
        raise StorageFailed(
            f"{uri}: the object store could not be used ({type(error).__name__})",
            hint="Check AWS_ENDPOINT_URL, AWS_REGION and the credentials of the service.",
        ) from None
