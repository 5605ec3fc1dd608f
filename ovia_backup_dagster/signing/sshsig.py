"""Signatures in OpenSSH's format (SSHSIG), by Ed25519 keys: ``ssh-keygen -Y verify`` accepts them, and the reverse.

The format is OpenSSH's PROTOCOL.sshsig. Only one form is accepted: this namespace, SHA-512, no reserved field, no
encryption. Keys in files belong to ``key_files``; what is signed, to ``statement``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

#: A signature made for another purpose, such as a Git commit, must not count: ``ssh-keygen -Y sign -n NAMESPACE``.
NAMESPACE = "statement@ovia-backup"
_MAGIC, _VERSION, _HASH, _TYPE = b"SSHSIG", 1, b"sha512", b"ssh-ed25519"
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_LINE = 70
_SIGNATURE_BYTES = 64


class SignatureError(ValueError):
    """A signature is of another key, namespace or form, or does not fit the bytes."""


def public_text(key: Ed25519PublicKey) -> str:
    """A public key as OpenSSH writes it, without a comment: ``ssh-ed25519 AAAA…``."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def public_key(text: str) -> Ed25519PublicKey:
    """The key that :func:`public_text` wrote.

    Raises:
        SignatureError: it is not such a key.
    """
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError("it is not an OpenSSH public key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError("its key is not of type Ed25519")
    return key


def sign(key: Ed25519PrivateKey, message: bytes) -> bytes:
    """The armored signature of a message."""
    return _armored(b"".join(_frame(key.public_key())) + key.sign(_to_sign(message)))


def verify(key: Ed25519PublicKey, message: bytes, signature: bytes) -> None:
    """Check an armored signature. The one accepted form is rebuilt and compared, so that nothing is parsed.

    Raises:
        SignatureError: it is invalid.
    """
    try:
        raw = base64.b64decode("".join(signature.decode("ascii").split("\n")[1:-2]), validate=True)
    except (ValueError, binascii.Error):
        raise SignatureError("it is not an SSH signature") from None
    if signature != _armored(raw):
        raise SignatureError("it is not an SSH signature")
    form = b"".join(_frame(key))
    if raw[:-_SIGNATURE_BYTES] != form:
        raise SignatureError("it was made with another key, or for another purpose")
    try:
        key.verify(raw[-_SIGNATURE_BYTES:], _to_sign(message))
    except InvalidSignature:
        raise SignatureError("it does not fit the content: one of the two was changed") from None


def _armored(raw: bytes) -> bytes:
    text = base64.b64encode(raw).decode()
    lines = [text[start : start + _LINE] for start in range(0, len(text), _LINE)]
    return "\n".join([_BEGIN, *lines, _END, ""]).encode()


def _string(content: bytes) -> bytes:
    """RFC 4251's ``string``: its length in four bytes, and its bytes."""
    return struct.pack(">I", len(content)) + content


def _to_sign(message: bytes) -> bytes:
    digest = hashlib.sha512(message).digest()
    return _MAGIC + _string(NAMESPACE.encode()) + _string(b"") + _string(_HASH) + _string(digest)


def _frame(key: Ed25519PublicKey) -> tuple[bytes, bytes]:
    """What precedes the 64 bytes of the signature proper."""
    public = base64.b64decode(public_text(key).split()[1])
    named = _string(NAMESPACE.encode()) + _string(b"") + _string(_HASH)
    head = _MAGIC + struct.pack(">I", _VERSION) + _string(public) + named
    blob = _string(_TYPE) + struct.pack(">I", _SIGNATURE_BYTES)
    return head, struct.pack(">I", len(blob) + _SIGNATURE_BYTES) + blob
