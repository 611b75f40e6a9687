"""The gateway's forwarder: messages of local devices in, blocks to the ingest hosts out.

::

    mosquitto ──▶ listener ──▶ inbox ──▶ spool (fdatasync) ──▶ sender ──▶ upstream /api/v1/block
                     ▲           │                               │
                     └── PUBACK ─┘ only after the spool has it   └─ 4xx ▶ dead letters

May use ``wire``, ``spool`` and what lies below; never a store: what a point means upstream is not
the gateway's business. It refuses nothing for its age either, that is checked once, upstream.
"""

from fieldring.gateway.forwarder import Forwarder, run

__all__ = ["Forwarder", "run"]
