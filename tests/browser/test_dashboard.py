"""The dashboard page in a headless Chromium: what a person would read there, and no error in the console."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from tiering.monitor.plugin import install, publish_move, publish_tiers
from tiering.monitor.stats import COUNTERS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
WAIT_SECONDS = 60.0
GIB = 2**30
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)
# Bokeh renders into nested shadow roots, which `body.innerText` leaves out.
VISIBLE_TEXT = """
function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data + ' ';
  if (node.nodeType === Node.ELEMENT_NODE) {
    if (['SCRIPT', 'STYLE'].includes(node.tagName) || getComputedStyle(node).display === 'none') return '';
  }
  const children = [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes];
  return children.map(text).join('');
}
return text(document.body).replace(/\\s+/g, ' ');
"""
PLOTTED = """
const data = {};
for (const document of Bokeh.documents)
  for (const name of arguments[0]) {
    const plot = document.get_model_by_name(name);
    data[name] = plot.visible ? plot.renderers.map(it => it.data_source.get_length()) : [];
  }
return data;
"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or CHROMEDRIVER is None,
        reason="needs chromium and chromedriver (Debian: apt-get install chromium-driver)",
    ),
]


@pytest.fixture
def client() -> Iterator[Client]:
    COUNTERS.reset()
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            protocol="tcp://",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    options = Options()
    options.binary_location = str(CHROMIUM)
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(str(CHROMEDRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def wait_for(browser: Chrome, condition: Callable[[], bool]) -> None:
    WebDriverWait(browser, WAIT_SECONDS).until(lambda _: condition())


def wait_for_text(browser: Chrome, *texts: str) -> None:
    """Wait until every text is visible on the page."""
    missing = list(texts)

    def all_there() -> bool:
        page = browser.execute_script(VISIBLE_TEXT)
        missing[:] = [text for text in texts if text not in page]
        return not missing

    WebDriverWait(browser, WAIT_SECONDS).until(lambda _: all_there(), f"missing: {missing}")


def errors(browser: Chrome) -> list[str]:
    """Return what the console complained about."""
    log: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in log if entry["level"] == "SEVERE"]


def test_page_without_data_says_what_to_do(client: Client, browser: Chrome) -> None:
    url = install(client)
    assert url is not None
    browser.get(url)
    wait_for_text(
        browser,
        "Tiering",
        "publish_tiers(client, ...)",
        "No move yet",
        "No bytes moved",
        "No cache requests",
        "No rows in the last five minutes",
        "nobody waits",
        "no cache requests yet",
    )
    assert browser.title == "Dask: Tiering"
    assert browser.execute_script(PLOTTED, ["tiering-tiers", "tiering-rates"]) == {
        "tiering-tiers": [],
        "tiering-rates": [],
    }
    assert errors(browser) == []


def test_page_shows_numbers_as_they_arrive(client: Client, browser: Chrome) -> None:
    url = install(client)
    assert url is not None
    browser.get(url)
    wait_for_text(browser, "1 of 1 workers report")

    # From here on everything reaches the open page through its websocket.
    publish_tiers(
        client,
        {
            "lake": {"kind": "object", "used_bytes": 14 * GIB, "capacity_bytes": None},
            "<i>disk</i>": {"kind": "file", "used_bytes": 3 * GIB, "capacity_bytes": 4 * GIB},
        },
    )
    publish_move(client, "web to disk", 5 * GIB, 8 * GIB)
    COUNTERS.add_moved("lake", "read", 7 * GIB)
    COUNTERS.add_cache(hits=3, misses=1, hit_bytes=6 * GIB, miss_bytes=2 * GIB)
    COUNTERS.add_loaded(1_234_567, 4 * 10**9, 10**9)
    wait_for_text(browser, "lake", "object", "14.00 GiB", "no limit", "<i>disk</i>", "3.00 GiB", "4.00 GiB")
    wait_for_text(
        browser, "7.00 GiB", "75.0% of 4 cache requests hit; 6.00 GiB from the cache, 2.00 GiB fetched"
    )
    wait_for_text(browser, "1,234,567 rows loaded, 25.0% of the time waiting for bytes")

    names = [f"tiering-{name}" for name in ("tiers", "moves", "rates", "hits", "rows", "stalls")]
    shown = {
        "tiering-tiers": [2, 2, 2],
        "tiering-moves": [1, 1, 1],
        "tiering-rates": [1],
        "tiering-hits": [1],
        "tiering-rows": [1],
        "tiering-stalls": [1],
    }
    wait_for(browser, lambda: browser.execute_script(PLOTTED, names) == shown)
    assert "No move yet" not in browser.execute_script(VISIBLE_TEXT)
    assert errors(browser) == []


def test_page_is_reached_from_the_status_page(client: Client, browser: Chrome) -> None:
    url = install(client)
    browser.get(client.dashboard_link)
    browser.find_element("link text", "Tiering").click()
    wait_for_text(browser, "1 of 1 workers report")
    assert browser.current_url == url
    assert errors(browser) == []
