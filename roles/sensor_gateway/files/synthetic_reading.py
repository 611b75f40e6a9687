"""Sends one reading as a device would and waits until it can be read back. Runs in the gateway's venv.

Reads its arguments, secrets among them, as one JSON object from stdin; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time

import paho.mqtt.client as mqtt

from fieldring.client import Client, RequestFailed

METRIC = "acceptance"
CA = "/etc/fieldring/tls/ca.pem"


def main() -> int:
    """Publish, wait for the broker's acknowledgement, then for the value out of the HTTP API."""
    given = json.load(sys.stdin)
    device, timeout_s = given["device"], float(given["timeout_seconds"])
    now_ms = int(time.time() * 1000)
    value = now_ms % 1_000_000 / 8
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"acceptance-{now_ms}")
    client.username_pw_set(device, given["password"])
    client.tls_set(ca_certs=CA)
    client.connect(given["address"], int(given["port"]))
    client.loop_start()
    started = time.monotonic()
    pack = [{"bn": f"{device}:", "n": METRIC, "t": now_ms / 1000, "v": value}]
    message = client.publish(f"sensors/{device}/senml", json.dumps(pack), qos=1)
    message.wait_for_publish(timeout=timeout_s)
    if not message.is_published():
        print(f"the broker did not acknowledge the reading within {timeout_s} s", file=sys.stderr)
        return 1
    acknowledged_s = time.monotonic() - started
    client.disconnect()
    client.loop_stop()

    reason = "it is not there"
    url = given["url"]
    with Client(url, token=given["read_token"], ca_file=CA, retry_for_s=0) as api:
        while time.monotonic() - started < timeout_s:
            try:
                found = list(api.read(device, metric=METRIC, start=now_ms, end=now_ms + 1))
            except RequestFailed as error:
                reason, found = str(error), []
            if [reading.value for reading in found] == [value]:
                readable_s = time.monotonic() - started
                print(
                    json.dumps(
                        {"acknowledged_s": round(acknowledged_s, 3), "readable_s": round(readable_s, 3)}
                    )
                )
                return 0
            time.sleep(0.2)
    print(
        f"acknowledged by the broker, but not readable at {url} after {timeout_s} s: {reason}."
        " See the forwarder's /metrics and journal.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
