"""Bytes to model and back: one module per format.

This room may not read a clock, a file or a socket: what time it is comes in as ``now_ms``.
Whatever the bytes, a decoder returns ``Decoded`` or raises a ``ClientError``; ``block``
raises ``CorruptionError``.
"""

from fieldring.wire.decoded import Decoded

__all__ = ["Decoded"]
