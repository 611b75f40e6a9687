"""What a gateway promises its devices, shown with real clients, kill -9 and a real upstream.

The upstream is `fieldring receive` with the embedded store on the same host, behind a TLS end. It is away
unless a test starts it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import ssl
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from testinfra.host import Host

Converge = Callable[..., subprocess.CompletedProcess[str]]
Point = tuple[int, str, float]

GATEWAY = "fieldring-sensor-gateway-1"
ADDRESS = "172.31.86.11"
CA = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "ca" / "ca.pem"
FORWARDER = "fieldring-forwarder"
STATE = "/var/lib/fieldring/forwarder"
PASSWORDS = "/etc/fieldring/forwarder/device_passwords"
PYTHON = "/opt/fieldring/venv/bin/python"
UPSTREAM = " ".join(
    (
        "FIELDRING_STORE=sqlite",
        "FIELDRING_SQLITE_PATH=/var/lib/upstream/points",
        "FIELDRING_SPOOL_DIR=/var/lib/upstream/spool",
        "FIELDRING_LISTEN_PORT=18081",
        "FIELDRING_TOKENS_FILE=/var/lib/upstream/tokens.json",
        "FIELDRING_RETENTION_DAYS=10950",
    )
)
BASE_MS = 1_600_000_000_000
READ = """
import json, os, sys
from fieldring import settings
from fieldring.store import open_store
store = open_store(settings.load(os.environ))
points = store.points(sys.argv[1], start_ms=0, end_ms=1 << 52)
print(json.dumps([[p.time_ms, p.metric, p.value] for p in points]))
store.close()
"""

testinfra_hosts = [GATEWAY]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def converge() -> Converge:
    """Runs the scenario's playbook once more; with static roles, so that tags select phases."""

    def run(*arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        playbook = Path(__file__).parents[1] / "converge.yml"
        inventory = os.environ["MOLECULE_INVENTORY_FILE"]
        command = ["ansible-playbook", "--inventory", inventory, "--extra-vars", json.dumps(variables)]
        return subprocess.run(
            [*command, *arguments, str(playbook)],
            env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "PY_COLORS": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )

    return run


def eventually(condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """The first true result."""
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.3)


def password(device: str) -> str:
    return f"scenario-{device}-password"


class Device:
    """A client over TLS that remembers which points were acknowledged."""

    def __init__(self, name: str, *, protocol: int = MQTTv311, client_id: str = "") -> None:
        self.name = name
        self._sent: dict[int, Point | None] = {}
        # Filled by paho's thread, which may be earlier than `_sent`.
        self._answers: dict[int, Any] = {}
        client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol)
        client.username_pw_set(name, password(name))
        client.tls_set_context(ssl.create_default_context(cafile=str(CA)))
        client.max_inflight_messages_set(20)
        client.reconnect_delay_set(1, 1)
        client.on_publish = self._on_publish
        client.connect(ADDRESS, 8883, keepalive=10)
        client.loop_start()
        self.client = client

    def _on_publish(self, _client: Client, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        self._answers[mid] = reason

    def publish(self, topic: str, payload: str, *, point: Point | None = None) -> int:
        mid = int(self.client.publish(topic, payload, qos=1).mid)
        self._sent[mid] = point
        return mid

    def measure(self, number: int) -> None:
        """One value of its own."""
        time_ms = BASE_MS + number
        line = f"no2,sensor={self.name} value={number} {time_ms}000000"
        self.publish(f"sensors/{self.name}/lp", line, point=(time_ms, "no2", float(number)))

    @property
    def acknowledged(self) -> set[Point]:
        answered = set(self._answers)
        return {point for mid, point in self._sent.items() if point is not None and mid in answered}

    def reason(self, mid: int) -> str:
        return str(self._answers[mid])

    def wait_acknowledged(self, *, seconds: float = 60.0) -> None:
        eventually(lambda: len(self._answers) == len(self._sent), seconds=seconds)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def device() -> Iterator[Callable[..., Device]]:
    """A function that connects a device."""
    devices: list[Device] = []

    def connect(name: str, **options: Any) -> Device:
        devices.append(Device(name, **options))
        return devices[-1]

    yield connect
    for one in devices:
        one.close()


def stop_upstream(host: Host) -> None:
    host.run("systemctl stop upstream upstream-tls; systemctl reset-failed upstream upstream-tls")


@pytest.fixture(autouse=True, scope="module")
def upstream_files(host: Host) -> Iterator[None]:
    digest = hashlib.sha256(b"scenario-gateway-token").hexdigest()
    tokens = [{"id": "gw", "sha256": digest, "roles": ["write"], "sensors": ["*"], "gateway": GATEWAY}]
    host.check_output(
        f"mkdir -p /var/lib/upstream && echo '{json.dumps(tokens)}' > /var/lib/upstream/tokens.json"
    )
    host.check_output(f"cat > /var/lib/upstream/read.py <<'END'\n{READ}\nEND")
    yield
    stop_upstream(host)


@pytest.fixture
def upstream(host: Host) -> Iterator[Callable[[], None]]:
    """A function that starts the upstream; it is away again after the test."""

    def start() -> None:
        environment = " ".join(f"--setenv={pair}" for pair in UPSTREAM.split())
        host.check_output(
            f"systemd-run --unit=upstream {environment} /opt/fieldring/venv/bin/fieldring receive"
        )
        host.check_output(
            "systemd-run --unit=upstream-tls"
            " socat OPENSSL-LISTEN:18443,fork,reuseaddr,cert=/etc/fieldring/tls/host.pem,verify=0"
            " TCP:127.0.0.1:18081"
        )

    yield start
    stop_upstream(host)


def stored(host: Host, sensor: str) -> set[Point]:
    """All points of a sensor in the upstream's store."""
    if not host.file("/var/lib/upstream/points").exists:
        return set()
    output = host.check_output(f"env {UPSTREAM} {PYTHON} /var/lib/upstream/read.py {sensor}")
    return {(time_ms, metric, value) for time_ms, metric, value in json.loads(output)}


def fetch(host: Host, path: str) -> str:
    url = f"http://127.0.0.1:9109{path}"
    probe = f"import urllib.request as u; print(u.urlopen('{url}', timeout=5).read().decode())"
    result = host.run(f'{PYTHON} -c "{probe}"')
    return str(result.stdout) if result.rc == 0 else ""


def is_ready(host: Host) -> bool:
    return '"ready"' in fetch(host, "/ready")


def metric(host: Host, name: str) -> float:
    for line in fetch(host, "/metrics").splitlines():
        if line.startswith(f"fieldring_forwarder_{name} "):
            return float(line.rpartition(" ")[2])
    return 0.0


def main_pid(host: Host, unit: str) -> int:
    return int(host.check_output(f"systemctl show --property=MainPID --value {unit}"))


def kill_hard(host: Host, unit: str) -> int:
    """kill -9 of the unit's main process; returns the process id of the one that comes after."""
    before = main_pid(host, unit)
    host.check_output(f"kill -9 {before}")
    return int(eventually(lambda: (pid := main_pid(host, unit)) not in (0, before) and pid))


def dead_letters(host: Host) -> list[dict[str, Any]]:
    path = f"{STATE}/dead_letter/messages.jsonl"
    if not host.file(path).exists:
        return []
    return [json.loads(line) for line in host.check_output(f"cat {path}").splitlines()]


def publish(host: Host, *arguments: str) -> Any:
    """mosquitto's own client, on the host."""
    return host.run(f"timeout 10 mosquitto_pub -q 1 -h {ADDRESS} -p 8883 {' '.join(arguments)}")


LOGIN = f"-u kerbside -P {password('kerbside')}"
CURL_TLS = "--cacert /etc/fieldring/tls/ca.pem"
TLS = "--cafile /etc/fieldring/tls/ca.pem"
MESSAGE = "-t sensors/kerbside/lp -m 'no2,sensor=kerbside value=1 1600000000000000000'"


def test_from_device_to_store(
    host: Host, device: Callable[..., Device], upstream: Callable[[], None]
) -> None:
    """SenML and line protocol over TLS arrive in a store behind HTTPS, past an upstream that is dead."""
    upstream()
    kerbside = device("kerbside")
    kerbside.publish(
        "sensors/kerbside/senml", '[{"bn":"kerbside/","bt":1600000000,"n":"no2","u":"ug/m3","v":41.5}]'
    )
    kerbside.measure(7)
    kerbside.wait_acknowledged()
    expected = {(BASE_MS, "no2", 41.5), (BASE_MS + 7, "no2", 7.0)}
    eventually(lambda: expected <= stored(host, "kerbside"))
    eventually(lambda: metric(host, "pending_blocks") == 0)


def test_debian_client(host: Host) -> None:
    """mosquitto_pub with the site's CA is let in."""
    assert publish(host, TLS, LOGIN, MESSAGE).rc == 0


@pytest.mark.parametrize(
    "arguments",
    [
        f"{TLS} -u kerbside -P wrong {MESSAGE}",
        f"{TLS} -u nobody -P {password('kerbside')} {MESSAGE}",
        f"{TLS} {MESSAGE}",
        f"{LOGIN} {MESSAGE}",
        f"--capath /etc/ssl/certs {LOGIN} {MESSAGE}",
    ],
    ids=["wrong password", "unknown device", "anonymous", "plain text", "without the site's CA"],
)
def test_refused_clients(host: Host, arguments: str) -> None:
    """Who is not who he says, or does not speak TLS, does not get in."""
    assert publish(host, arguments).rc != 0


def test_http_of_a_device(host: Host, upstream: Callable[[], None]) -> None:
    """A device on the LAN writes over HTTPS under its own name, and is told when it may not."""
    curl = f"curl -sS {CURL_TLS} -u kerbside:{password('kerbside')} -w '%{{http_code}}' -o /dev/null"
    url = f"https://{ADDRESS}:8443"

    def post(path: str, data: str, options: str = "") -> str:
        return str(host.check_output(f"{curl} {options} --data-binary '{data}' '{url}{path}'"))

    number = BASE_MS + 20_000
    assert post("/write?precision=ms", f"no2,sensor=kerbside value=20 {number}") == "204"
    assert post("/api/v2/write?precision=ms", f"no2,sensor=kerbside value=21 {number + 1}") == "202"
    pack = f'[{{"bn":"kerbside/","t":{(number + 2) / 1000},"n":"no2","v":22}}]'
    assert post("/api/v1/senml", pack, "-H 'Content-Type: application/senml+json'") == "202"
    assert post("/write?precision=ms", f"no2,sensor=rooftop value=1 {number}") == "403"
    assert post("/write", "junk") == "400"
    assert post("/write?precision=ms", f"no2,sensor=kerbside value=1 {number}", "-u kerbside:wrong") == "401"
    upstream()
    expected = {(number + n, "no2", 20.0 + n) for n in range(3)}
    eventually(lambda: expected <= stored(host, "kerbside"))


def test_old_tls_is_refused(host: Host) -> None:
    """TLS 1.1 is not spoken, TLS 1.2 is."""
    command = (
        f"openssl s_client -connect {ADDRESS}:8883 -CAfile /etc/fieldring/tls/ca.pem -verify_return_error"
    )
    assert host.run(f"echo | {command} -tls1_2").rc == 0
    assert host.run(f"echo | {command} -tls1_1 -cipher DEFAULT@SECLEVEL=0").rc != 0


def test_device_speaks_for_itself_only(host: Host, device: Callable[..., Device]) -> None:
    """A message on another device's topic is refused by code and never reaches the spool."""
    rooftop = device("rooftop", protocol=MQTTv5)
    spooled = metric(host, "points_spooled_total")
    other = rooftop.publish("sensors/kerbside/lp", "no2,sensor=kerbside value=666 1600000000000000000")
    own = rooftop.publish("sensors/rooftop/lp", "no2,sensor=rooftop value=1 1600000000000000000")
    rooftop.wait_acknowledged()
    assert [rooftop.reason(other), rooftop.reason(own)] == ["Not authorized", "Success"]
    assert metric(host, "points_spooled_total") == spooled + 1


def test_device_reads_nothing(device: Callable[..., Device]) -> None:
    """A device does not see what others publish."""
    rooftop, kerbside = device("rooftop", protocol=MQTTv5), device("kerbside")
    heard: list[str] = []
    rooftop.client.on_message = lambda _c, _d, message: heard.append(message.topic)
    rooftop.client.subscribe("sensors/#", qos=1)
    kerbside.measure(8)
    kerbside.wait_acknowledged()
    time.sleep(1)
    assert heard == []


def test_dead_letter_for_another_sensor(host: Host, device: Callable[..., Device]) -> None:
    """A payload that speaks for another sensor is kept aside with the reason, and counted."""
    kerbside = device("kerbside")
    payload = "no2,sensor=rooftop value=5 5000000"
    kerbside.publish("sensors/kerbside/lp", payload)
    kerbside.publish("sensors/kerbside/senml", '[{"bn":"kerbside/","n":"no2","v":oops}]')
    kerbside.wait_acknowledged()

    def letters() -> set[tuple[str, str]]:
        return {(letter["reason"], letter.get("payload", "")) for letter in dead_letters(host)}

    eventually(lambda: ("sensor", payload) in letters())
    eventually(lambda: any(reason == "payload" and "oops" in text for reason, text in letters()))
    assert metric(host, 'dead_letters_total{reason="sensor"}') >= 1


def test_forwarder_killed_while_upstream_is_away(
    host: Host, device: Callable[..., Device], upstream: Callable[[], None]
) -> None:
    """kill -9 of the forwarder, three times, while messages come: all acknowledged ones arrive afterwards."""
    kerbside = device("kerbside")
    for start in range(1000, 2500, 500):
        for number in range(start, start + 500):
            kerbside.measure(number)
        eventually(lambda start=start: len(kerbside.acknowledged) > start - 1000 + 50)
        kill_hard(host, FORWARDER)
    kerbside.wait_acknowledged()
    eventually(lambda: is_ready(host))
    assert len(kerbside.acknowledged) == 1500
    upstream()
    eventually(lambda: not kerbside.acknowledged - stored(host, "kerbside"), seconds=120)


def test_forwarder_is_fenced_in(host: Host) -> None:
    """The forwarder has no capability, gains none, and can write its own state only."""
    eventually(lambda: is_ready(host))
    pid = main_pid(host, FORWARDER)
    status = host.check_output(f"cat /proc/{pid}/status")
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert host.check_output(f"ps -o user= -p {pid}") == "fieldring"
    for path in ("/etc/fieldring", "/opt/fieldring", "/usr", "/var/lib"):
        inside = host.run(f"nsenter --target {pid} --mount touch {path}/probe")
        assert "Read-only file system" in inside.stderr, path
    host.check_output(f"nsenter --target {pid} --mount touch {STATE}/probe && rm {STATE}/probe")


def test_no_secret_in_sight(host: Host) -> None:
    """Neither command lines, environments of the services nor the journal carry a password or the token."""
    environment = host.check_output(f"tr '\\0' '\\n' < /proc/{main_pid(host, FORWARDER)}/environ")
    assert "scenario-" not in environment
    assert "scenario-" not in host.check_output("ps -eo args")
    journal = host.check_output("journalctl --output=cat --unit=fieldring-forwarder")
    for secret in ("scenario-gateway-token", "scenario-forwarder-password", password("kerbside")):
        assert secret not in journal
    for path in ("/etc/fieldring/forwarder/device_passwords", "/etc/fieldring/forwarder/upstream_token"):
        assert host.run(f"setpriv --reuid nobody --clear-groups cat {path}").rc != 0


def test_renewed_certificate_is_served_at_once(
    host: Host, device: Callable[..., Device], converge: Converge
) -> None:
    """A new leaf is served without a restart: connections stay, no message is refused."""

    def served() -> str:
        pem = ssl.get_server_certificate((ADDRESS, 8883))
        return hashlib.sha256(pem.encode()).hexdigest()

    before, pid = served(), main_pid(host, FORWARDER)
    kerbside = device("kerbside")
    result = converge(site_ca_leaf_addresses=[ADDRESS, "127.0.0.1", f"renewed-{time.time_ns()}.example"])
    assert result.returncode == 0, result.stdout
    eventually(lambda: served() != before)
    assert main_pid(host, FORWARDER) == pid
    kerbside.measure(12)
    kerbside.wait_acknowledged()


def test_new_password(host: Host, device: Callable[..., Device], converge: Converge) -> None:
    """A changed password counts from the run on, stands in no output, and touches no other account."""
    park = device("park")
    hashes = host.check_output(f"cat {PASSWORDS}").splitlines()
    passwords = {name: password(name) for name in ("kerbside", "rooftop", "park")} | {
        "kerbside": "another-good-one"
    }
    result = converge(
        "--diff", "-v", "--tags", "sensor_gateway_configure", sensor_gateway_device_passwords=passwords
    )
    try:
        assert result.returncode == 0, result.stdout
        assert "another-good-one" not in result.stdout
        assert len(set(hashes) & set(host.check_output(f"cat {PASSWORDS}").splitlines())) == 2
        eventually(lambda: publish(host, TLS, LOGIN, MESSAGE).rc != 0)
        assert publish(host, TLS, "-u kerbside -P another-good-one", MESSAGE).rc == 0
        park.measure(13)
        park.wait_acknowledged()
    finally:
        result = converge("--tags", "sensor_gateway_configure")
        assert result.returncode == 0, result.stdout
    eventually(lambda: publish(host, TLS, LOGIN, MESSAGE).rc == 0)


@pytest.fixture
def broken_bundle(tmp_path: Path) -> Path:
    """A release whose forwarder cannot start."""
    # prepare.yml built it where the role looks by default.
    origin = Path(__file__).parents[3] / ".cache" / "bundle"
    manifest = json.loads((origin / "manifest.json").read_text())
    (tmp_path / "wheels").mkdir()
    for name in manifest["wheels"]:
        (tmp_path / "wheels" / name).symlink_to(origin / "wheels" / name)
    (own,) = (tmp_path / "wheels").glob("fieldring-*.whl")
    with zipfile.ZipFile(own) as source, zipfile.ZipFile(tmp_path / "new.whl", "w") as target:
        for entry in source.infolist():
            data = (
                b"raise SystemExit('broken on purpose')"
                if entry.filename.endswith("gateway/__init__.py")
                else source.read(entry)
            )
            target.writestr(entry, data)
    own.unlink()
    (tmp_path / "new.whl").rename(own)
    manifest["wheels"][own.name] = hashlib.sha256(own.read_bytes()).hexdigest()
    manifest["fingerprint"] = "b0b0" + manifest["fingerprint"][4:]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "requirements.txt").write_bytes((origin / "requirements.txt").read_bytes())
    return tmp_path


