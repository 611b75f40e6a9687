"""Feeds three years of real measurements into the lab and reads every value back.

Meteorology goes over MQTT through the gateway as a sensor would send it (SenML, one message a day),
NO2 goes over HTTPS with InfluxDB's own client. What is stored already is not sent again, but one value of
now always takes both ways. Exits with 1 when a value is missing or differs.

The data set (hourly NO2, wind and air temperature of 2001-2003, with its gaps) comes from the
package ``aqeval``; only its data file is read.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import json
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import paho.mqtt.client as mqtt
from influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS

HTTP_SENSOR = "lab-no2"
HTTP_METRICS = {"no2": "no2", "bg.no2": "bg_no2"}
MQTT_METRICS = {"ws": "wind_speed", "wd": "wind_direction", "air_temp": "temperature"}
HTTP_BATCH = 2_000
ARRIVAL_TIMEOUT_S = 120
DAY_MS = 86_400_000
FIRST_DAY, LAST_DAY = 11_323, 12_417
"""2001-01-01 and 2003-12-31 as days since 1970-01-01."""
DAYS_AT_ONCE = 90
FLAGS = {"1": "good", "2": "not evaluated yet", "3": "suspect", "4": "fail", "9": "missing"}

Series = dict[tuple[int, str], float]
"""(epoch ms, metric) → value."""
Stored = dict[tuple[int, str], tuple[float, str]]
"""(epoch ms, metric) → value and flag, as read back."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"feed | {text}", flush=True)


def read_environment(path: Path) -> dict[str, str]:
    """KEY=VALUE lines of ``endpoints.env``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def measurements(columns: dict[str, str]) -> Series:
    """The data set's values of ``columns`` (name in the file → metric); gaps are left out."""
    spec = importlib.util.find_spec("aqeval")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "feed | the package aqeval is not installed: run make lab, which installs it into .venv"
        )
    source = Path(spec.submodule_search_locations[0]) / "data" / "aq_data.csv.gz"
    series: Series = {}
    with gzip.open(source, "rt", newline="") as file:
        for row in csv.DictReader(file):
            moment = datetime.fromisoformat(row["date"]).replace(tzinfo=UTC)
            for column, metric in columns.items():
                if row[column] not in ("", "NA"):
                    series[int(moment.timestamp()) * 1000, metric] = float(row[column])
    return series


def by_day(series: Series) -> Iterator[list[tuple[int, str, float]]]:
    """Values in groups of one UTC day, in time order."""
    group: list[tuple[int, str, float]] = []
    for (time_ms, metric), value in sorted(series.items()):
        if group and group[0][0] // DAY_MS != time_ms // DAY_MS:
            yield group
            group = []
        group.append((time_ms, metric, value))
    if group:
        yield group


