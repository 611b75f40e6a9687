"""Line protocol: what is understood, what is refused, and that no bytes get through in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldring.errors import InvalidRequest
from fieldring.model import PackedBatch, Row
from fieldring.wire import block, line_protocol
from fieldring.wire.decoded import Decoded

NOW = 1_700_000_000_123


def decode(body: bytes | str, precision: str = "ms", series_tags: tuple[str, ...] = ()) -> Decoded:
    raw = body.encode() if isinstance(body, str) else body
    return line_protocol.decode(raw, precision=precision, now_ms=NOW, series_tags=series_tags)


def rows(body: bytes | str, **options: object) -> list[Row]:
    decoded = decode(body, **options)  # type: ignore[arg-type]
    assert decoded.errors == ()
    return list(decoded.batch.rows())


@pytest.mark.parametrize(
    ("situation", "line", "expected"),
    [
        ("sensor tag", "air,sensor=a,room=1 no2=1 5", ("a", "air_no2")),
        ("sensor before sensor_id and node", "air,node=n,sensor_id=i,sensor=a no2=1 5", ("a", "air_no2")),
        ("sensor_id before node", "air,node=n,sensor_id=i no2=1 5", ("i", "air_no2")),
        ("node", "air,node=n no2=1 5", ("n", "air_no2")),
        ("field value leaves the measurement", "no2,sensor=a value=1 5", ("a", "no2")),
        ("host keeps its tags apart", "cpu,host=h,z=2,cpu=0 idle=1 5", ("h", "cpu_idle{cpu=0,z=2}")),
        ("host alone", "cpu,host=h idle=1 5", ("h", "cpu_idle")),
        ("sensor before host", "cpu,host=h,sensor=a idle=1 5", ("a", "cpu_idle")),
        ("no naming tag", "cpu,z=2,a=1 idle=1 5", ("cpu,a=1,z=2", "cpu_idle")),
        ("no tag", "cpu idle=1 5", ("cpu", "cpu_idle")),
        ("composed names cannot be mistaken", r"cpu,a=1\,b\=2 idle=1 5", (r"cpu,a=1\,b\=2", "cpu_idle")),
        ("escapes in measurement", r"a\ b\,c,sensor=s value=1 5", ("s", "a b,c")),
        ("equals in measurement is plain", r"a=b,sensor=s value=1 5", ("s", "a=b")),
        ("escapes in tag", r"m,sensor=a\ b\,c\=d value=1 5", ("a b,c=d", "m")),
        ("escapes in field", r"m,sensor=s f\ g\,h\=i=1 5", ("s", "m_f g,h=i")),
        ("backslash that escapes nothing", r"m,sensor=a\b value=1 5", (r"a\b", "m")),
        ("quote in tag is plain", 'm,sensor="a" value=1 5', ('"a"', "m")),
        ("UTF-8", "lüft,sensor=süd value=1 5", ("süd", "lüft")),
    ],
)
def test_names(situation: str, line: str, expected: tuple[str, str]) -> None:
    """Sensor and metric follow the tags as the design says."""
    assert [Row(expected[0], 5, (expected[1],), (1.0,))] == rows(line), situation


def test_series_tags_stand_in_the_metric() -> None:
    """A tag named in series_tags distinguishes; the others stay attributes."""
    decoded = decode("air,sensor=a,height=2m,room=1 no2=1 5", series_tags=("height",))
    assert [("air_no2{height=2m}",)] == decoded.batch.layouts
    assert {"a": {"room": "1"}} == decoded.batch.attributes


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("1", 1.0),
        ("-1.5", -1.5),
        ("+1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("1.5E-3", 0.0015),
        ("007", 7.0),
        ("1i", 1.0),
        ("-9223372036854775808i", -(2.0**63)),
        ("9007199254740993i", 9007199254740992.0),
        ("18446744073709551615u", 2.0**64),
        *[(word, 1.0) for word in ("t", "T", "true", "True", "TRUE")],
        *[(word, 0.0) for word in ("f", "F", "false", "False", "FALSE")],
        ('""', ""),
        ('"a b,c=d"', "a b,c=d"),
        (r'"say \"hi\" \\ \n"', r'say "hi" \ \n'),
        ('"two\nlines"', "two\nlines"),
        ('"# no comment"', "# no comment"),
        ('"é"', "é"),
    ],
)
def test_value(raw: str, expected: float | str) -> None:
    """A value is read, first and when its line's names are already known."""
    line = f"m,sensor=a f={raw} 5"
    assert [expected] == [row.values[0] for row in rows(line)]
    assert [expected] == [row.values[0] for row in rows(f"m,sensor=a f=0 4\n{line}")[1:]]


