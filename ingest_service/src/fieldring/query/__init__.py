"""Reading: points with their flags, sensors, cursors, gaps of gateways.

This room reads through the Store protocol only and knows no HTTP: it takes parsed questions and gives
back iterators of the model's types.
"""

from fieldring.query.cursor import Position
from fieldring.query.cursor import decode as decode_cursor
from fieldring.query.cursor import encode as encode_cursor
from fieldring.query.gaps import EpochGaps, Gap, gaps_of
from fieldring.query.points import Page, PointsQuery, page, stream
from fieldring.query.times import format_time, parse_time

__all__ = [
    "EpochGaps",
    "Gap",
    "Page",
    "PointsQuery",
    "Position",
    "decode_cursor",
    "encode_cursor",
    "format_time",
    "gaps_of",
    "page",
    "parse_time",
    "stream",
]
