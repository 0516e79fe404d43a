"""Hashes of content, and the keyed hashes that stand for people and series."""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmct.artefacts import fsync_directory
from fmct.errors import DataError

_DIGITS = 16


def voxel_hash(voxels: np.ndarray) -> str:
    """Return the SHA-256 of a volume's shape, type and voxels, whatever its grid."""
    digest = hashlib.sha256(f"{voxels.dtype.str}{voxels.shape}".encode())
    for plane in np.ascontiguousarray(voxels):
        digest.update(plane)
    return digest.hexdigest()


def content_hash(voxels: str, affine: np.ndarray) -> str:
    """Return the SHA-256 of a voxel hash and its grid, the grid to a thousandth of a millimetre."""
    grid = np.round(np.asarray(affine, dtype=np.float64), 3) + 0.0
    return hashlib.sha256(voxels.encode() + grid.astype("<f8").tobytes()).hexdigest()


@dataclass(frozen=True)
class PseudonymKey:
    """The secret that turns names into pseudonyms. It lives outside the store and never leaves the site."""

    secret: bytes

    @property
    def fingerprint(self) -> str:
        """Eight bytes of hash that recognise the key without revealing it."""
        return hashlib.sha256(b"fmct key fingerprint" + self.secret).hexdigest()[:_DIGITS]

    def pseudonym(self, kind: str, name: str) -> str:
        """Return the pseudonym of a `patient` or `series`: the same name gives the same 16 hexadecimal digits."""
        message = f"{kind}\0{name}".encode("utf-8", "surrogateescape")
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:_DIGITS]


def load_key(path: Path, *, expected: str | None) -> PseudonymKey:
    """Return the key in a file, making the file when it is absent and no store needs an `expected` fingerprint.

    Raises DataError when the key is absent, unreadable or not the store's.
    """
    if not path.exists() and expected is None:
        _create_key(path)
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such key. The store's pseudonyms were made with the key of fingerprint {expected}; give its "
            "place with key_file=PATH. Without it new series of known patients would look like new patients."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a key file ({type(error).__name__}); expected 64 hexadecimal digits.") from None
    key = PseudonymKey(secret)
    if len(secret) < 16:
        raise DataError(f"{path}: not a key file; expected 64 hexadecimal digits, got {len(secret)} bytes.")
    if expected is not None and key.fingerprint != expected:
        raise DataError(
            f"{path}: this key has the fingerprint {key.fingerprint}, the store was made with {expected}. "
            "Give the right key with key_file=PATH."
        )
    return key


def _create_key(path: Path) -> None:
    """Write a new key that only its owner may read, whole or not at all, keeping one that another process made."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if not path.exists():
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)
