"""Senders' keys: who holds the key that a name was first sent with may send it again.

A bundle is signed with Ed25519: it carries the public key and a signature of its list of files, so that a bundle that anyone can
read, such as a pull request, gives nothing away that another sender could use.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime.extras import require

LARGEST = 4096
"""Bytes of a key file or a signature."""


def default_key() -> Path:
    """Where a sender's secret key lies if none is named."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "robustbench_rkhs" / "sender.pem"


def sign(text: bytes, path: Path, tell: Callable[[str], object] | None = None) -> tuple[str, str]:
    """The public key and the signature of a text, both as base64; the secret key is made where its file is missing.

    `tell` is called with a line about a key that was made. Raises UserError where the file is no key, or cannot be written.
    """
    require("cryptography", "submit", "signing a bundle")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        _write_secret(path)
        if tell is not None:
            tell(f"new key: {path}: keep it, and a copy of it: whoever loses it loses the name of what it signed")
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is no key: it has more than {LARGEST:,} bytes")
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read the key {path}: {reason(error)}") from None
    except Exception:  # cryptography raises several kinds for foreign bytes, and speaks of its own pages
        raise UserError(
            f"{path} is no key: expected a PEM file of an Ed25519 key without a password; a file that does not exist yet is made"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: expected an Ed25519 key, found a {type(key).__name__}")
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    public = key.public_key().public_bytes(*raw)
    return base64.b64encode(public).decode(), base64.b64encode(key.sign(text)).decode()


def signer(text: bytes, public: str, signature: str) -> str:
    """sha256 of the public key that signed a text: what is kept of a sender. Raises UserError where the signature is not of it."""
    require("cryptography", "submit", "checking a signature")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        raw = base64.b64decode(public.strip(), validate=True)
        Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(signature.strip(), validate=True), text)
    except InvalidSignature:
        raise UserError("its signature is not of this list of files by this key: pack the bundle again with rkhs-submit") from None
    except (ValueError, binascii.Error) as error:
        raise UserError(f"its key or signature is not readable: {reason(error)}") from None
    return hashlib.sha256(raw).hexdigest()


def _write_secret(path: Path) -> None:
    """A new secret key, that only its owner can read."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    text = Ed25519PrivateKey.generate().private_bytes(*form)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write the key {path}: {reason(error)}") from None
