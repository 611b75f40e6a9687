"""What a host does after the role, and what makes the role refuse a host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest
import testinfra
from testinfra.host import Host

Converge = Callable[..., subprocess.CompletedProcess[str]]
ONE = ("--limit", "fieldring-base-host-1")

testinfra_hosts = ["fieldring-base-host-1"]


@pytest.fixture
def follower() -> Host:
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    return testinfra.get_host("ansible://fieldring-base-host-2", ansible_inventory=inventory)


def test_a_follower_takes_its_time_from_the_leader(follower: Host) -> None:
    """A site without a way out keeps one time."""
    assert follower.run("chronyc waitsync 20 0 0 1").rc == 0
    assert "172.31.80.11" in follower.check_output("chronyc -n tracking")


def test_a_container_does_not_steer_the_machines_clock(host: Host) -> None:
    assert " -x" in host.check_output("tr '\\0' ' ' < /proc/$(pidof -s chronyd)/cmdline")


def test_time_synchronisation_starts_with_the_host(host: Host) -> None:
    assert host.service("chrony").is_enabled


def test_the_journal_survives_and_keeps_its_limit(host: Host) -> None:
    """An entry outlives the journal's restart, and 60 MB of text do not break the limit of 24 MB."""
    host.check_output("systemd-cat -t before-restart echo kept; journalctl --sync")
    host.check_output("systemctl restart systemd-journald")
    assert "kept" in host.check_output("journalctl --no-pager -t before-restart")
    host.check_output(
        "base64 -w 1000 /dev/urandom | head -c 60000000 | systemd-cat -t flood; journalctl --sync"
    )
    used = int(host.check_output("du -sm /var/log/journal | cut -f1"))
    assert used <= 24 + 8


def test_kernel_settings_that_drifted_are_set_again(host: Host, converge_again: Converge) -> None:
    assert host.check_output("sysctl -n net.ipv4.tcp_keepalive_time") == "61"
    assert host.check_output("sysctl -n net.ipv4.ip_local_port_range").split() == ["20000", "60000"]
    host.check_output("sysctl -w net.ipv4.tcp_keepalive_time=7200")
    run = converge_again(*ONE)
    assert run.returncode == 0, run.stdout
    assert host.check_output("sysctl -n net.ipv4.tcp_keepalive_time") == "61"


def test_the_machines_own_settings_are_only_reported(follower: Host, converge_again: Converge) -> None:
    before = follower.check_output("sysctl -n vm.swappiness")
    assert before != "3"
    run = converge_again("--limit", "fieldring-base-host-2")
    assert run.returncode == 0, run.stdout
    assert "vm.swappiness = 3" in run.stdout
    assert follower.check_output("sysctl -n vm.swappiness") == before
    assert not follower.file("/etc/sysctl.d/60-fieldring.conf").exists


def test_a_wrong_time_source_does_not_replace_a_good_one(host: Host, converge_again: Converge) -> None:
    """chrony itself judges its file before it is installed."""
    before = host.file("/etc/chrony/chrony.conf").content
    run = converge_again(*ONE, base_host_time_sources=["sever 192.0.2.1"])
    assert run.returncode != 0
    assert "failed to validate" in run.stdout
    assert host.file("/etc/chrony/chrony.conf").content == before


@pytest.mark.parametrize(
    ("refusal", "variables", "words"),
    [
        ("BH-101", {"_base_host_supported": {"Debian": ["1"]}}, "runs Debian 12"),
        ("BH-102", {"base_host_memory_min_mb": 99_000_000}, "MB of memory, fewer than"),
        (
            "BH-104",
            {
                "base_host_kernel_settings_enabled": True,
                "base_host_kernel_settings": {"net.ipv4.tcp_keepalive": 1},
            },
            "no setting named net.ipv4.tcp_keepalive",
        ),
    ],
)
def test_refuses(converge_again: Converge, refusal: str, variables: dict[str, object], words: str) -> None:
    run = converge_again(*ONE, **variables)
    assert run.returncode != 0
    text = " ".join(run.stdout.split())
    assert refusal in text
    assert words in text


def test_bh_103_refuses_a_host_without_systemd(converge_again: Converge) -> None:
    """Facts as a host with another init would give them: such an image does not exist in the lab."""
    facts = {"distribution": "Debian", "distribution_major_version": "12", "distribution_version": "12.1"}
    facts |= {"memtotal_mb": 4096}
    run = converge_again(*ONE, ansible_facts={**facts, "service_mgr": "sysvinit"})
    assert run.returncode != 0
    assert "BH-103" in run.stdout
