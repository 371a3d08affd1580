"""The certificate a server shows, looked at before anything starts."""

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from btray.errors import UserError


def read_certificate(certificate: Path, key: Path, now: datetime | None = None) -> bytes:
    """Return a certificate, its chain and its private key as one PEM text, for HAProxy.

    Raises:
        UserError: a file that cannot be read or is no PEM, a key with a password, a key of
            another certificate, or a certificate not valid now.

    """
    pem, secret = _read(certificate), _read(key)
    leaf = _leaf(certificate, pem)
    if _public(_private(key, secret)) != _public(leaf):
        raise UserError(f"{key}: not the private key of {certificate}")
    now = now or datetime.now(UTC)
    if now >= leaf.not_valid_after_utc:
        raise UserError(f"{certificate}: expired on {leaf.not_valid_after_utc:%Y-%m-%d}")
    if now < leaf.not_valid_before_utc:
        raise UserError(f"{certificate}: not valid before {leaf.not_valid_before_utc}")
    return pem.rstrip() + b"\n" + secret.rstrip() + b"\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _leaf(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        raise UserError(f"{path}: no certificate in PEM form") from None


def _private(path: Path, pem: bytes) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise UserError(f"{path}: the private key has a password; give one without") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{path}: no private key in PEM form") from None


def _public(holder: PrivateKeyTypes | x509.Certificate) -> bytes:
    return holder.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
