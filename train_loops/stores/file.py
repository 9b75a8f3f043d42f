"""Objects as files below one folder that the operator names (`TRAINER_FILE_ROOT`)."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from configs.errors import StorageFailed
from train_loops.stores.base import StoredObject


class FileStore:
    """An `ObjectStore` for `file://` URIs. Puts are atomic: a file is renamed when it is whole."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def put(self, path: Path, uri: str) -> None:
        with self._written(uri) as target:
            shutil.copyfile(path, target)

    def put_bytes(self, data: bytes, uri: str) -> None:
        with self._written(uri) as target:
            target.write_bytes(data)

    def get(self, uri: str, path: Path) -> None:
        with _plain_errors(uri):
            shutil.copyfile(self.path(uri), path)

    def get_bytes(self, uri: str) -> bytes:
        with _plain_errors(uri):
            return self.path(uri).read_bytes()

    def list(self, prefix: str) -> Iterator[StoredObject]:
        wanted = Path(urlsplit(prefix).path)
        folder = self.path(prefix if prefix.endswith("/") else prefix.rsplit("/", 1)[0])
        for path in sorted(folder.rglob("*")):
            if path.is_file() and str(path).startswith(str(wanted)):
                yield StoredObject(path.as_uri(), path.stat().st_size)

    def path(self, uri: str) -> Path:
        """The file of `uri`; symbolic links that lead out of the root are refused too."""
        path = Path(urlsplit(uri).path).resolve()
        if not path.is_relative_to(self._root):
            raise StorageFailed(f"{uri}: not below the service's file root")
        return path

    @contextmanager
    def _written(self, uri: str) -> Iterator[Path]:
        target = self.path(uri)
        with _plain_errors(uri):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=".part-")
            os.close(handle)
            try:
                yield Path(name)
                Path(name).replace(target)
            finally:
                Path(name).unlink(missing_ok=True)


@contextmanager
def _plain_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(uri) from None
    except OSError as error:
        raise StorageFailed(f"{uri}: {error.strerror}") from None