def test_broken_release_is_taken_back(
    host: Host, converge: Converge, broken_bundle: Path, device: Callable[..., Device]
) -> None:
    """SG-201: a release that does not become ready is replaced by the one before, which goes on."""
    release = host.check_output("readlink /opt/fieldring/venv")
    result = converge(sensor_gateway_bundle=str(broken_bundle), sensor_gateway_health_wait_seconds=6)
    assert result.returncode != 0
    assert "SG-201: " in result.stdout, result.stdout
    assert "broken on purpose" in result.stdout, result.stdout
    assert host.check_output("readlink /opt/fieldring/venv") == release
    eventually(lambda: is_ready(host))
    spooled = metric(host, "points_spooled_total")
    park = device("park")
    park.measure(14)
    park.wait_acknowledged()
    eventually(lambda: metric(host, "points_spooled_total") > spooled)


@contextlib.contextmanager
def listener_on(host: Host, port: int) -> Iterator[None]:
    host.check_output(
        f"systemd-run --unit=squatter --collect socat TCP-LISTEN:{port},fork,reuseaddr /dev/null"
    )
    try:
        eventually(lambda: host.socket(f"tcp://0.0.0.0:{port}").is_listening)
        yield
    finally:
        host.run("systemctl stop squatter")


# Where a role's own variable has to be another one, a run of its own.
ALONE = {
    "SG-101": {"_sensor_gateway_supported": {"Debian": ["99"]}},
    "SG-107": {"_sensor_gateway_tls_directory": "/nonexistent"},
}
REFUSALS = {
    "SG-102 none": {"sensor_gateway_upstream_urls": []},
    "SG-102 plain": {"sensor_gateway_upstream_urls": ["http://192.0.2.21"]},
    "SG-103 plus": {"sensor_gateway_devices": ["kerbside", "a+b"]},
    "SG-103 hash": {"sensor_gateway_devices": ["#"]},
    "SG-103 slash": {"sensor_gateway_devices": ["kerbside/1"]},
    "SG-103 account": {"sensor_gateway_devices": ["fieldring-forwarder"]},
    "SG-104": {"sensor_gateway_devices": ["kerbside", "park", "kerbside"]},
    "SG-105 none": {"sensor_gateway_devices": ["kerbside", "unknown"]},
    "SG-105 short": {
        "sensor_gateway_device_passwords": {"kerbside": "short", "rooftop": "x" * 20, "park": "x" * 20}
    },
    "SG-108": {"sensor_gateway_bundle": "/nonexistent"},
}
STATE_FILES = "/etc/fieldring/forwarder/device_passwords /etc/fieldring/forwarder.env"


