"""Objects as files below one folder that the operator names (`TRAINER_FILE_ROOT`)."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from configs.errors import StorageFailed
from train_loops.stores.base import StoredObject

_PART = ".part-"


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
        # URIs are compared and given back as text, as they were put: not percent-encoded, and not
        # resolved where the root is a symbolic link.
        folder_uri = prefix[: prefix.rindex("/") + 1]
        folder = self.path(folder_uri)
        for path in sorted(folder.rglob("*")):
            uri = folder_uri + path.relative_to(folder).as_posix()
            if uri.startswith(prefix) and path.is_file() and not path.name.startswith(_PART):
                yield StoredObject(uri, path.stat().st_size)

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
            part = target.with_name(_PART + secrets.token_hex(8))
            try:
                yield part
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)


@contextmanager
def _plain_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(uri) from None
    except OSError as error:
        raise StorageFailed(f"{uri}: {error.strerror}") from None
