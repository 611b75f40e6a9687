"""What a leaf of the site's CA is good for, and when it is issued again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

Converge = Callable[..., subprocess.CompletedProcess[str]]
TLS = "/etc/fieldring/tls"
OTHER = "fieldring-site-ca-2"
CA_DIRECTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "ca"

ONE = ("--limit", "fieldring-site-ca-1")

testinfra_hosts = ["fieldring-site-ca-1"]


@pytest.fixture
def other() -> Host:
    return testinfra.get_host(f"ansible://{OTHER}", ansible_inventory=os.environ["MOLECULE_INVENTORY_FILE"])


@pytest.fixture
def server(other: Host) -> Iterator[None]:
    """A TLS server on the other host, with its host.pem alone, that wants a client certificate."""
    other.check_output(
        "systemd-run --unit=tls-probe --collect openssl s_server -accept 9443 -www"
        f" -cert {TLS}/host.pem -key {TLS}/host.pem -CAfile {TLS}/ca.pem -Verify 1 -verify_return_error"
    )
    other.check_output("for i in $(seq 50); do ss -ltn | grep -q :9443 && exit 0; sleep 0.1; done; exit 1")
    yield
    other.run("systemctl stop tls-probe")


def handshake(host: Host, *, name: str, client: bool = True) -> str:
    certificate = f"-cert {TLS}/host.crt -key {TLS}/host.key" if client else ""
    command = f"printf 'GET / HTTP/1.0\r\n\r\n' | timeout 10 openssl s_client -connect {OTHER}:9443 -quiet"
    trust = f"-CAfile {TLS}/ca.pem -verify_return_error -verify_hostname {name}"
    result = host.run(f"{command} {trust} {certificate}")
    return str(result.stdout)


def serial(host: Host) -> str:
    return str(host.check_output(f"openssl x509 -in {TLS}/host.crt -noout -serial"))


@pytest.mark.usefixtures("server")
def test_two_hosts_trust_each_other(host: Host) -> None:
    """A host speaks mutual TLS with another by the files of the role alone."""
    assert "HTTP/1.0 200" in handshake(host, name=OTHER)


@pytest.mark.usefixtures("server")
def test_a_leaf_does_not_hold_for_another_name(host: Host) -> None:
    assert "HTTP/1.0 200" not in handshake(host, name="fieldring-site-ca-1")


@pytest.mark.usefixtures("server")
def test_a_client_without_certificate_is_refused(host: Host) -> None:
    assert "HTTP/1.0 200" not in handshake(host, name=OTHER, client=False)


def test_each_host_has_a_key_of_its_own(host: Host, other: Host) -> None:
    digest = f"sha256sum < {TLS}/host.key"
    assert host.check_output(digest) != other.check_output(digest)


def test_the_key_is_for_the_group_only(host: Host) -> None:
    """A service user in fieldring-tls reads the key; another user does not."""
    host.check_output("id reader || useradd --system --groups fieldring-tls reader")
    host.check_output("id stranger || useradd --system stranger")
    assert host.run(f"runuser -u reader -- cat {TLS}/host.key {TLS}/host.pem").rc == 0
    for name in ("host.key", "host.pem"):
        assert host.run(f"runuser -u stranger -- cat {TLS}/{name}").rc != 0
    assert host.run(f"runuser -u stranger -- cat {TLS}/ca.pem").rc == 0


def test_the_ca_key_stays_on_the_controller(host: Host) -> None:
    key = CA_DIRECTORY / "ca.key"
    assert key.stat().st_mode & 0o777 == 0o600
    body = key.read_text(encoding="ascii").splitlines()[1]
    assert host.run(f"grep -rqF '{body}' /etc /root /tmp /var/tmp").rc == 1


def test_changes_are_seen_in_check_mode_and_issued_once(host: Host, converge_again: Converge) -> None:
    """Other names: announced in check mode, issued by the run, key kept, nothing left for a second run."""
    before, key = serial(host), host.check_output(f"sha256sum {TLS}/host.key")
    names = ["localhost", "127.0.0.1", "192.0.2.7"]

    plan = converge_again("--check", *ONE, site_ca_leaf_addresses=names)
    assert plan.returncode == 0, plan.stdout
    assert "wanted are" in plan.stdout
    assert serial(host) == before

    run = converge_again("--diff", *ONE, site_ca_leaf_addresses=names)
    assert run.returncode == 0, run.stdout
    assert "PRIVATE KEY" not in run.stdout
    assert serial(host) != before
    assert host.check_output(f"sha256sum {TLS}/host.key") == key
    assert "192.0.2.7" in host.check_output(f"openssl x509 -in {TLS}/host.pem -noout -ext subjectAltName")

    again = converge_again(*ONE, site_ca_leaf_addresses=names)
    assert "changed=0" in again.stdout
    assert "changed=1" not in again.stdout


def test_a_leaf_that_ends_soon_is_renewed(host: Host, converge_again: Converge) -> None:
    before = serial(host)
    names = ["localhost", "127.0.0.1", "192.0.2.7"]
    run = converge_again(*ONE, site_ca_leaf_addresses=names, site_ca_leaf_renew_before_days=398)
    assert run.returncode == 0, run.stdout
    assert "it is renewed below 398" in run.stdout
    assert serial(host) != before


def test_a_damaged_leaf_and_loose_modes_are_repaired(host: Host, converge_again: Converge) -> None:
    names = ["localhost", "127.0.0.1", "192.0.2.7"]
    host.check_output(f"echo junk > {TLS}/host.crt && chmod 0644 {TLS}/host.key")
    run = converge_again(*ONE, site_ca_leaf_addresses=names)
    assert run.returncode == 0, run.stdout
    assert host.run(f"openssl verify -CAfile {TLS}/ca.pem {TLS}/host.crt").rc == 0
    assert host.file(f"{TLS}/host.key").mode == 0o640


def test_ca_101_refuses_a_relative_directory(converge_again: Converge) -> None:
    run = converge_again(*ONE, site_ca_directory="secrets/ca")
    assert run.returncode != 0
    assert "CA-101" in run.stdout
    assert not Path("secrets/ca").exists()


def test_ca_102_refuses_a_ca_without_its_key(converge_again: Converge, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes((CA_DIRECTORY / "ca.pem").read_bytes())
    run = converge_again(*ONE, site_ca_directory=str(tmp_path))
    assert run.returncode != 0
    assert "CA-102" in run.stdout
    assert not (tmp_path / "ca.key").exists()


def test_ca_103_refuses_a_ca_that_ends_too_soon(host: Host, converge_again: Converge, tmp_path: Path) -> None:
    before = serial(host)
    run = converge_again(*ONE, site_ca_directory=str(tmp_path / "short"), site_ca_valid_days=20)
    assert run.returncode != 0
    assert "CA-103" in run.stdout
    assert serial(host) == before


def test_a_new_ca_re_issues_every_leaf(
    host: Host, other: Host, converge_again: Converge, tmp_path: Path
) -> None:
    """Last, because it replaces the scenario's CA on the hosts."""
    run = converge_again(site_ca_directory=str(tmp_path / "next"))
    assert run.returncode == 0, run.stdout
    for each in (host, other):
        assert each.run(f"openssl verify -CAfile {TLS}/ca.pem {TLS}/host.crt").rc == 0
        assert each.file(f"{TLS}/ca.pem").content == (tmp_path / "next" / "ca.pem").read_bytes()
