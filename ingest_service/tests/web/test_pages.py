"""The pages, in a real Chromium against a real gunicorn; what needs no browser, without one."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait
from serving import NAMES, T0, Serving, judge, put

from fieldring.model import DAY_MS, HOUR_MS, Flag
from fieldring.store.sqlite import SqliteStore
from fieldring.web.pages import freshness

SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,1000"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path_factory.mktemp("serve") / "store.sqlite", retention_days=10_950)
    yield store
    store.close()


@pytest.fixture(scope="module")
def serving(store: SqliteStore) -> Iterator[Serving]:
    for name in NAMES:
        put(store, name, {T0: {"no2": 1.0}})
    values = {T0 + i * 60_000: {"no2": 20.0 + i % 7, "t": "x"} for i in range(60)}
    values[T0 + 5 * 60_000]["no2"] = 40.0
    values[T0 + 9 * 60_000]["no2"] = 90.0
    put(store, "station 7", values, attributes={"floor": "<b>2</b>"})
    put(store, "station 7", {T0 + HOUR_MS: {"no2": 21.0}}, received=2)
    judge(store, "station 7", "no2", T0, m5=(Flag.SUSPECT, "spike"), m9=(Flag.FAIL, "gross_range"))
    made = Serving(Path(store._path).parent, site="valley")
    yield made
    made.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver, binary = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or binary is None:
        pytest.fail("chromium and chromedriver are missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_page_load_timeout(30)
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome, serving: Serving) -> webdriver.Chrome:
    """Signed out, with empty logs."""
    chromium.get(serving.url + "/sign-in")
    chromium.delete_all_cookies()
    chromium.get_log("browser")
    return chromium


def sign_in(browser: webdriver.Chrome, serving: Serving, token: str = "reader") -> None:
    browser.get(serving.url + "/sign-in")
    browser.find_element(By.ID, "token").send_keys(token)
    browser.find_element(By.CSS_SELECTOR, "main button").click()
    # A click may return before the form was sent: the next address would call it off.
    WebDriverWait(browser, 15).until(lambda b: "/sign-in" not in b.current_url)


def chart_of(browser: webdriver.Chrome) -> dict[str, str]:
    chart = browser.find_element(By.ID, "chart")
    WebDriverWait(browser, 15).until(lambda _: chart.get_attribute("data-state") in ("ready", "failed"))
    return {key: str(chart.get_attribute(f"data-{key}")) for key in ("state", "points", "suspect", "fail")}


def complaints(browser: webdriver.Chrome) -> list[str]:
    """Errors and broken content policies that the browser tells of."""
    return [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ]


# -- in a browser --------------------------------------------------------------------------------


@pytest.mark.browser
def test_sign_in_leads_to_the_page_that_was_asked_for(browser: webdriver.Chrome, serving: Serving) -> None:
    """A wrong token is told; a right one opens the page; signing out closes it."""
    browser.get(serving.url + "/sensors/station%207?range=all")
    assert "/sign-in" in browser.current_url
    browser.find_element(By.ID, "token").send_keys("wrong")
    browser.find_element(By.CSS_SELECTOR, "main button").click()
    WebDriverWait(browser, 15).until(lambda b: b.find_elements(By.ID, "problem"))
    assert "This token is not known." == browser.find_element(By.ID, "problem").text
    browser.find_element(By.ID, "token").send_keys("reader")
    browser.find_element(By.CSS_SELECTOR, "main button").click()
    WebDriverWait(browser, 15).until(lambda b: "/sign-in" not in b.current_url)
    assert serving.url + "/sensors/station%207?range=all" == browser.current_url
    browser.find_element(By.XPATH, "//button[text()='Sign out']").click()
    WebDriverWait(browser, 15).until(lambda b: "/sign-in" in b.current_url)
    browser.get(serving.url + "/sensors")
    assert "/sign-in" in browser.current_url


@pytest.mark.browser
def test_every_link_of_the_list_leads_to_its_sensor(browser: webdriver.Chrome, serving: Serving) -> None:
    """Whatever the name holds; nothing of it runs as markup."""
    sign_in(browser, serving)
    names = [link.text for link in browser.find_elements(By.CSS_SELECTOR, "#sensors tbody th a")]
    assert len(NAMES) + 1 == len(names)
    urls = [
        str(a.get_attribute("href")) for a in browser.find_elements(By.CSS_SELECTOR, "#sensors tbody th a")
    ]
    for name, url in zip(names, urls, strict=True):
        browser.get(url)
        assert name == browser.find_element(By.CSS_SELECTOR, "h1 bdi").text
        assert {"state": "ready", "points": "61" if name == "station 7" else "1"}.items() <= chart_of(
            browser
        ).items()
    assert [] == complaints(browser)


@pytest.mark.browser
def test_the_chart_marks_what_is_flagged(browser: webdriver.Chrome, serving: Serving, tmp_path: Path) -> None:
    """Pixels of the marks' colours are on the canvas, and the legend names them."""
    sign_in(browser, serving)
    browser.find_element(By.LINK_TEXT, "station 7").click()
    WebDriverWait(browser, 15).until(lambda b: b.find_elements(By.ID, "chart"))
    assert {"state": "ready", "points": "61", "suspect": "1", "fail": "1"} == chart_of(browser)
    assert "61 points, 1 suspect, 1 fail, 1 not evaluated" == browser.find_element(By.ID, "chart-status").text
    colours = browser.execute_script(
        """const found = {suspect: 0, fail: 0, line: 0};
        for (const canvas of document.querySelectorAll('#chart canvas')) {
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          for (let i = 0; i < data.length; i += 4) {
            const [r, g, b, a] = data.slice(i, i + 4);
            if (a < 200) continue;
            if (r === 240 && g === 160 && b === 48) found.suspect++;
            if (r === 192 && g === 31 && b === 46) found.fail++;
            if (r === 31 && g === 95 && b === 168) found.line++;
          }
        }
        return found;"""
    )
    assert all(count > 10 for count in colours.values()), colours
    assert ["measured", "3 suspect", "4 fail", "2 not evaluated"] == [
        item.text for item in browser.find_elements(By.CSS_SELECTOR, ".legend li")
    ]
    ActionChains(browser).move_to_element(browser.find_element(By.ID, "chart")).perform()
    assert re.match(r"2023-11-14 22:\d\d:00.000: [\d.]+, flag 1", browser.find_element(By.ID, "reading").text)
    browser.save_screenshot(str(tmp_path / "chart.png"))
    assert [] == complaints(browser)


