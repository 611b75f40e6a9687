"""What devices were told is kept: one line per acknowledged number, fsynced before the next is counted.

``publish`` is also a program of its own, so that the ledger does not die with what is under test::

    python ledger.py PORT CA FILE DEVICES RATE SECONDS
"""

from __future__ import annotations

import os
import ssl
import sys
import threading
import time
from collections import deque
from pathlib import Path

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

__all__ = ["Ledger", "Publisher", "read"]


class Ledger:
    """Numbers by device; group fsync in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self._waiting: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.count = 0

    def acknowledged(self, device: str, number: int) -> None:
        with self._lock:
            self._waiting.append(f"{device} {number}\n")

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.flush()

    def flush(self) -> None:
        with self._lock:
            lines, self._waiting = self._waiting, []
        if lines:
            self._file.writelines(lines)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.count += len(lines)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.flush()
        self._file.close()


def read(path: Path) -> set[tuple[str, int]]:
    """All acknowledged (device, number)."""
    entries = (line.split() for line in path.read_text().splitlines())
    return {(device, int(number)) for device, number in entries}


class Publisher:
    """One device that publishes numbers at QoS 1 and never gives up."""

    def __init__(self, name: str, port: int, *, ca: Path | None, ledger: Ledger) -> None:
        self.name = name
        self._ledger = ledger
        self._numbers: dict[int, int] = {}
        # Filled by paho's thread, which may be earlier than `_numbers`.
        self._answers: deque[int] = deque()
        self.answered = 0
        client = Client(CallbackAPIVersion.VERSION2, client_id=f"{name}-1", clean_session=False)
        client.username_pw_set(name, f"password of {name}")
        if ca is not None:
            client.tls_set_context(ssl.create_default_context(cafile=str(ca)))
        client.max_inflight_messages_set(200)
        client.max_queued_messages_set(0)
        client.reconnect_delay_set(1, 1)
        client.on_publish = lambda _c, _d, mid, _r, _p: self._answers.append(mid)
        self._client = client
        end = time.monotonic() + 30
        while True:
            try:
                client.connect("127.0.0.1", port, keepalive=30)
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        client.loop_start()

    def publish(self, number: int, text: str = "") -> None:
        """From one thread only, which also looks at ``waiting`` now and then."""
        text = text or f"no2,sensor={self.name} value={number} {number * 1_000_000}"
        self._numbers[self._client.publish(f"sensors/{self.name}/lp", text, qos=1).mid] = number

    @property
    def waiting(self) -> int:
        """How many are not acknowledged yet; those that are stand in the ledger."""
        while self._answers:
            self._ledger.acknowledged(self.name, self._numbers.pop(self._answers.popleft()))
            self.answered += 1
        return len(self._numbers)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def main() -> int:
    """Publish at a rate; end at once on SIGTERM, what was not acknowledged by then is not in the ledger."""
    port, ca, path, names, rate, seconds = sys.argv[1:7]
    ledger = Ledger(Path(path))
    publishers = [
        Publisher(name, int(port), ca=Path(ca) if ca else None, ledger=ledger) for name in names.split(",")
    ]
    print("connected", flush=True)
    began = time.monotonic()
    sent = 0
    while (passed := time.monotonic() - began) < float(seconds):
        while sent < passed * float(rate):
            sent += 1
            publishers[sent % len(publishers)].publish(sent)
        for one in publishers:
            _ = one.waiting
        time.sleep(0.002)
    end = time.monotonic() + 60
    while any(one.waiting for one in publishers) and time.monotonic() < end:
        time.sleep(0.01)
    left = sum(one.waiting for one in publishers)
    for one in publishers:
        one.close()
    ledger.close()
    print(f"{sent} {sent - left}", flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