def as_host(case: str) -> str:
    return case.lower().replace(" ", "-")


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the preflight said in each case: one run, in which every case is a name of the gateway."""
    hosts = {as_host(case): {"ansible_host": GATEWAY, **variables} for case, variables in REFUSALS.items()}
    inventory = tmp_path_factory.mktemp("refusals") / "hosts.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    result = subprocess.run(
        [
            "ansible-playbook", "--inventory", os.environ["MOLECULE_INVENTORY_FILE"], "--inventory",
            str(inventory), "--limit", ",".join(hosts), "--forks", "5", "--tags", "sensor_gateway_preflight",
            str(Path(__file__).parents[1] / "converge.yml"),
        ],
        env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "PY_COLORS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )  # fmt: skip
    found = {
        name: "\n".join(line for line in result.stdout.split("fatal: [") if line.startswith(f"{name}]"))
        for name in hosts
    }
    return found | {"": result.stdout}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal(host: Host, refused: dict[str, str], case: str) -> None:
    """What cannot work is refused with its ID."""
    assert f"{case.partition(' ')[0]}: " in refused[as_host(case)], refused[""]


@pytest.mark.parametrize("case", ALONE)
def test_refusal_alone(host: Host, converge: Converge, case: str) -> None:
    """Likewise, before anything changes."""
    before = host.check_output(f"cat {STATE_FILES}")
    result = converge("--tags", "sensor_gateway_preflight", **ALONE[case])
    assert result.returncode != 0
    assert f"{case}: " in result.stdout
    assert host.check_output(f"cat {STATE_FILES}") == before


def test_port_of_another_process(host: Host, converge: Converge) -> None:
    """SG-106 names the process that has the port; the gateway's own listener is no reason to refuse."""
    with listener_on(host, 8884):
        result = converge("--tags", "sensor_gateway_preflight", sensor_gateway_device_port=8884)
    assert result.returncode != 0
    assert "SG-106: " in result.stdout
    assert "socat" in result.stdout
    assert converge("--tags", "sensor_gateway_preflight").returncode == 0