@pytest.mark.browser
def test_another_metric_and_range(browser: webdriver.Chrome, serving: Serving) -> None:
    """Choosing is enough; texts are for the table only."""
    sign_in(browser, serving)
    browser.get(serving.url + "/sensors/station%207")
    Select(browser.find_element(By.ID, "metric")).select_by_value("t")
    WebDriverWait(browser, 15).until(
        lambda b: "metric=t" in b.current_url and b.find_elements(By.ID, "chart")
    )
    assert "0" == chart_of(browser)["points"]
    assert "No numbers in this range." == browser.find_element(By.ID, "chart-status").text
    assert "x" == browser.find_element(By.CSS_SELECTOR, "#values td.number").text


@pytest.mark.browser
def test_filter_narrows_the_list(browser: webdriver.Chrome, serving: Serving) -> None:
    """By any text of the row."""
    sign_in(browser, serving)
    # It shows only once the script is there.
    WebDriverWait(browser, 15).until(lambda b: b.find_element(By.ID, "filter").is_displayed())
    browser.find_element(By.ID, "filter").send_keys("STATION")
    shown = [r for r in browser.find_elements(By.CSS_SELECTOR, "#sensors tbody tr") if r.is_displayed()]
    assert ["station 7"] == [row.find_element(By.TAG_NAME, "a").text for row in shown]


@pytest.mark.browser
def test_pages_ask_no_other_host(browser: webdriver.Chrome, serving: Serving) -> None:
    """Everything they need comes from where they came from."""
    browser.get_log("performance")
    sign_in(browser, serving)
    browser.get(serving.url + "/sensors/station%207")
    chart_of(browser)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert any("dygraph.min.js" in url for url in asked)
    assert {url for url in asked if not url.startswith((serving.url, "data:"))} == set()


# -- without a browser ---------------------------------------------------------------------------


@pytest.fixture
def people(serving: Serving) -> Iterator[httpx.Client]:
    """A client that keeps cookies and follows nothing, as a browser's pieces would be seen on the wire."""
    with httpx.Client(base_url=serving.url, headers={"Accept": "text/html"}) as client:
        yield client


def csrf(client: httpx.Client) -> str:
    return client.get("/sign-in").text.split('name="csrf_token" value="')[1].split('"')[0]


def signed_in(client: httpx.Client, token: str = "reader", **more: str) -> httpx.Response:
    return client.post("/sign-in", data={"csrf_token": csrf(client), "token": token, **more})


