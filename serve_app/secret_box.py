"""Encryption of request secrets at rest, and keyed fingerprints of requests.

Not for passwords and not for transport. `JobStore` seals with it; the submit route takes request
digests with it, keyed, because a plain hash of a request would let a reader of the database try
tokens against it.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from configs.errors import InternalError
from configs.settings import Settings

KEY_FILE = "secret.key"
_KEY_BYTES = 32
_NONCE_BYTES = 12


class SecretBox:
    """AES-256-GCM under one key, with each ciphertext bound to its context."""

    def __init__(self, key_material: bytes) -> None:
        self._cipher = AESGCM(_derive(key_material, b"trainer seal v1"))
        self._fingerprint_key = _derive(key_material, b"trainer fingerprint v1")

    @classmethod
    def open(cls, settings: Settings) -> "SecretBox":
        """The box of this service: `settings.secret_key`, or the key file, made on first use."""
        if settings.secret_key:
            return cls(settings.secret_key.get_secret_value().encode())
        return cls(_read_or_create(settings.home.absolute() / KEY_FILE))

    def seal(self, plain: str, context: str) -> bytes:
        """Encrypt; `context` says whose secret it is and must be given again to open it."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain.encode(), context.encode())

    def unseal(self, sealed: bytes, context: str) -> str:
        """Decrypt what `seal` made.

        Raises:
            InternalError: another key or context, or the bytes were changed.
        """
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, body, context.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise InternalError(
                f"the stored secret of {context!r} cannot be opened: the key has changed, "
                f"or the data is damaged",
                hint=f"Restore TRAINER_SECRET_KEY or {KEY_FILE}, or submit the job anew.",
            ) from error

    def fingerprint(self, data: bytes) -> str:
        """HMAC-SHA256 in hexadecimal: equal for equal data, useless without the key."""
        return hmac.new(self._fingerprint_key, data, hashlib.sha256).hexdigest()


def _derive(key_material: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=purpose).derive(key_material)


def _read_or_create(path: Path) -> bytes:
    if not path.exists():
        _create(path)
    key = bytes.fromhex(path.read_text().strip())
    if len(key) != _KEY_BYTES:
        raise InternalError(f"{path} holds {len(key)} bytes of key; {_KEY_BYTES} are needed")
    return key


def _create(path: Path) -> None:
    """Write a whole key under another name, then link it: of two racing processes one wins, and
    both read the winner's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(os.urandom(_KEY_BYTES).hex())
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