@pytest.mark.parametrize(
    "raw",
    ["nan", "NaN", "inf", "-inf", "infinity", "1_0", "1e400", "0x10", "1.5i", "1ii", "-1u", "1 i", "١",
     "9223372036854775808i", "18446744073709551616u", "tRUE", "truee", "'a'", '"a', '"a"b', "", "--1", "1e",
     "1,2", "\t1", "1\x0b", '"' + "x" * 65_537 + '"'],
)  # fmt: skip
def test_value_refused(raw: str) -> None:
    """What is no finite number, boolean or string is refused alone, also when its names are known."""
    for before in ("", "m,sensor=a f=0 4\n", "m,sensor=a f=0,g=1 4\n"):
        decoded = decode(f"{before}m,sensor=a f={raw} 5\nm,sensor=b f=3 5")
        assert [1 + before.count("\n")] == [error.line for error in decoded.errors]
        assert ("b", 5, ("m_f",), (3.0,)) == list(decoded.batch.rows())[-1]
        two = decode(f"{before}m,sensor=a f=1,g={raw} 5\nm,sensor=b f=3 5")
        assert [1 + before.count("\n")] == [error.line for error in two.errors]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("m", "no field"),
        ("m ", "no field"),
        ("m,sensor=a", "no field"),
        (",sensor=a v=1", "no measurement"),
        ("m,sensor v=1", "expected tag=value"),
        ("m,=a v=1", "expected tag=value"),
        ("m,sensor= v=1", "has no value"),
        ("m,sensor=a,sensor=b v=1", "tag occurs twice"),
        ("m,sensor=a=b v=1", "expected a space"),
        ("m,sensor=a v", "expected field=value"),
        ("m,sensor=a =1", "expected field=value"),
        ("m,sensor=a v=", "has no value"),
        ("m,sensor=a v=1,", "no field"),
        ("m,sensor=a v=1,v=2", "occurs twice"),
        ("m,sensor=a v=1 x", "not a whole number"),
        ("m,sensor=a v=1 1.5", "not a whole number"),
        ("m,sensor=a v=1 1_0", "not a whole number"),
        ("m,sensor=a v=1 5 6", "not a whole number"),
        ("m,sensor=a v=1 " + "9" * 19, "out of range"),
        ('m,sensor=a v="x"y', "expected a comma or a space"),
        ("m,sensor=a\x01 v=1", "control character"),
        ("m,sensor=" + "a" * 5000 + " v=1", "longer than"),
    ],
)
def test_line_refused(line: str, reason: str) -> None:
    """A malformed line says what is wrong, and costs nothing else."""
    decoded = decode(f"# head\n\n{line}\nm,sensor=b v=1 5")
    assert [3] == [error.line for error in decoded.errors]
    assert reason in decoded.errors[0].reason
    assert ["b"] == decoded.batch.sensors


def test_invalid_utf8_is_refused_alone() -> None:
    """A line that is not UTF-8 is named; its neighbours are kept."""
    decoded = decode(b"m,sensor=\xff v=1 5\nm,sensor=b v=1 5")
    assert ["not valid UTF-8"] == [error.reason for error in decoded.errors]
    assert ["b"] == decoded.batch.sensors


