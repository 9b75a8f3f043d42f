"""The contract of an object store: whole files by URI. Not for appending or locking."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol


class StoredObject(NamedTuple):
    """One object and its size."""

    uri: str
    size_bytes: int


class ObjectStore(Protocol):
    """Files by URI. A write is atomic: a reader sees all of it or nothing.

    A missing object raises `FileNotFoundError`; a store that does not answer, or refuses, raises
    `configs.errors.StorageFailed`.
    """

    def put(self, path: Path, uri: str) -> None:
        """Write the file at `path` to `uri`."""

    def put_bytes(self, data: bytes, uri: str) -> None:
        """Write `data` to `uri`."""

    def get(self, uri: str, path: Path) -> None:
        """Read the object at `uri` into the file `path`."""

    def get_bytes(self, uri: str) -> bytes:
        """Read the object at `uri`."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object whose URI starts with `prefix`."""
