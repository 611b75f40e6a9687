"""Waits until the forwarder, which reads a broker that devices cannot reach any more, gets nothing new.

Arguments: URL of the forwarder's status, seconds. Exits with 1 and the reason if that does not happen.
"""

from __future__ import annotations

import sys
import time
import urllib.request

_QUIET_SECONDS = 3.0


def metrics(url: str) -> dict[str, float]:
    """Series without labels."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs if "{" not in name}


def main() -> int:
    """Connected, and no message for some seconds."""
    url, patience_s = sys.argv[1], float(sys.argv[2])
    end = time.monotonic() + patience_s
    seen, since, reason = -1.0, time.monotonic(), "it was never connected to mosquitto"
    while time.monotonic() < end:
        try:
            found = metrics(url)
        except OSError as error:
            found, reason = {}, f"it does not answer on {url}: {error}"
        received = found.get("fieldring_forwarder_messages_acknowledged_total", -1.0)
        if not found.get("fieldring_forwarder_mqtt_up") or received != seen:
            if found:
                connected = found.get("fieldring_forwarder_mqtt_up")
                reason = "messages still come" if connected else "it is not connected"
            seen, since = received, time.monotonic()
        elif time.monotonic() - since > _QUIET_SECONDS:
            return 0
        time.sleep(0.2)
    print(f"{reason} (waited {patience_s:.0f} s)", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