def test_a_form_without_its_csrf_token_is_refused(people: httpx.Client) -> None:
    """Also for signing out."""
    assert people.post("/sign-in", data={"token": "reader"}).status_code == 400
    assert signed_in(people).status_code == 303
    assert people.post("/sign-out").status_code == 400
    assert people.get("/sensors").status_code == 200


def test_the_session_holds_no_token(people: httpx.Client) -> None:
    """Only its id; scripts cannot read the cookie, other sites do not send it along."""
    answer = signed_in(people)
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    payload = people.cookies["fieldring"].split(".")[
        0 if not people.cookies["fieldring"].startswith(".") else 1
    ]
    raw = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    assert b'"token_id":"reader"' in raw


@pytest.mark.parametrize("secure", ["0", "1"])
def test_the_cookie_is_bound_to_https_and_host_unless_switched_off(tmp_path: Path, secure: str) -> None:
    """``__Host-`` and ``Secure`` by default."""
    serving = Serving(tmp_path, session_cookie_secure=secure)
    try:
        cookie = serving.http.get("/sign-in").headers["Set-Cookie"]
    finally:
        serving.close()
    assert (secure == "1") == (cookie.startswith("__Host-fieldring=") and "Secure" in cookie)


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "/sensors/\nx", "/sign-out"]
)
def test_sign_in_leads_nowhere_else(people: httpx.Client, target: str) -> None:
    """Only to our own pages."""
    assert "/sensors" == signed_in(people, next=target).headers["Location"]


def test_a_token_that_may_not_read_cannot_sign_in(people: httpx.Client) -> None:
    """Told as such."""
    answer = signed_in(people, "writer")
    assert (403, True) == (answer.status_code, "may not read" in answer.text)


def test_a_withdrawn_token_ends_its_sessions(people: httpx.Client, tmp_path: Path) -> None:
    """Within a moment, without a restart."""
    serving = Serving(tmp_path)
    try:
        with httpx.Client(base_url=serving.url) as client:
            assert signed_in(client).status_code == 303
            assert client.get("/v1/sensors").status_code == 200
            (tmp_path / "tokens.json").write_text("[]")
            time.sleep(0.5)  # the file is looked at four times a second
            assert client.get("/v1/sensors").status_code == 401
            assert client.get("/sensors").status_code == 303
    finally:
        serving.close()


def test_unknown_and_forbidden_pages(people: httpx.Client) -> None:
    """404 and 403 as pages, for people."""
    signed_in(people, "limited")
    for path, status in (
        ("/sensors/north-9", 404),
        ("/sensors/station%207", 403),
        ("/nope", 404),
        ("/sensors/hut?metric=x", 404),
    ):
        answer = people.get(path)
        assert (status, "text/html; charset=utf-8") == (answer.status_code, answer.headers["Content-Type"]), (
            path
        )
    assert [b"hut"] == [n for n in (b"hut", b"station 7") if n in people.get("/sensors").content]


def test_names_are_text_in_pages(people: httpx.Client) -> None:
    """Markup in names and attributes is shown, not obeyed."""
    signed_in(people)
    listing = people.get("/sensors").text
    assert "<script>alert" not in listing
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in listing
    assert "&lt;b&gt;2&lt;/b&gt;" in people.get("/sensors/station%207").text


def test_the_table_carries_values_and_flags_without_scripts(people: httpx.Client) -> None:
    """Newest first, with the tests that raised the flag."""
    signed_in(people)
    text = people.get("/sensors/station%207").text
    assert "gross_range" in text
    assert text.index("21.0") < text.index("90.0")


@pytest.mark.browser  # Debian's libjs-dygraphs comes with what the browser needs
@pytest.mark.parametrize("name", ["../dygraph.js", "dygraph.js", "..%2f..%2fpasswd"])
def test_only_named_assets_are_given(people: httpx.Client, name: str) -> None:
    """Nothing else of that directory, or above it."""
    assert people.get("/assets/dygraphs/" + name).status_code == 404
    assert people.get("/assets/dygraphs/dygraph.min.js").status_code == 200


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (-5, ("fresh", "just now")),
        (60_000, ("fresh", "1 minute ago")),
        (2 * HOUR_MS, ("fresh", "2 hours ago")),
        (2 * HOUR_MS + 1, ("late", "2 hours ago")),
        (DAY_MS, ("late", "1 day ago")),
        (DAY_MS + 1, ("silent", "1 day ago")),
        (800 * DAY_MS, ("silent", "2 years ago")),
    ],
)
def test_freshness(age: int, expected: tuple[str, str]) -> None:
    """Fresh up to 2 hours, late up to a day."""
    found = freshness(T0, now_ms=T0 + age)
    assert expected == (found.state, found.words)
