"""CSV import over real HTTP: both shapes, problems by file and line, and the client behind it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))
from receiving import Service

from fieldring.cli import main
from fieldring.client import Client, Reading, Refused, RequestFailed

T = 1_700_000_000_000
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "service").mkdir()
    made = Service(tmp_path / "service")
    yield made
    made.close()


@pytest.fixture
def run(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Imports a text as data.csv; gives exit code and what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIELDRING_URL", service.url)
    monkeypatch.setenv("FIELDRING_WRITE_TOKEN", "writer")

    def make(text: str | bytes, *arguments: str) -> tuple[int, str]:
        Path("data.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        code = main(["import", "data.csv", *arguments])
        return code, capsys.readouterr().err

    return make


def test_long_file(service: Service, run: Run) -> None:
    """time,sensor,metric,value in any order; times as RFC 3339 or epoch ms."""
    code, said = run(
        f"sensor,metric,time,value\na,no2,{T},1.5\na,no2,2023-11-14T22:13:21Z,2\nb c,wind speed,{T},-3e-2\n"
    )
    assert (0, "3 rows: 3 points sent (0 of them spooled), 0 missing values left out, 0 refused\n") == (
        code,
        said,
    )
    assert [(T, "no2", 1.5), (T + 1000, "no2", 2.0)] == service.points("a")
    assert [(T, "wind speed", -0.03)] == service.points("b c")


def test_wide_file(service: Service, run: Run) -> None:
    """One column per metric; empty cells and NA are missing, not zero."""
    code, said = run(f"time,no2,temp\n{T},1,2\n{T + 1},NA,\n{T + 2},nan,3\n", "--sensor", "hut")
    assert 0 == code
    assert "3 rows: 3 points sent (0 of them spooled), 3 missing values" in said
    assert [(T, "no2", 1.0), (T, "temp", 2.0), (T + 2, "temp", 3.0)] == service.points("hut")


def test_again_changes_nothing(service: Service, run: Run) -> None:
    """Keys repeat."""
    text = "time,sensor,no2\n" + "".join(f"{T + n},a,{n}\n" for n in range(500))
    run(text, "--batch", "100")
    before = service.points("a")
    assert 0 == run(text)[0]
    assert 500 == len(before)
    assert before == service.points("a")


def test_from_line(service: Service, run: Run) -> None:
    """Lines before it are left out, the header is not."""
    run(f"time,sensor,no2\n{T},a,1\n{T + 1},a,2\n{T + 2},a,3\n", "--from-line", "3")
    assert [2.0, 3.0] == [value for _, _, value in service.points("a")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f"{T},a,no2,x", "data.csv:3: no2: 'x' is not a finite number"),
        (f"{T},a,no2,1_0", "data.csv:3: no2: '1_0' is not a finite number"),
        (f"{T},a,no2,inf", "data.csv:3: no2: 'inf' is not a finite number"),
        ("yesterday,a,no2,1", "data.csv:3: time 'yesterday': neither epoch milliseconds nor RFC 3339"),
        ("2024-01-01T00:00:00,a,no2,1", "data.csv:3: time '2024-01-01T00:00:00': no offset from UTC"),
        (f"{T},,no2,1", "data.csv:3: sensor is empty"),
        (f"{T},a,,1", "data.csv:3: metric is empty"),
        (f"{T},a,no2", "data.csv:3: 3 columns, but the header has 4"),
        ("5,a,no2,1", "data.csv:3: time 5 ms is older than the retention"),
    ],
)
def test_bad_row(service: Service, run: Run, row: str, reason: str) -> None:
    """It is named by file and line, whether we or the service refuse it; its neighbours are kept."""
    code, said = run(f"time,sensor,metric,value\n{T},a,no2,1\n{row}\n{T + 2},a,no2,3\n")
    assert 1 == code
    assert reason in said
    assert "1 refused" in said
    assert [1.0, 3.0] == [value for _, _, value in service.points("a")]


def test_text(service: Service, run: Run) -> None:
    """On request values that are no numbers are kept as text."""
    assert 0 == run(f'time,sensor,note\n{T},a,"said ""so"" \\ twice\non two lines"\n', "--text")[0]
    assert [(T, "note", 'said "so" \\ twice\non two lines')] == service.points("a")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no column 'time' in []"),
        ("sensor,value\n", "no column 'time'"),
        ("time,no2\n", "no column 'sensor': name the sensor with --sensor"),
        ("time,sensor\n", "no column with values"),
        ("time,sensor,no2,no2\n", "column 'no2' occurs twice"),
        ("time,sensor,metric,value,unit\n", "unknown columns ['unit']"),
        (b"time,sensor,no2\n\xff\n", "not valid UTF-8"),
        (f'time,sensor,no2\n{T},a,"1\n', "data.csv:"),
    ],
)
def test_unreadable_file(service: Service, run: Run, text: str | bytes, reason: str) -> None:
    """The reason stands with file and line, and nothing is sent."""
    code, said = run(text)
    assert 1 == code
    assert reason in said
    assert [] == list(service.store.sensors())


def test_missing_file(run: Run, tmp_path: Path) -> None:
    """It is named."""
    assert 1 == main(["import", "none.csv"])


def test_wrong_token(service: Service, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's answer is shown, with the place that was reached."""
    monkeypatch.setenv("FIELDRING_WRITE_TOKEN", "wrong")
    code, said = run(f"time,sensor,no2\n{T},a,1\n")
    assert 1 == code
    assert "data.csv:2: HTTP 401: token is not known" in said


def test_refused_behind_a_text_of_several_lines(service: Service, run: Run) -> None:
    """The line of the file is named; it was another one, or an error of ours."""
    code, said = run(f'time,sensor,note\n{T},a,"one\ntwo"\n5,a,three\n', "--text")
    assert code != 0
    assert "data.csv:4: time 5 ms is older" in said
    assert "1 points sent" in said


def test_spooled_is_told(service: Service, run: Run) -> None:
    """While the ring is away the import goes on, and says so."""
    service.store.up = False
    code, said = run(f"time,sensor,no2\n{T},a,1\n")
    assert 0 == code
    assert "1 points sent (1 of them spooled)" in said


def test_client_names_what_was_refused(service: Service) -> None:
    """Refusals come by the reading's index."""
    with Client(service.url, token="writer") as client:
        assert ("stored", 1) == client.write([Reading("a", T, "m", 1.0), Reading("a", T, "m", 2.0)])
        with pytest.raises(Refused) as caught:
            client.write([Reading("a", T, "m", 1.0), Reading("a", 5, "m", 2.0)])
        assert [1] == [index for index, _ in caught.value.errors]
        texts = [
            Reading("a", T, "m", "one\ntwo\n"),
            Reading("a", 5, "m", "three\nfour"),
            Reading("a", 6, "m", 1.0),
        ]
        with pytest.raises(Refused) as caught:
            client.write(texts)
        assert [1, 2] == [index for index, _ in caught.value.errors]
        with pytest.raises(ValueError, match="line break"):
            client.write([Reading("a\nb", T, "m", 1.0)])


def test_client_retries_until_the_service_is_back(service: Service) -> None:
    """An address where nobody answers fails after its time, with the address."""
    with (
        Client("http://127.0.0.1:1", token="x", retry_for_s=0.5) as client,
        pytest.raises(RequestFailed, match=r"http://127\.0\.0\.1:1.* cannot be reached"),
    ):
        client.write([Reading("a", T, "m", 1.0)])
