"""Judges a host's certificate files. No Ansible here: bytes and numbers in, reasons out."""

from __future__ import annotations

import datetime as dt
import ipaddress

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
except ImportError:
    # A bare host: only typed_names is of use there.
    HAS_CRYPTOGRAPHY = False
else:
    HAS_CRYPTOGRAPHY = True


def typed_names(names: list[str]) -> list[str]:
    """Each name as a subject alternative name: IP:... when it is an address, else DNS:..."""
    result = []
    for name in names:
        try:
            result.append(f"IP:{ipaddress.ip_address(name)}")
        except ValueError:
            result.append(f"DNS:{name}")
    return result


def days_left(certificate: x509.Certificate, *, now: dt.datetime) -> int:
    # Debian 12 has no not_valid_after_utc yet; later releases warn about the naive one.
    end = getattr(certificate, "not_valid_after_utc", None)
    if end is None:
        end = certificate.not_valid_after.replace(tzinfo=dt.timezone.utc)  # noqa: UP017 also read by older Pythons
    return int((end - now).total_seconds() // 86400)


def days_since_issue(certificate: x509.Certificate, *, now: dt.datetime) -> int:
    start = getattr(certificate, "not_valid_before_utc", None)
    if start is None:
        start = certificate.not_valid_before.replace(tzinfo=dt.timezone.utc)  # noqa: UP017 as above
    return int((now - start).total_seconds() // 86400)


def ca_days_left(ca_pem: bytes, *, now: dt.datetime) -> int | None:
    return days_left(x509.load_pem_x509_certificate(ca_pem), now=now) if ca_pem else None


def alternative_names(certificate: x509.Certificate) -> set[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    addresses = {f"IP:{a}" for a in extension.value.get_values_for_type(x509.IPAddress)}
    return addresses | {f"DNS:{n}" for n in extension.value.get_values_for_type(x509.DNSName)}


def signed_by(leaf: x509.Certificate, ca: x509.Certificate) -> bool:
    key = ca.public_key()
    algorithm = leaf.signature_hash_algorithm
    if leaf.issuer != ca.subject or algorithm is None:
        return False
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(leaf.signature, leaf.tbs_certificate_bytes, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(leaf.signature, leaf.tbs_certificate_bytes, padding.PKCS1v15(), algorithm)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def leaf_reasons(
    leaf_pem: bytes,
    *,
    key_pem: bytes,
    ca_pem: bytes,
    names: list[str],
    renew_before_days: int,
    renew_older_than_days: int = -1,
    now: dt.datetime,
) -> list[str]:
    """Why this leaf cannot stay; empty when it can."""
    if not leaf_pem or not key_pem:
        return ["the host has no certificate yet"]
    if not ca_pem:
        return ["the site's CA does not exist yet"]
    try:
        leaf = x509.load_pem_x509_certificate(leaf_pem)
        key = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        return [f"the certificate or key cannot be read: {error}"]
    reasons = []
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        reasons.append("the certificate does not belong to the key")
    ca = x509.load_pem_x509_certificate(ca_pem)
    if not signed_by(leaf, ca):
        reasons.append("the certificate is not signed by the site's CA")
    wanted, held = set(typed_names(names)), alternative_names(leaf)
    if wanted != held:
        reasons.append(
            f"the certificate names {', '.join(sorted(held))}; wanted are {', '.join(sorted(wanted))}"
        )
    left = days_left(leaf, now=now)
    # A leaf is issued for a day less than its CA has: a new one would hold no longer than one near that.
    renew_below = min(renew_before_days, days_left(ca, now=now) - 2)
    if left < renew_below:
        reasons.append(f"the certificate has {left} days left; it is renewed below {renew_below}")
    age = days_since_issue(leaf, now=now)
    if 0 <= renew_older_than_days <= age:
        reasons.append(f"the certificate is {age} days old; this run renews from {renew_older_than_days} on")
    return reasons
