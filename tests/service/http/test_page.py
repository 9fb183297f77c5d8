"""The page, in a real browser: a photo goes in, its label and its route come out."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from service.settings import Settings
from tests.programs import program
from tests.service.parts import Running, until

PHOTO = Path(__file__).parents[2] / "photos" / "cat.jpg"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--window-size=900,1200",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    chromium, driver = program("chromium", "chromium"), program("chromedriver", "chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(options=options, service=ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def shipped() -> Iterator[Running]:
    server = Running(Settings()).wait_ready()
    yield server
    server.stop()


def find(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def saved(browser: Chrome) -> float:
    return float(find(browser, "#saved").text.split()[0])


def test_photo_shows_its_label_its_route_and_what_was_saved(browser: Chrome, shipped: Running) -> None:
    browser.get(shipped.url)
    find(browser, "#file").send_keys(str(PHOTO))
    until(lambda: find(browser, "#label").text == "cat", 30)
    answer = shipped.client.post("/classify", files={"image": PHOTO.read_bytes()}).json()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#blocks i")) == answer["routing"]["blocks"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#blocks i.run")) == answer["routing"]["executed"]
    assert saved(browser) == pytest.approx(100 * answer["routing"]["saved"], abs=0.1)
    if folder := os.environ.get("SKIPNET_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/page.png")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_dial_changes_what_is_computed(browser: Chrome, shipped: Running) -> None:
    browser.get(shipped.url)
    find(browser, "#file").send_keys(str(PHOTO))
    until(lambda: find(browser, "#label").text == "cat", 30)
    for threshold, executed in (("1", 1), ("0", 18)):
        browser.execute_script(
            "const dial = document.querySelector('#threshold'); dial.value = arguments[0];"
            "dial.dispatchEvent(new Event('input'))",
            threshold,
        )
        until(lambda executed=executed: len(browser.find_elements(By.CSS_SELECTOR, "#blocks i.run")) == executed, 30)  # type: ignore[misc]


def sent(browser: Chrome) -> list[str | None]:
    """Return the thresholds that the page has sent."""
    thresholds: list[str | None] = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => new URL(entry.name))"
        ".filter(url => url.pathname === '/classify').map(url => url.searchParams.get('execute_threshold'))"
    )
    return thresholds


def test_the_threshold_is_the_networks_own_until_the_dial_is_moved(browser: Chrome, shipped: Running) -> None:
    # The page was opened while the model was loading: /models lists none at first.
    loading = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {
            "source": "const real = window.fetch; window.fetch = (...call) => call[0] !== '/models' ? real(...call) :"
            "(window.fetch = real, Promise.resolve(new Response('{\"models\": []}')))"
        },
    )
    browser.get(shipped.url)
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", loading)
    assert find(browser, "#value").get_attribute("textContent") == ""
    find(browser, "#file").send_keys(str(PHOTO))
    models = shipped.client.get("/models").json()["models"]
    [own] = [model["served"]["execute_threshold"] for model in models if model["default"]]
    until(lambda: find(browser, "#value").text != "" and float(find(browser, "#value").text) == own, 30)
    assert sent(browser) == [None]
    browser.execute_script(
        "const dial = document.querySelector('#threshold'); dial.value = 0.25; dial.dispatchEvent(new Event('input'))"
    )
    until(lambda: sent(browser) == [None, "0.25"], 30)
    find(browser, "#reset").click()
    until(lambda: sent(browser) == [None, "0.25", None], 30)
    assert float(find(browser, "#value").text) == own


def test_what_is_no_photo_is_told(browser: Chrome, shipped: Running) -> None:
    browser.get(shipped.url)
    find(browser, "#file").send_keys(str(Path(__file__)))
    until(lambda: "not an image" in find(browser, "#problem").text, 30)


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    server = Running(Settings(api_keys=["clé"])).wait_ready()
    yield server
    server.stop()


def test_a_key_is_asked_for_where_the_server_wants_one(browser: Chrome, locked: Running) -> None:
    browser.get(locked.url)
    assert not find(browser, "#unlock").is_displayed()
    find(browser, "#file").send_keys(str(PHOTO))
    until(lambda: find(browser, "#unlock").is_displayed(), 30)
    assert "asks for an API key" in find(browser, "#problem").text
    find(browser, "#key").send_keys("wrong", Keys.ENTER)
    until(lambda: "does not know that key" in find(browser, "#problem").text, 30)
    find(browser, "#key").clear()
    find(browser, "#key").send_keys("clé", Keys.ENTER)
    until(lambda: find(browser, "#label").text == "cat", 30)
    assert not find(browser, "#unlock").is_displayed()
    # The key is kept for the tab.
    browser.get(locked.url)
    find(browser, "#file").send_keys(str(PHOTO))
    until(lambda: find(browser, "#label").text == "cat", 30)


def test_api_page_shows_its_operations(browser: Chrome, shipped: Running) -> None:
    browser.get(f"{shipped.url}/docs")
    until(lambda: "/classify" in find(browser, "body").text, 30)
