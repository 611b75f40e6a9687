"""Builds each process from its settings: the only place that knows which parts belong together.

Parts of other processes are imported inside their function, so that ``receive`` does not load Flask
nor the forwarder the Cassandra driver.
"""

from __future__ import annotations

import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldring.errors import ConfigurationError, StoreUnavailable
from fieldring.settings import Settings

if TYPE_CHECKING:
    import uvicorn

    from fieldring.accept import Acceptor
    from fieldring.drain import Drain
    from fieldring.http import TokenBook
    from fieldring.model import Store
    from fieldring.spool import Queue
    from fieldring.web.probes import Check, Metrics
    from fieldring.web.receive import Receive

__all__ = [
    "Receiving",
    "drain_spool",
    "forward",
    "run_analyse",
    "run_receive",
    "run_serve",
    "server_config",
    "tokens",
]

_log = logging.getLogger(__name__)

_BYTES_PER_POINT = 24.0
"""In a block, until this process has measured its own."""


def tokens(settings: Settings) -> TokenBook:
    """The tokens that the settings name."""
    from fieldring.http import TokenBook

    if not settings.tokens_file:
        raise ConfigurationError(
            "FIELDRING_TOKENS_FILE is not set: name a JSON list of {id, sha256, roles, sensors, gateway}"
        )
    return TokenBook(Path(settings.tokens_file))


class Receiving:
    """``receive`` with everything behind it. Closed in the order in which promises depend on it."""

    def __init__(self, settings: Settings) -> None:
        from fieldring.accept import Acceptor
        from fieldring.drain import Drain
        from fieldring.spool import adopt_orphans, open_worker
        from fieldring.store import open_store
        from fieldring.web.arrivals import ArrivalBook
        from fieldring.web.receive import Receive
        from fieldring.web.receive_metrics import ReceiveMetrics

        book = tokens(settings)
        self.settings = settings
        self.store: Store = open_store(settings)
        options = spool_options(settings)
        self.queue: Queue = open_worker(settings.spool_dir, settings.node_name, **options)
        # Adopted after our own is taken, or we would adopt that.
        orphans = adopt_orphans(settings.spool_dir, **options)
        for orphan in orphans:
            _log.info("adopted the spool %s with %d bytes", orphan.directory, orphan.pending_bytes)
        self.acceptor: Acceptor = Acceptor(self.store, self.queue, settings)
        pace: dict[str, Any] = {
            "delivered": self.acceptor.store_answered,
            "retry_max_s": settings.drain_retry_max_seconds,
            "backlog_bytes_per_second": settings.drain_backlog_bytes_per_second,
        }
        self.drains: list[Drain] = [
            Drain(self.queue, self.store, **pace),
            *(Drain(orphan, self.store, release=True, **pace) for orphan in orphans),
        ]
        self._orphans = orphans
        metrics = ReceiveMetrics()
        self.app: Receive = Receive(
            acceptor=self.acceptor,
            tokens=book,
            settings=settings,
            checks=self.checks,
            metrics=metrics,
            arrivals=ArrivalBook(self.store, node_name=settings.node_name),
        )
        self._measure(metrics)

    def start(self) -> None:
        for drain in self.drains:
            drain.start()

    def checks(self) -> Iterator[Check]:
        """Lines of ``/health``; nothing here may block, so they tell what was last seen."""
        from fieldring.web.probes import Check

        failing = self.acceptor.store_failing
        yield Check(
            "store", not failing, "the last write failed" if failing else "the last write went through"
        )
        refusing = self.acceptor.spool_failing
        waiting = (
            f"{self.queue.pending_records} records ({self.queue.pending_bytes} bytes) wait for the store"
        )
        yield Check("spool", not refusing, "refused a moment ago; " + waiting if refusing else waiting)
        errors = [drain.last_error for drain in self.drains if drain.last_error]
        yield Check("drain", not errors, errors[0] if errors else "goes on")

    def close(self) -> None:
        self.app.close()
        for drain in self.drains:
            drain.stop()
        for queue in (self.queue, *self._orphans):
            queue.close()
        self.store.close()

    def __enter__(self) -> Receiving:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _measure(self, metrics: Metrics) -> None:
        from fieldring.spool import Endurance

        queues = [self.queue, *self._orphans]

        def total(read: Callable[[Queue], float]) -> Callable[[], float]:
            return lambda: sum(map(read, queues))

        for name, text, read in (
            ("fieldring_spool_pending_bytes", "Bytes that wait for the store", lambda q: q.pending_bytes),
            (
                "fieldring_spool_pending_records",
                "Records that wait for the store",
                lambda q: q.pending_records,
            ),
            (
                "fieldring_spool_appended_records",
                "Records spooled since the start",
                lambda q: q.appended_records,
            ),
            ("fieldring_spool_refused_records", "Records refused since the start", lambda q: q.refused),
            ("fieldring_spool_dropped_records", "Records dropped by policy", lambda q: q.dropped_records),
        ):
            metrics.gauge(name, text, total(read))
        for name, text, count in (
            (
                "fieldring_drain_delivered_records",
                "Records moved to the store",
                lambda d: d.delivered_records,
            ),
            ("fieldring_drain_retries", "Times the drain had to wait", lambda d: d.retries),
            ("fieldring_drain_quarantined_records", "Records put aside", lambda d: d.quarantined_records),
        ):
            metrics.gauge(name, text, lambda count=count: sum(map(count, self.drains)))  # type: ignore[misc]
        metrics.gauge(
            "fieldring_store_up", "1 if the last write went through", lambda: not self.acceptor.store_failing
        )
        endurance = Endurance()

        def hours_left() -> float:
            # What goes to the store now is what the spool has to take when the ring is gone.
            acceptor, queue = self.acceptor, self.queue
            spooled = acceptor.spooled_points
            per_point = queue.appended_bytes / spooled if spooled else _BYTES_PER_POINT
            total = queue.appended_bytes + acceptor.stored_points * per_point
            return endurance.hours(total, room_bytes=queue.max_bytes - queue.pending_bytes)

        metrics.gauge(
            "fieldring_spool_hours_left",
            "Hours that the spool lasts without the ring, at the rate of the last ten minutes",
            hours_left,
        )
        metrics.gauge("fieldring_spool_max_bytes", "Room in the spool", total(lambda q: q.max_bytes))