@pytest.mark.skipif("FIELDRING_TEST_FULL" not in os.environ, reason="six runs of the role: make test-full")
@pytest.mark.timeout(900)
def test_mosquitto_and_back(
    host: Host, converge: Converge, device: Callable[..., Device], upstream: Callable[[], None]
) -> None:
    """The other listener: its traps are closed, and nothing stays behind in it.

    One test, because each way costs a run of the role.
    """
    result = converge(sensor_gateway_listener="mosquitto")
    assert result.returncode == 0, result.stdout
    assert "changed=0 " in converge(sensor_gateway_listener="mosquitto").stdout
    assert not host.socket(f"tcp://{ADDRESS}:1883").is_listening
    assert host.socket("tcp://127.0.0.1:1883").is_listening
    for name in ("fieldring-forwarder", "forwarder", GATEWAY):
        device("park", client_id=name).measure(9)
    eventually(lambda: is_ready(host))

    # With its database lost and the forwarder down, not one acknowledged message is thrown away.
    host.check_output(f"systemctl stop {FORWARDER} mosquitto && rm /var/lib/mosquitto/mosquitto.db")
    host.check_output("systemctl start mosquitto")
    park = device("park")
    for number in range(2000, 2300):
        park.measure(number)
    park.wait_acknowledged()
    # It writes its database up to a second after the last message: the window that the README names.
    time.sleep(2.5)
    kill_hard(host, "mosquitto")

    result = converge(sensor_gateway_health_wait_seconds=6)
    assert "SG-203: " in result.stdout, result.stdout
    assert host.service("mosquitto").is_running
    host.check_output(f"systemctl start {FORWARDER}")
    eventually(lambda: is_ready(host))

    result = converge()
    assert result.returncode == 0, result.stdout
    assert not host.service("mosquitto").is_running
    assert not host.service("mosquitto").is_enabled
    assert "changed=0 " in converge().stdout
    upstream()
    eventually(lambda: not park.acknowledged - stored(host, "park"), seconds=120)
    assert len(park.acknowledged) == 300