def publish(series: Series, environment: dict[str, str], ca: Path) -> tuple[int, float]:
    """Publish ``series`` at QoS 1; returns the number of acknowledged messages and the seconds it took."""
    sensor = environment["FIELDRING_FEED_MQTT_USER"]
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"feed-{sensor}")
    client.username_pw_set(sensor, environment["FIELDRING_FEED_MQTT_PASSWORD"])
    client.tls_set(ca_certs=str(ca), tls_version=ssl.PROTOCOL_TLS_CLIENT)
    client.max_inflight_messages_set(20)
    connected = threading.Event()
    refusal: list[str] = []

    def on_connect(
        _client: mqtt.Client, _data: object, _flags: object, reason: mqtt.ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            refusal.append(str(reason))
        connected.set()

    client.on_connect = on_connect
    client.connect(environment["FIELDRING_MQTT_HOST"], int(environment["FIELDRING_MQTT_PORT"]), keepalive=30)
    client.loop_start()
    if not connected.wait(20) or refusal:
        raise SystemExit(f"feed | the gateway refuses the sensor {sensor}: {refusal or 'no answer in 20 s'}")
    started = time.monotonic()
    messages = []
    for group in by_day(series):
        pack: list[dict[str, object]] = [
            {"n": metric, "t": time_ms / 1000, "v": value} for time_ms, metric, value in group
        ]
        pack[0]["bn"] = f"{sensor}:"
        messages.append(client.publish(f"sensors/{sensor}/senml", json.dumps(pack), qos=1))
    for message in messages:
        message.wait_for_publish(timeout=60)
    acknowledged = sum(message.is_published() for message in messages)
    elapsed = time.monotonic() - started
    client.disconnect()
    client.loop_stop()
    if acknowledged != len(messages):
        raise SystemExit(f"feed | the gateway acknowledged {acknowledged} of {len(messages)} messages")
    return len(messages), elapsed


def write(series: Series, environment: dict[str, str], ca: Path) -> tuple[int, float]:
    """Write ``series`` with InfluxDB's client; returns the number of requests and the seconds it took."""
    lines = [
        f"{metric},sensor={HTTP_SENSOR} value={value!r} {time_ms}"
        for (time_ms, metric), value in sorted(series.items())
    ]
    started = time.monotonic()
    requests = 0
    with InfluxDBClient(
        url=environment["FIELDRING_URL"],
        token=environment["FIELDRING_WRITE_TOKEN"],
        org="fieldring",
        ssl_ca_cert=str(ca),
        enable_gzip=True,
    ) as client:
        api = client.write_api(write_options=SYNCHRONOUS)
        for start in range(0, len(lines), HTTP_BATCH):
            api.write(bucket="lab", record="\n".join(lines[start : start + HTTP_BATCH]), write_precision="ms")
            requests += 1
    return requests, time.monotonic() - started


def read(sensor: str, first_day: int, last_day: int, environment: dict[str, str], ca: Path) -> Stored:
    """Every stored point of ``sensor`` of these days."""
    parameters = {
        "sensor": sensor,
        "start": f"{datetime.fromtimestamp(first_day * 86_400, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "end": f"{datetime.fromtimestamp((last_day + 1) * 86_400, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "format": "csv",
    }
    with httpx.stream(
        "GET",
        environment["FIELDRING_URL"] + "/v1/points",
        params=parameters,
        headers={"Authorization": f"Bearer {environment['FIELDRING_READ_TOKEN']}"},
        verify=ssl.create_default_context(cafile=str(ca)),
        timeout=60,
    ) as answer:
        if answer.status_code == 404:
            return {}
        if answer.status_code != 200:
            answer.read()
            raise SystemExit(f"feed | reading {sensor} answers {answer.status_code}: {answer.text[:300]}")
        return {
            (round(datetime.fromisoformat(row["time"]).timestamp() * 1000), row["metric"]): (
                float(row["value"]),
                row["flag"],
            )
            for row in csv.DictReader(answer.iter_lines())
        }


def follow(sensor: str, sent: Series, environment: dict[str, str], ca: Path) -> Stored:
    """Read ``sent`` back in the order of its days as they arrive; ends when nothing more does."""
    by_days: dict[int, Series] = {}
    for (time_ms, metric), value in sorted(sent.items()):
        by_days.setdefault(time_ms // DAY_MS, {})[time_ms, metric] = value
    days = list(by_days)
    stored: Stored = {}
    position, since, said = 0, time.monotonic(), time.monotonic()
    while position < len(days):
        window = days[position : position + DAYS_AT_ONCE]
        found = read(sensor, window[0], window[-1], environment, ca)
        stored |= found
        arrived = 0
        for day in window:
            if any(found.get(key, (None,))[0] != value for key, value in by_days[day].items()):
                break
            arrived += 1
        position += arrived
        # A slow machine is no loss: only values that stop arriving are.
        if arrived:
            since = time.monotonic()
        elif time.monotonic() - since > ARRIVAL_TIMEOUT_S:
            break
        if arrived < len(window):
            time.sleep(1)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            say(f"{sensor}: {position} of {len(days)} days are read back")
    return stored


def compare(name: str, sent: Series, stored: Stored) -> bool:
    """Print what was sent and read back; True when every value is there and equal."""
    missing = [key for key in sent if key not in stored]
    different = [key for key, value in sent.items() if key in stored and value != stored[key][0]]
    say(
        f"{name}: sent {len(sent)}, read back {len(sent) - len(missing)}, equal"
        f" {len(sent) - len(missing) - len(different)}, missing {len(missing)}, different {len(different)}"
    )
    for key in (missing + different)[:5]:
        say(f"{name}:   at {key[0]} {key[1]}: sent {sent[key]!r}, stored {stored.get(key)!r}")
    return not missing and not different


def main() -> int:
    """Feed what is not stored yet, wait for the gateway to deliver, read back and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoints", type=Path, default=Path(".lab/endpoints.env"))
    arguments = parser.parse_args()
    environment = read_environment(arguments.endpoints)
    ca = Path(environment["FIELDRING_CA"])

    mqtt_sensor = environment["FIELDRING_FEED_MQTT_USER"]
    now_ms = int(time.time() * 1000)
    fed: dict[str, tuple[Series, Stored, Series]] = {}
    for sensor, columns in ((mqtt_sensor, MQTT_METRICS), (HTTP_SENSOR, HTTP_METRICS)):
        series = measurements(columns)
        stored = read(sensor, FIRST_DAY, LAST_DAY, environment, ca)
        new = {key: value for key, value in series.items() if stored.get(key, (None,))[0] != value}
        if len(new) < len(series):
            say(f"{sensor}: {len(series) - len(new)} of {len(series)} values are stored already and equal")
        # Always one that cannot have been there, so that the way itself is shown.
        live = {(now_ms, next(iter(columns.values()))): now_ms % 100_000 / 10_000}
        fed[sensor] = (series | live, stored, new | live)

    new = fed[mqtt_sensor][2]
    messages, seconds = publish(new, environment, ca)
    say(f"{mqtt_sensor}: {len(new)} values in {messages} MQTT messages acknowledged in {seconds:.1f} s")
    new = fed[HTTP_SENSOR][2]
    requests, seconds = write(new, environment, ca)
    say(f"{HTTP_SENSOR}: {len(new)} values in {requests} HTTPS requests stored in {seconds:.1f} s")

    complete = True
    flags: Counter[str] = Counter()
    for sensor, way in ((mqtt_sensor, "MQTT"), (HTTP_SENSOR, "HTTPS")):
        series, stored, new = fed[sensor]
        stored = stored | follow(sensor, new, environment, ca)
        complete = compare(f"{sensor} over {way}", series, stored) and complete
        flags.update(stored[key][1] for key in series if key in stored)
    say("flags so far: " + ", ".join(f"{count} {FLAGS[flag]}" for flag, count in sorted(flags.items())))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