def spool_options(settings: Settings) -> dict[str, Any]:
    """Options of ``spool.Queue``."""
    return {
        "segment_bytes": settings.spool_segment_bytes,
        "max_bytes": settings.spool_max_bytes,
        "full_policy": settings.spool_full_policy,
    }


def run_receive(settings: Settings) -> int:
    """Serve writes until SIGTERM or SIGINT."""
    with Receiving(settings) as receiving:
        # Batches are many small tuples that die young: rare, cheap collections.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        _serve_asgi(receiving.app, settings)
    return 0


def run_serve(settings: Settings) -> int:
    """Serve readings and pages until SIGTERM or SIGINT."""
    from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
    from gunicorn.glogging import Logger  # type: ignore[import-untyped]

    from fieldring.web.worker import ServeWorker

    book = tokens(settings)

    class Log(Logger):  # type: ignore[misc]
        def setup(self, cfg: Any) -> None:
            # Through our own handler, as JSON. Requests are counted, not logged.
            self.error_log.propagate = True
            self.error_log.setLevel(logging.INFO)
            self.access_log.disabled = True

    class Serving(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            self.cfg.set("bind", f"{settings.listen_host}:{settings.listen_port}")
            self.cfg.set("workers", 1)
            self.cfg.set("worker_class", ServeWorker)
            self.cfg.set("threads", settings.serve_threads)
            self.cfg.set("timeout", 0)
            self.cfg.set("graceful_timeout", 20)
            self.cfg.set("keepalive", 75)
            # Names may have 4,096 bytes, three times that when they are escaped, and a cursor carries one.
            self.cfg.set("limit_request_line", 0)
            self.cfg.set("control_socket_disable", True)
            self.cfg.set("logger_class", Log)
            self.cfg.set("worker_tmp_dir", "/dev/shm" if Path("/dev/shm").is_dir() else None)

        def load(self) -> Any:
            # In the worker, after its fork: the driver's session must not be shared.
            return serve_app(settings, book=book)

    Serving().run()
    return 0


def serve_app(settings: Settings, *, book: TokenBook | None = None) -> Any:
    """The Flask application of ``serve``."""
    from fieldring.store import open_store
    from fieldring.web.serve import create_app

    return create_app(store=open_store(settings), tokens=book or tokens(settings), settings=settings)


def run_analyse(settings: Settings) -> int:
    """Judge until SIGTERM or SIGINT, with probes and metrics over HTTP beside it."""
    from fieldring.analyse import Worker
    from fieldring.quality import RulesFile
    from fieldring.store import open_store
    from fieldring.web.probes import Metrics, Probes

    book = tokens(settings)
    store = open_store(settings)
    worker = Worker(
        store,
        RulesFile(settings.rules_file),
        owner=settings.node_name,
        shards=settings.mark_shards,
        interval_s=settings.analyse_interval_seconds,
        closes_after_s=settings.cassandra_request_timeout_ms / 1_000 + settings.analyse_skew_seconds,
        mark_ttl_s=settings.mark_ttl_days * 86_400,
    )

    class Analysing(Probes):
        def ready(self) -> bool:
            return thread.is_alive()

    app = Analysing(
        tokens=book,
        metrics=Metrics(worker.metrics.registry),
        trusted=settings.metrics_trusted_header,
    )
    thread = threading.Thread(target=worker.run, name="analyse")
    thread.start()
    try:
        _serve_asgi(app, settings)
    finally:
        worker.stop()
        thread.join(20)
        store.close()
    return 0


def forward(settings: Settings) -> int:
    """Run the gateway's forwarder until SIGTERM or SIGINT."""
    from fieldring.gateway.forwarder import run

    return run(settings)


def drain_spool(settings: Settings, *, progress: Callable[[str], None]) -> int:
    """Empty every spool directory that no running worker holds, once. 1 if the store cannot take it."""
    from fieldring.drain import Drain
    from fieldring.spool import adopt_orphans
    from fieldring.store import open_store

    store = open_store(settings)
    status = 0
    try:
        queues = adopt_orphans(settings.spool_dir, **spool_options(settings))
        if not queues:
            progress("nothing to drain: every spool directory is empty or held by a running worker")
        for queue in queues:
            before = queue.pending_records
            drain = Drain(queue, store)
            try:
                drain.run_once(
                    progress=lambda left, queue=queue: progress(f"{queue.directory}: {left} records left")  # type: ignore[misc]
                )
            except StoreUnavailable as error:
                progress(f"{queue.directory}: {before - queue.pending_records} of {before} records: {error}")
                status = 1
            else:
                progress(f"{queue.directory}: {drain.delivered_records} records are stored")
            if drain.quarantined_records:
                progress(
                    f"{queue.directory}: {drain.quarantined_records} records cannot be stored; "
                    f"they are kept in {queue.directory / 'quarantine'}"
                )
                status = 1
            # Goes only where nothing is left: records and quarantine keep their directory.
            queue.close(remove=True)
    finally:
        store.close()
    return status


def server_config(app: Any, settings: Settings) -> uvicorn.Config:
    """How every ASGI application of ours is served."""
    import uvicorn

    from fieldring.http.protocol import LimitedProtocol
    from fieldring.web.whole_writes import WholeWriteProtocol

    # Queries may carry tokens. Its own switch only takes the handlers away that it finds now.
    logging.getLogger("uvicorn.access").disabled = True
    return uvicorn.Config(
        app,
        host=settings.listen_host,
        port=settings.listen_port,
        http=WholeWriteProtocol if hasattr(app, "write_whole") else LimitedProtocol,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=20,
    )


def _serve_asgi(app: Any, settings: Settings) -> None:
    import uvicorn

    # Uvicorn stops on these, and then raises them again to whoever had them before: by default that
    # would end the process before spool and store are closed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    uvicorn.Server(server_config(app, settings)).run()
