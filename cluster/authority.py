"""Certificates of a cluster: its authorities, and what they sign for its nodes.

Two authorities: ``ca`` signs what nodes show as clients and servers, ``peer-ca`` what members of etcd show each
other, so that a node that is no member cannot take part in etcd's own protocol. Keys are of the curve P-256.
What a certificate says of its owner is set by the signer; of a request only the key is taken.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from weft.errors import ConfigProblem, StateDamaged
from weft.types import Address

AUTHORITY_DAYS = 3650
NODE_DAYS = 365
RENEW_DAYS = 60
"""A certificate is renewed when so many days are left of it."""
_EARLIER = datetime.timedelta(minutes=10)
"""What a certificate is valid before it is signed: clocks differ."""
_REQUEST_BYTES = 4096


def new_key() -> bytes:
    """A private key as PEM. *Equivalent to:* ``openssl ecparam -name prime256v1 -genkey``."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request(key: bytes, name: str) -> bytes:
    """A signing request as PEM. *Equivalent to:* ``openssl req -new -key KEY -subj /CN=NAME``."""
    made = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    return made.sign(_private(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(pem: bytes) -> bytes:
    """The public key (DER) of a signing request whose signature proves that its sender has the private one.

    Raises ConfigProblem.
    """
    if len(pem) > _REQUEST_BYTES:
        raise ConfigProblem(f"a signing request of {len(pem)} bytes", hint=f"at most {_REQUEST_BYTES}")
    try:
        found = x509.load_pem_x509_csr(pem)
        if not found.is_signature_valid:
            raise ValueError("its signature is invalid")
        key = found.public_key()
    except (ValueError, InvalidSignature) as error:
        raise ConfigProblem(f"the signing request cannot be used: {error}", hint="join again") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigProblem("the signing request's key is not of the curve P-256", hint="join again")
    return _encoded(key)


def public_key(key: bytes) -> bytes:
    """The public key (DER) of a private one."""
    return _encoded(_private(key).public_key())


class Authority:
    """A certificate authority: ``certificate`` and ``key`` are PEM."""

    def __init__(self, certificate: bytes, key: bytes) -> None:
        """Raises StateDamaged."""
        self.certificate = certificate
        self.key = key
        self._own = _certificate(certificate)
        self._private = _private(key)
        if _encoded(self._private.public_key()) != _key_of(self._own):
            raise StateDamaged("the authority's key is not that of its certificate")

    @classmethod
    def create(cls, name: str, now: datetime.datetime | None = None) -> Authority:
        """A new one. *Equivalent to:* ``openssl req -x509``."""
        at = now or _now()
        key = new_key()
        private = _private(key)
        made = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(name))
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - _EARLIER)
            .not_valid_after(at + datetime.timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
            .sign(private, hashes.SHA256())
        )
        return cls(made.public_bytes(serialization.Encoding.PEM), key)

    def sign(
        self,
        public: bytes,
        name: str,
        addresses: Iterable[Address] = (),
        *,
        days: int = NODE_DAYS,
        now: datetime.datetime | None = None,
    ) -> bytes:
        """A certificate as PEM for a public key (DER): of a server at these addresses, and a client."""
        at = now or _now()
        key = serialization.load_der_public_key(public)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._private.public_key())
        made = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._own.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - _EARLIER)
            .not_valid_after(at + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(
                # etcd is a client of itself: its own certificate must be both.
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(issuer, critical=False)
        )
        names = [x509.IPAddress(ipaddress.ip_address(str(one))) for one in dict.fromkeys(addresses)]
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return made.sign(self._private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: bytes) -> str:
    """The SHA-256 of a certificate (PEM). *Equivalent to:* ``openssl x509 -fingerprint -sha256``."""
    return hashlib.sha256(_certificate(certificate).public_bytes(serialization.Encoding.DER)).hexdigest()


def expires(certificate: bytes) -> float:
    """When a certificate (PEM) ends, in Unix time. Raises StateDamaged."""
    return _certificate(certificate).not_valid_after_utc.timestamp()


def addresses(certificate: bytes) -> tuple[Address, ...]:
    """The addresses that a certificate (PEM) is for. Raises StateDamaged."""
    try:
        found = _certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(ipaddress.ip_address(str(one)) for one in found.value.get_values_for_type(x509.IPAddress))


def belongs(certificate: bytes, key: bytes) -> bool:
    """Whether a certificate is for a private key (both PEM). Raises StateDamaged."""
    return _key_of(_certificate(certificate)) == public_key(key)


def presented_key(certificate: bytes) -> bytes:
    """The public key (DER) of a certificate as TLS presents it (DER). Raises StateDamaged."""
    try:
        return _key_of(x509.load_der_x509_certificate(certificate))
    except ValueError as error:
        raise StateDamaged(f"a certificate cannot be read: {error}") from None


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise StateDamaged(f"a certificate cannot be read: {error}") from None


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise StateDamaged(f"a private key cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StateDamaged("a private key is not of an elliptic curve")
    return key


def _key_of(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    return _encoded(key) if isinstance(key, ec.EllipticCurvePublicKey) else b""


def _encoded(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
