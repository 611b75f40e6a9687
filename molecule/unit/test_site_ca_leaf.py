"""Why a leaf is issued again, and the near misses that are no reason."""

from __future__ import annotations

import datetime as dt
import importlib.util
import ipaddress
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pytest
from ansible.plugins.test.core import skipped
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from repository import ROOT, tasks

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
NAMES = ["ring1", "192.0.2.1", "2001:db8::1"]
Key = ec.EllipticCurvePrivateKey


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    path = ROOT / "roles" / "site_ca" / "module_utils" / "site_ca_leaf.py"
    spec = importlib.util.spec_from_file_location("site_ca_leaf", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pem(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate(key: Key, *, ca_key: Key, names: list[str], days: int, issuer: str = "CA") -> bytes:
    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    builder = x509.CertificateBuilder(named(issuer), named(names[0]), key.public_key(), 1)
    builder = builder.not_valid_before(NOW - dt.timedelta(days=90)).not_valid_after(
        NOW + dt.timedelta(days=days)
    )
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)


CA_KEY, KEY, STRANGER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
CA = certificate(CA_KEY, ca_key=CA_KEY, names=["CA"], days=3650)


def reasons(
    judge: ModuleType, leaf: bytes, *, key: bytes = b"", ca: bytes = CA, names: list[str] | None = None
) -> list[str]:
    found = judge.leaf_reasons(
        leaf, key_pem=key or pem(KEY), ca_pem=ca, names=names or NAMES, renew_before_days=30, now=NOW
    )
    return list(found)


@pytest.mark.parametrize("days", [30, 31, 397])
def test_a_good_leaf_stays(judge: ModuleType, days: int) -> None:
    """30 days left are enough where it is renewed below 30; the order of names is no reason."""
    leaf = certificate(KEY, ca_key=CA_KEY, names=NAMES, days=days)
    assert reasons(judge, leaf) == []
    assert reasons(judge, leaf, names=NAMES[::-1]) == []


@pytest.mark.parametrize(("days", "words"), [(18, ""), (17, "renewed below 18")])
def test_a_leaf_that_ends_with_its_ca_stays(judge: ModuleType, days: int, words: str) -> None:
    """While a CA that ends soon is changed, renewing again in every run would gain nothing."""
    ending = certificate(CA_KEY, ca_key=CA_KEY, names=["CA"], days=20)
    found = reasons(judge, certificate(KEY, ca_key=CA_KEY, names=NAMES, days=days), ca=ending)
    assert bool(words) == bool(found)
    assert all(words in reason for reason in found)


def test_an_address_written_otherwise_is_the_same_address(judge: ModuleType) -> None:
    leaf = certificate(KEY, ca_key=CA_KEY, names=NAMES, days=300)
    assert reasons(judge, leaf, names=["ring1", "192.0.2.1", "2001:0db8:0::1"]) == []


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (b"", "no certificate yet"),
        (b"junk", "cannot be read"),
        (certificate(KEY, ca_key=CA_KEY, names=NAMES, days=29), "29 days left"),
        (certificate(KEY, ca_key=CA_KEY, names=NAMES, days=-5), "-5 days left"),
        (
            certificate(KEY, ca_key=CA_KEY, names=["ring1", "192.0.2.10", "2001:db8::1"], days=300),
            "192.0.2.10",
        ),
        (certificate(KEY, ca_key=STRANGER, names=NAMES, days=300), "not signed by the site's CA"),
        (
            certificate(KEY, ca_key=CA_KEY, names=NAMES, days=300, issuer="Other"),
            "not signed by the site's CA",
        ),
        (certificate(STRANGER, ca_key=CA_KEY, names=NAMES, days=300), "does not belong to the key"),
    ],
)
def test_a_leaf_is_issued_again(judge: ModuleType, leaf: bytes, words: str) -> None:
    (reason,) = reasons(judge, leaf)
    assert words in reason


def test_without_a_ca_nothing_is_judged(judge: ModuleType) -> None:
    """A first run in check mode."""
    leaf = certificate(KEY, ca_key=CA_KEY, names=NAMES, days=300)
    assert reasons(judge, leaf, ca=b"") == ["the site's CA does not exist yet"]
    assert judge.ca_days_left(b"", now=NOW) is None
    assert judge.ca_days_left(CA, now=NOW) == 3650


def may_sign(**variables: Any) -> bool:
    """What CA-103 says of `variables`."""
    (task,) = (
        task for task in tasks(ROOT / "roles/site_ca/tasks/leaf.yml") if "CA-103" in task.get("name", "")
    )
    environment = jinja2.Environment()
    environment.tests.update(file=lambda path: Path(path).is_file(), skipped=skipped)
    judged = environment.compile_expression(task["ansible.builtin.assert"]["that"])
    facts = {"site_ca_leaf_renew_before_days": 30, "_site_ca_next_certificate": "/nowhere", **variables}
    return bool(judged(facts))


@pytest.mark.parametrize(("days", "allowed"), [(None, True), (31, True), (30, False), (-1, False)])
def test_a_ca_that_ends_too_soon_does_not_sign(days: int | None, allowed: bool) -> None:
    """CA-103; without a CA there is nothing to refuse yet."""
    assert allowed == may_sign(__site_ca_leaf={"ca_days_left": days})


def test_a_ca_that_is_being_changed_may_end_soon(tmp_path: Path) -> None:
    """CA-103 asks for the change, so it does not stop it; nor its check run, which makes no next CA."""
    following = tmp_path / "ca.next.pem"
    following.touch()
    ending = {"ca_days_left": 20}
    assert may_sign(__site_ca_leaf=ending, _site_ca_next_certificate=str(following))
    assert may_sign(__site_ca_leaf=ending, __site_ca_change_announced={"changed": True})
    assert not may_sign(__site_ca_leaf=ending, __site_ca_change_announced={"skipped": True})