@pytest.mark.parametrize(
    ("precision", "stamp", "expected"),
    [("n", 1_999_999, 1), ("ns", -1, -1), ("u", 1_999, 1), ("us", 1_999, 1), ("ms", 7, 7), ("s", 7, 7_000),
     ("m", 7, 420_000), ("h", 7, 25_200_000)],
)  # fmt: skip
def test_precision(precision: str, stamp: int, expected: int) -> None:
    """Times are taken to whole milliseconds, finer ones truncated downwards."""
    assert [expected] == [row.time_ms for row in rows(f"m,sensor=a v=1 {stamp}", precision=precision)]


def test_unknown_precision() -> None:
    """A precision that does not exist is an error of the request."""
    with pytest.raises(InvalidRequest, match="precision is 'd'"):
        decode("m v=1", precision="d")


def test_no_time_is_now() -> None:
    """A line without a time gets the time of receipt."""
    assert [NOW, NOW] == [row.time_ms for row in rows("m,sensor=a v=1\nm,sensor=b v=1 \r\n")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_comments_and_blank_lines_are_counted(end: str) -> None:
    """Line numbers count what the sender sees in the file, whatever the line ends."""
    decoded = decode(
        end.join(["# c", "", "m,sensor=a v=1 5", "  # c", "m,sensor=a v=x 6", "m,sensor=a v=3 7"])
    )
    assert [3, 6] == decoded.batch.lines
    assert [5] == [error.line for error in decoded.errors]


def test_lines_are_counted_over_a_string_with_line_breaks() -> None:
    """A string over three lines moves the count on by two."""
    decoded = decode('m,sensor=a v="1\n2\n3" 5\nm,sensor=a v=x 6')
    assert [4] == [error.line for error in decoded.errors]


def test_forgotten_quote_costs_its_own_line() -> None:
    """The next line is kept, although its first quote could close the string."""
    decoded = decode('m,sensor=a v="1 5\nm,sensor=b v="x" 5\nm,sensor=c v=1 5')
    assert [1] == [error.line for error in decoded.errors]
    assert ["b", "c"] == decoded.batch.sensors


def test_last_line_wins_and_is_counted() -> None:
    """Earlier rows keep only what no later line repeats."""
    decoded = decode("m,sensor=a x=1,y=1 5\nm,sensor=a x=2 5\nm,sensor=a x=3 5\nm,sensor=a x=4 6")
    assert [
        Row("a", 5, ("m_y",), (1.0,)),
        Row("a", 5, ("m_x",), (3.0,)),
        Row("a", 6, ("m_x",), (4.0,)),
    ] == list(decoded.batch.rows())
    assert 2 == decoded.batch.collapsed


def test_truncation_to_ms_collapses() -> None:
    """Two times within one millisecond are one key, counted."""
    decoded = decode("m,sensor=a x=1 1000001\nm,sensor=a x=2 1999999", precision="ns")
    assert [(1, (2.0,))] == list(zip(decoded.batch.times_ms, decoded.batch.values, strict=True))
    assert 1 == decoded.batch.collapsed


def test_lines_that_differ_in_attributes_only_are_ambiguous() -> None:
    """All of them are refused with a way out; others on the same instant are kept."""
    decoded = decode(
        "cpu,sensor=a,core=0 use=1 5\ncpu,sensor=a,core=1 use=2 5\n"
        "mem,sensor=a,bank=3 free=1 5\ncpu,sensor=a use=1 6"
    )
    assert [1, 2] == [error.line for error in decoded.errors]
    assert "series_tags" in decoded.errors[0].reason
    assert [("mem_free",), ("cpu_use",)] == decoded.batch.layouts
    assert {"a": {"bank": "3"}} == decoded.batch.attributes
    assert (
        () == decode("cpu,sensor=a,core=0 use=1 5\ncpu,sensor=a,core=1 use=2 5", series_tags=("core",)).errors
    )


def test_changed_attribute_is_recorded() -> None:
    """The last line of a sensor says what its attributes are now."""
    decoded = decode("m,sensor=a,room=1,k=v x=1 5\nm,sensor=a,room=2 x=1 6\nm,sensor=b x=1 6")
    assert {"a": {"room": "2", "k": "v"}} == decoded.batch.attributes


def test_names_that_explode_are_refused() -> None:
    """A long measurement with many fields in many lines does not become gigabytes of names."""
    fields = ",".join(f"{i}=1" for i in range(2000))
    body = "\n".join(f"{i}{'m' * 3000},sensor=a {fields} 5" for i in range(20))
    decoded = decode(body)
    assert any("too many different names" in error.reason for error in decoded.errors)


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    """Bytes are decoded or refused, never a crash."""
    decoded = decode(body)
    assert len(decoded.batch) + len(decoded.errors) <= body.count(b"\n") + 1


FRAGMENTS = st.lists(
    st.sampled_from(
        ["m", "air", ",", "sensor=a", "host=h", "t=1", " ", "=", "v=1", "w=2i", "1", "\\", '"', "\n", "\r\n",
         "#", "nan", "_", "t", "é", "5", "1_0", "\t", "m,sensor=a v=1 5\n", "m,sensor=a v=1,w=2 5\n", "v=",
         '"a"']
    ),
    max_size=40,
).map("".join)  # fmt: skip


@given(FRAGMENTS, st.integers(1, 30))
def test_pieces_give_the_same_lines(text: str, size: int) -> None:
    """Wherever it is cut, the same lines are understood or refused, also where strings hold line breaks."""
    body = text.encode()
    whole = decode(body)
    pieces = list(line_protocol.decode_in_pieces(body, precision="ms", now_ms=NOW, piece_bytes=size))
    ambiguous = {e.line for e in whole.errors if e.reason.startswith("ambiguous")}
    assert [e for e in whole.errors if e.line not in ambiguous] == [
        e for p in pieces for e in p.errors if e.line not in ambiguous
    ]
    assert set(whole.batch.lines) - ambiguous <= {n for p in pieces for n in p.batch.lines}


@given(FRAGMENTS, FRAGMENTS)
def test_what_was_seen_before_changes_nothing(first: str, second: str) -> None:
    """The fast paths give what the parser gives: decoding again, warm, yields the same."""
    line_protocol._learnt.clear()
    cold = decode(second)
    decode("m,sensor=a v=1 5\nm,sensor=a v=1,w=2 5\n" + first)
    assert cold == decode(second)


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=8),
            st.dictionaries(
                st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=5),
                st.floats(allow_nan=False, allow_infinity=False)
                | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
                min_size=1,
                max_size=4,
            ),
        ),
        max_size=8,
    )
)
def test_written_lines_come_back(lines: list[tuple[str, dict[str, float | str]]]) -> None:
    """What is escaped as InfluxDB's clients do is read back exactly."""

    def key(text: str) -> str:
        for special in ",= ":
            text = text.replace(special, "\\" + special)
        return text

    def value(v: float | str) -> str:
        if isinstance(v, float):
            return repr(v)
        return '"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"'

    # A backslash before a special character cannot be written in line protocol.
    lines = [(s, f) for s, f in lines if "\\" not in s and not any("\\" in k for k in f)]
    body = "\n".join(
        f"m,sensor={key(s)} {','.join(f'{key(k)}={value(v)}' for k, v in f.items())} {i}"
        for i, (s, f) in enumerate(lines)
    )
    expected = [
        Row(s, i, tuple("m" if k == "value" else f"m_{k}" for k in f), tuple(f.values()))
        for i, (s, f) in enumerate(lines)
    ]
    assert expected == rows(body)


