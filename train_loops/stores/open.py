"""The one place that builds a store, and Ray Train's view of the same place."""

from typing import Any

from configs.errors import ConfigInvalid
from configs.settings import Settings
from train_loops.stores.base import ObjectStore
from train_loops.stores.file import FileStore
from train_loops.stores.s3 import S3Store


def open_store(uri: str, settings: Settings) -> ObjectStore:
    """The store that holds `uri`.

    Raises:
        ConfigInvalid: a `file://` URI without a file root.
    """
    if uri.startswith("s3://"):
        return S3Store()
    if settings.file_root is None:
        raise ConfigInvalid(f"{uri}: file:// is off; the operator sets TRAINER_FILE_ROOT")
    return FileStore(settings.file_root)


def arrow_filesystem(uri: str, settings: Settings) -> tuple[Any, str]:
    """(filesystem, path) of `uri` for Ray Train's checkpoints.

    `from_uri` obeys `AWS_ENDPOINT_URL`; a bare `S3FileSystem()` does not.
    """
    from pyarrow.fs import FileSystem, LocalFileSystem

    store = open_store(uri, settings)
    if isinstance(store, FileStore):
        path = store.path(uri)
        path.mkdir(parents=True, exist_ok=True)
        return LocalFileSystem(), str(path)
    filesystem, s3_path = FileSystem.from_uri(uri)
    return filesystem, s3_path
