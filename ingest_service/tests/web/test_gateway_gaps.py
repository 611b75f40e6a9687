"""From the forwarder's spool over a real ``receive`` to the reader who asks what never arrived."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from receiving import Service, wait_until

from fieldring.gateway.dead_letter import DeadLetters
from fieldring.gateway.metrics import Metrics
from fieldring.gateway.sender import Sender
from fieldring.gateway.upstream import Upstreams
from fieldring.http.tokens import TokenBook
from fieldring.model import Batch, Row
from fieldring.settings import Settings
from fieldring.spool import Queue
from fieldring.web.serve import create_app
from fieldring.wire import block

T = 1_700_000_000_000


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.close()


def gaps(
    service: Service, directory: Path, *, gateway: str = "gateway1", token: str = "reader"
) -> tuple[int, dict]:  # type: ignore[type-arg]
    app = create_app(
        store=service.store, tokens=TokenBook(directory / "tokens.json"), settings=Settings(site="valley")
    )
    answer = app.test_client().get(
        f"/v1/gateways/{gateway}/gaps", headers={"Authorization": f"Token {token}"}
    )
    return answer.status_code, json.loads(answer.text)


def test_what_a_full_spool_dropped_is_named(service: Service, tmp_path: Path) -> None:
    """A gateway without room drops its oldest blocks; the reader learns which, and that they are lost."""
    queue = Queue(tmp_path / "gateway", segment_bytes=8_192, max_bytes=32_768, full_policy="drop_oldest")
    batch = Batch(received=T * 1000)
    batch.append(Row("a", T, ("note",), ("x" * 1_000,)))
    for _ in range(60):
        queue.append(block.encode(batch))
    assert queue.dropped_records > 0
    first = queue.position + 1
    metrics, stop = Metrics(), threading.Event()
    upstreams = Upstreams(
        [service.url], ca_file="", token=lambda: "gate", timeout_s=20, retry_max_s=0.1, gzip_min_bytes=0,
        metrics=metrics, stop=stop,
    )  # fmt: skip
    letters = DeadLetters(tmp_path / "dead", max_bytes=10_000, metrics=metrics)
    sender = Sender(queue, upstreams, gateway="gateway1", dead_letters=letters, metrics=metrics, stop=stop)
    sender.start()
    wait_until(lambda: queue.pending_records == 0, seconds=60)
    stop.set()
    sender.wake()
    sender.join(10)
    upstreams.close()
    status, found = gaps(service, tmp_path)
    assert status == 200
    (epoch,) = found["epochs"]
    assert epoch["epoch"] == str(queue.identity)
    assert (epoch["last"], epoch["missing"]) == (60, first - 1)
    assert epoch["gaps"] == [{"first": 1, "last": first - 1, "count": first - 1, "state": "lost"}]
    queue.close()


def test_who_may_ask(service: Service, tmp_path: Path) -> None:
    """A read token; a gateway that was never heard of is not found."""
    assert gaps(service, tmp_path)[0] == 404
    assert gaps(service, tmp_path, token="writer")[0] == 403
    assert gaps(service, tmp_path, token="nobody")[0] == 401


def test_block_that_did_not_arrive_is_no_arrival(service: Service, tmp_path: Path) -> None:
    """A damaged block is refused and stays a gap; one of which a line was refused has arrived."""
    headers = {"Authorization": "Token gate", "Content-Type": block.CONTENT_TYPE}
    batch = Batch(received=T * 1000)
    batch.append(Row("a", T, ("no2",), (1.0,)))
    old = Batch(received=T * 1000)
    old.append(Row("a", -1, ("no2",), (1.0,)))
    bodies = {1: block.encode(batch), 2: b"junk", 3: block.encode(old), 4: block.encode(batch)}
    answers = {
        seq: service.http.post(
            "/api/v1/block",
            content=body,
            headers={
                **headers,
                "Fieldring-Source": f"gateway1;epoch=7;seq={seq};count=1",
                "Fieldring-Oldest": "2",
            },
        ).status_code
        for seq, body in bodies.items()
    }
    assert answers == {1: 204, 2: 400, 3: 400, 4: 204}
    (epoch,) = gaps(service, tmp_path)[1]["epochs"]
    assert epoch["gaps"] == [{"first": 2, "last": 2, "count": 1, "state": "pending"}]