def carefully(body: bytes, precision: str, series_tags: tuple[str, ...] = ()) -> Decoded:
    """As ``decode``, but every line goes through the parser itself."""
    decoder = line_protocol._Decoder(precision, NOW, series_tags, 1)
    position, count = 0, 1
    while position <= len(body):
        end = decoder._line(body, count, position)
        count += body.count(b"\n", position, end) + 1
        position = end + 1
    return decoder.result()


def same(first: Decoded, second: Decoded) -> bool:
    """Equal, the sign of zero included, which == does not see."""
    return repr(first) == repr(second)


def same_but_for_reasons(first: Decoded, second: Decoded) -> bool:
    return repr(first.batch) == repr(second.batch) and [e.line for e in first.errors] == [
        e.line for e in second.errors
    ]


HEADS = [
    "m,sensor=a",
    "m,sensor=b",
    "m,sensor=a,room=1",
    "m,sensor=a,room=2",
    "n,sensor=c",
    "cpu,host=h,cpu=0",
]
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["0", "-0", "-0.0", "-0e3", "0.1e5", "1E5", "5e-324", "1e-400", "12.50", "-0.5"]),
)
ODD = st.sampled_from(
    ["1_0", "nan", "inf", "007", "+1", ".5", "5.", "1i", "2u", "t", "1e400", "", '"text"', "-", "1,v=2"]
) | st.sampled_from(["1,w=2", "1 5", " 1", "[1]", "null", "1\r"])
STAMPS = st.one_of(
    st.integers(0, 40).map(str),
    st.integers(-(2**64), 2**64).map(str),
    st.sampled_from(["0", "-0", "+5", "007", "1.0", "1e3", "1_0", "", " 5", "5 ", "5 6", "9" * 19]),
    st.sampled_from(["1" + "0" * 19, "0" * 19 + "5", "9223372036854775807", "-9223372036854775808"]),
)
ODD_FIELDS = st.sampled_from(["1", "=1", "u=1", "v=1,w=2", "w=2,v=1", "v", "v=1,", ",v=1", "v==1"])
ODD_HEADS = st.sampled_from(["#m,sensor=a", "m", r"m,sensor=a\ b", "m,sensor", 'm,sensor="a"', "é"])


@st.composite
def uniform_bodies(draw: st.DrawFn) -> bytes:
    """Enough lines of one kind to be taken as columns, with an odd part here and there."""
    heads = draw(st.lists(st.sampled_from(HEADS), min_size=1, max_size=4))
    names = draw(st.sampled_from([["v"], ["value"], ["v", "w"], ["w", "v", "u"], ["v", "v"]]))
    step = draw(st.sampled_from([0, 1, 1, 1_000_000]))
    start = draw(st.sampled_from([0, 95, 1_700_000_000_000, 1_700_000_000_000_000_000]))
    count = draw(st.integers(15, 40))
    values = draw(st.lists(NUMBERS, min_size=1, max_size=6))
    lines = []
    for index in range(count):
        fields = ",".join(f"{name}={values[(index + i) % len(values)]}" for i, name in enumerate(names))
        lines.append(
            [heads[index % len(heads)], " ", fields, " ", str(start + index // len(heads) * step), "\n"]
        )
    for _ in range(draw(st.integers(0, 2))):
        line = lines[draw(st.integers(0, count - 1))]
        match draw(st.integers(0, 6)):
            case 0:
                line[4] = draw(STAMPS)
            case 1:
                line[2] = f"{names[0]}={draw(ODD)}"
            case 2:
                line[2] = draw(
                    st.sampled_from(["1", "=1", "u=1", "v=1,w=2", "w=2,v=1", "v", "v=1,", ",v=1", "v==1"])
                )
            case 3:
                line[draw(st.sampled_from([1, 3]))] = draw(st.sampled_from(["", "  ", "\t", "\n"]))
            case 4:
                line[5] = draw(st.sampled_from(["\r\n", "\n\n", " \n", "\n# note\n", ""]))
            case 5:
                line[0] = draw(
                    st.sampled_from(["#m,sensor=a", "m", r"m,sensor=a\ b", "m,sensor", 'm,sensor="a"', "é"])
                )
            case 6:
                line[draw(st.integers(0, 5))] = ""
    body = "".join("".join(line) for line in lines).encode()
    cut = draw(st.integers(0, 3))
    return body[: len(body) - cut]


@contextmanager
def taken_as_arrays(*, from_lines: int, slices: int) -> Iterator[None]:
    """How many lines it takes, and of how many bytes together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_protocol, "_ARRAYS_FROM_LINES", from_lines)
        patch.setattr(line_protocol, "_SLICE_BYTES", slices)
        yield


AS_LISTS_OR_ARRAYS = pytest.mark.parametrize(
    ("from_lines", "slices"),
    [(1_000_000, 65_536), (16, 65_536), (16, 500)],
    ids=["lists", "arrays", "slices"],
)


@AS_LISTS_OR_ARRAYS
@given(uniform_bodies(), st.sampled_from(sorted(line_protocol.PRECISIONS)), st.sampled_from([(), ("room",)]))
def test_columns_give_what_the_parser_gives(
    from_lines: int, slices: int, body: bytes, precision: str, tags: tuple[str, ...]
) -> None:
    """Values, times, line numbers, refusals, attributes and collapsed points are the parser's own."""
    line_protocol._learnt.clear()
    expected = carefully(body, precision, tags)
    for _ in range(2):  # the parser has just learnt every head, so both go the fast way
        with taken_as_arrays(from_lines=from_lines, slices=slices):
            decoded, again = decode(body, precision, tags), decode(body, precision, tags)
        assert block.encode(expected.batch) == block.encode(decoded.batch)
        assert same(expected, decoded)
        batch = again.batch
        assert (len(expected.batch), expected.batch.points) == (len(batch), batch.points)
        assert not len(batch) or expected.batch.span == batch.span
        assert expected.batch == batch == expected.batch


@given(
    st.tuples(
        st.sampled_from(HEADS) | ODD_HEADS,
        st.sampled_from([" ", "  ", "\t", "\n", ""]),
        st.builds("v={}".format, NUMBERS | ODD)
        | st.builds("w={},v={}".format, NUMBERS | ODD, NUMBERS | ODD)
        | ODD_FIELDS,
        st.sampled_from([" ", "  ", "\n", ""]),
        STAMPS,
        st.sampled_from(["", "\n", "\r\n", "\n\n", "\n1", " ", "\n#", "\\"]),
    ).map("".join),
    st.sampled_from(sorted(line_protocol.PRECISIONS)),
    st.sampled_from([(), ("room",)]),
)
def test_one_line_gives_what_the_parser_gives(line: str, precision: str, tags: tuple[str, ...]) -> None:
    """A body of one reading, odd or not, after the parser has learnt its like."""
    line_protocol._learnt.clear()
    known = "".join(f"{head} v=1 1\n{head} w=1,v=1 1\n" for head in HEADS)
    carefully(known.encode(), "ns", tags)
    expected = carefully(line.encode(), precision, tags)
    for _ in range(2):
        assert same(expected, decode(line, precision, tags))


@pytest.mark.parametrize(
    "ending", ["1 5 6", "1  5", "1 5 ", " 1 5", "1,2 5", "1 ", "1", " 5", "1\n5", "1 \n5", "1 5\n6"]
)
@pytest.mark.parametrize("fields", ["v=", "w=1,v="])
def test_one_line_with_an_odd_end(fields: str, ending: str) -> None:
    """Neither refused nor taken where the parser does otherwise."""
    line = f"m,sensor=a {fields}{ending}"
    carefully(f"m,sensor=a {fields}1 1".encode(), "ms")
    assert same(carefully(line.encode(), "ms"), decode(line))


@pytest.mark.parametrize("fields", [b"v=2.5", b"v=2.5,w=-0,u=1e3"])
def test_one_line_that_was_understood_takes_the_short_way(
    monkeypatch: pytest.MonkeyPatch, fields: bytes
) -> None:
    """With its attributes; no decoder is made for it."""
    body = b"m,sensor=a,room=1 %b 1700000000000\n" % fields
    expected = decode(body)
    monkeypatch.setattr(line_protocol, "_Decoder", None)
    assert same(expected, decode(body))
    assert {"a": {"room": "1"}} == decode(body).batch.attributes


@AS_LISTS_OR_ARRAYS
@given(uniform_bodies(), st.integers(0, 2_000), st.binary(max_size=3))
def test_columns_of_mutated_bytes(from_lines: int, slices: int, body: bytes, place: int, junk: bytes) -> None:
    """Bytes that are overwritten anywhere change nothing in that."""
    line_protocol._learnt.clear()
    carefully(body, "ms")
    place %= len(body)
    mutated = body[:place] + junk + body[place + len(junk) :]
    expected = carefully(mutated, "ms")
    with taken_as_arrays(from_lines=from_lines, slices=slices):
        decoded = decode(mutated)
    assert block.encode(expected.batch) == block.encode(decoded.batch)
    # Where a line ends in a carriage return, its refusal may be worded as that of the line without.
    assert same(expected, decoded) or (b"\r\n" in mutated and same_but_for_reasons(expected, decoded))


def test_columns_are_taken_where_lines_are_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm body of one kind costs no step per line; one odd line only its own slice."""
    body = b"".join(b"m,sensor=a v=%d.5 %d\n" % (i, i) for i in range(10_000))
    expected = decode(body)
    taken = []
    one_by_one = line_protocol._Decoder._plain
    monkeypatch.setattr(
        line_protocol._Decoder, "_plain", lambda self, lines: one_by_one(self, taken.append(1) or lines)
    )
    assert same(expected, decode(body))
    assert [] == taken
    odd = body.replace(b"v=17.5", b"v=1_0")
    decoded = decode(odd)
    assert [18] == [error.line for error in decoded.errors]
    assert 9_999 == len(decoded.batch)
    assert 1 == len(taken)


@pytest.mark.parametrize("fields", ["v=%d.5", "v=%d.5,w=-0,u=1e3", ",".join(f"f{i}=%d.5" for i in range(16))])
@pytest.mark.parametrize(("sensors", "start", "precision"), [
    (10, 1_700_000_000_000, "ms"), (10, 1_700_000_000_000_000_000, "ns"), (10, 1_700_000_000, "s"),
    (200, 1_700_000_000_000, "ms"), (10, 100_000, "ms"), (1, 100_000, "h"),
])  # fmt: skip
def test_many_lines_of_one_kind_become_arrays(fields: str, sensors: int, start: int, precision: str) -> None:
    """Over several slices; the block is the one that lists make, also where it writes numbers shorter."""
    numbers, step = fields.count("%d"), 1_000_000 if precision == "ns" else 1
    body = "".join(
        f"m,sensor=s{i % sensors},room=r{i % 2} {fields % ((i % 90,) * numbers)} {start + i * step}\n"
        for i in range(3_000)
    ).encode()
    expected = carefully(body, precision)
    decoded = decode(body, precision)
    assert isinstance(decoded.batch, PackedBatch)
    assert decoded.batch.columns is not None
    assert block.encode(expected.batch) == block.encode(decoded.batch)
    assert decoded.batch.columns is not None
    assert (3_000, expected.batch.points, expected.batch.span) == (
        len(decoded.batch),
        decoded.batch.points,
        decoded.batch.span,
    )
    assert same(expected, decoded)
    assert decoded.batch.columns is None


def test_arrays_that_were_asked_for_lists_are_lists_from_then_on() -> None:
    """What is changed in them is what is written."""
    body = b"".join(b"m,sensor=a v=%d.5 %d\n" % (i, 10_000 + i) for i in range(300))
    decode(body)
    batch = decode(body).batch
    assert isinstance(batch, PackedBatch)
    batch.received = 7
    batch.values[3] = (99.0,)
    batch.append(Row("b", 5, ("m_v",), (1.0,)))
    again = block.decode(block.encode(batch))
    assert (301, 301, (5, 10_299), 7) == (len(batch), batch.points, batch.span, again.received)
    assert (99.0,) == again.values[3]
    assert "b" == again.sensors[-1]
    with pytest.raises(AttributeError):
        batch.nothing  # noqa: B018


@pytest.mark.parametrize("line", ["m,sensor=a v=0." + "0" * 1_048_576 + " 5", "m,sensor=a v=1 " + "5" * 20])
def test_known_names_do_not_lift_limits(line: str) -> None:
    """A line that is too long, or a time with too many digits, is refused cold and warm, alone or not."""
    others = "".join(f"m,sensor=a v=1 {i}\n" for i in range(30))
    for body in (line, f"m,sensor=a v=1 4\n{line}", others + line):
        decoded = decode(body, "ns")
        assert [body.count("\n") + 1] == [error.line for error in decoded.errors]


@pytest.mark.parametrize(
    ("situation", "fields", "lines"),
    [
        ("no time, then what makes up for it", "v", "m,sensor=a v=1\n5 m,sensor=a v=2 7"),
        ("line break inside", "v", "m,sensor=a\nv=1 7"),
        ("two fields, then none", "v", "m,sensor=a v=1,v=2 7\nm,sensor=a 3 8"),
        ("number without a name", "v", "m,sensor=a 3 7"),
        ("another name", "v", "m,sensor=a u=3 7"),
        ("a longer name", "v", "m,sensor=a vv=3 7"),
        ("name twice", "v", "m,sensor=a v=v=3 7"),
        ("names in another order", "v,w", "m,sensor=a w=1,v=2 7"),
        ("one field too many, then one too few", "v,w", "m,sensor=a v=1,w=2,v=3 7\nm,sensor=a w=4 8"),
        ("comma and equals sign exchanged", "v,w", "m,sensor=a v,1=w,2 7"),
        ("comma for an equals sign", "v,w", "m,sensor=a v,1,w,2 7"),
        ("field empty", "v,w", "m,sensor=a v=1,,w=2 7"),
        ("array", "v", "m,sensor=a v=[1] 7"),
        ("negative zero", "v", "m,sensor=a v=-0 7"),
        ("negative zero of two", "v,w", "m,sensor=a v=0,w=-0 7"),
        ("comment", "v", "#m,sensor=a v=1 7"),
        ("two spaces", "v", "m,sensor=a  v=1 7"),
        ("space at the end", "v", "m,sensor=a v=1 7 "),
        ("space at the begin", "v", " m,sensor=a v=1 7"),
        ("no fields", "v", "m,sensor=a  7"),
        ("no head", "v", " v=1 7"),
        ("nothing", "v", ""),
    ],
)
def test_odd_lines_among_those_of_one_kind(situation: str, fields: str, lines: str) -> None:
    """Each is understood or refused as if it stood alone, and its neighbours are kept."""
    values = ",".join(f"{name}=1.5" for name in fields.split(","))
    others = "".join(f"m,sensor=a {values} {i}\n" for i in range(100, 120))
    for body in (others + lines, f"{lines}\n{others}", f"{others}{lines}\n{others.replace(' 1', ' 2')}"):
        line_protocol._learnt.clear()
        expected = carefully(body.encode(), "ms")
        assert same(expected, decode(body)), situation
        assert 20 <= len(expected.batch)
