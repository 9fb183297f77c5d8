"""The page in a real browser shows the label and the route of a photo."""

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
from tests.service.parts import Running, encoded, picture, until

PHOTO = Path(__file__).parents[3] / "photos" / "cat.jpg"
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


def test_the_page_shows_label_route_and_savings_of_a_photo(browser: Chrome, shipped: Running) -> None:
    browser.get(shipped.url)
    find(browser, "#file").send_keys(str(PHOTO))
    until(lambda: find(browser, "#label").text == "cat", 30)
    response = shipped.client.post("/classify", files={"image": PHOTO.read_bytes()}).json()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#stages i")) == response["routing"]["blocks"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#stages i.run")) == response["routing"]["executed"]
    assert saved(browser) == pytest.approx(100 * response["routing"]["saved"], abs=0.1)
    if folder := os.environ.get("SKIPNET_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/page.png")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def choose(browser: Chrome, model: str) -> None:
    until(lambda: model in find(browser, "#model").text, 30)
    browser.execute_script(
        "const list = document.querySelector('#model'); list.value = arguments[0];"
        "list.dispatchEvent(new Event('change'))",
        model,
    )


def sent(browser: Chrome, name: str) -> list[str | None]:
    """Return the values of a parameter in the requests that the page has sent."""
    values: list[str | None] = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => new URL(entry.name))"
        ".filter(url => url.pathname === '/classify').map(url => url.searchParams.get(arguments[0]))",
        name,
    )
    return values


def test_the_page_shows_the_model_and_its_classes(browser: Chrome, shipped: Running) -> None:
    models = shipped.client.get("/models").json()["models"]
    browser.get(shipped.url)
    until(lambda: "airplane" in find(browser, "#knows").text, 30)
    [default] = [model for model in models if model["default"]]
    assert find(browser, "#model").get_attribute("value") == default["name"]
    for model in models:
        choose(browser, model["name"])
        assert (
            f"knows {model['served']['classes']} classes: {model['served']['labels'][0]}"
            in find(browser, "#knows").text
        )
    choose(browser, "cifar10_rnn_gate_38")
    assert "For photos choose imagenette_rnn_gate_18, or train on your own images." in find(browser, "#knows").text
    choose(browser, "imagenette_rnn_gate_18")
    assert "For photos choose" not in find(browser, "#knows").text


def test_a_sample_photo_is_classified_by_the_chosen_model(browser: Chrome, shipped: Running) -> None:
    browser.get(shipped.url)
    choose(browser, "cifar10_rnn_gate_38")
    find(browser, "[data-sample=cat]").click()
    until(lambda: find(browser, "#label").text == "cat", 30)
    assert sent(browser, "model") == ["cifar10_rnn_gate_38"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#stages i")) == 18


def test_the_slider_moves_along_the_curve(browser: Chrome, shipped: Running) -> None:
    browser.get(shipped.url)
    choose(browser, "cifar10_rnn_gate_38")
    find(browser, "#file").send_keys(str(PHOTO))
    until(lambda: find(browser, "#label").text == "cat", 30)
    [model] = [m for m in shipped.client.get("/models").json()["models"] if m["name"] == "cifar10_rnn_gate_38"]
    curve = model["served"]["budgets"]
    assert len(curve) > 2 and find(browser, "#slider").get_attribute("max") == str(len(curve) - 1)
    browser.execute_script(
        "const slider = document.querySelector('#slider'); slider.value = 0; slider.dispatchEvent(new Event('input'))"
    )
    until(lambda: len(sent(browser, "compute_budget")) == 2, 30)
    first, second = sent(browser, "compute_budget")
    assert first is None and second is not None and float(second) == pytest.approx(curve[0]["mac_share"], abs=1e-5)
    assert f"expected accuracy {100 * curve[0]['accuracy']:.1f} %" in find(browser, "#value").text
    executed = shipped.client.post(
        f"/classify?model=cifar10_rnn_gate_38&compute_budget={second}", files={"image": PHOTO.read_bytes()}
    ).json()["routing"]["executed"]
    until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#stages i.run")) == executed, 30)
    find(browser, "#reset").click()
    until(lambda: len(sent(browser, "compute_budget")) == 3 and sent(browser, "compute_budget")[2] is None, 30)


def test_a_cascade_shows_both_passes(browser: Chrome, shipped: Running, tmp_path: Path) -> None:
    for number in range(100):
        data = encoded(picture(number))
        response = shipped.client.post("/classify?model=cifar10_cascade", files={"image": data}).json()["routing"]
        if response["escalated"]:
            break
    stages = response["stages"]
    assert len(stages) == 2
    (tmp_path / "unsure.png").write_bytes(data)
    browser.get(shipped.url)
    choose(browser, "cifar10_cascade")
    find(browser, "#file").send_keys(str(tmp_path / "unsure.png"))
    until(lambda: find(browser, "#label").text != "", 30)
    rows = browser.find_elements(By.CSS_SELECTOR, ".stage")
    assert len(rows) == 2
    for row, stage, ending in zip(rows, stages, (", so the photo was escalated", ""), strict=True):
        text = row.find_element(By.CSS_SELECTOR, "p").text
        assert f"{stage['model']}: confidence {stage['margin']:.3f}{ending}" in text and text.endswith(ending)
        assert len(row.find_elements(By.CSS_SELECTOR, "i")) == stage["blocks"]
        assert len(row.find_elements(By.CSS_SELECTOR, "i.run")) == stage["executed"]


def test_the_page_waits_for_models_that_are_being_loaded(browser: Chrome, shipped: Running) -> None:
    loading = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {
            "source": "const real = window.fetch; window.fetch = (...call) => call[0] !== 'models' ? real(...call) :"
            "(window.fetch = real, Promise.resolve(new Response('{\"models\": []}')))"
        },
    )
    browser.get(shipped.url)
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", loading)
    assert "being loaded" in find(browser, "#knows").text
    until(lambda: "airplane" in find(browser, "#knows").text, 30)


def test_a_file_that_is_not_an_image_is_an_error(browser: Chrome, shipped: Running) -> None:
    browser.get(shipped.url)
    find(browser, "#file").send_keys(str(Path(__file__)))
    until(lambda: "This file was refused: not an image" in find(browser, "#problem").text, 30)
    until(lambda: find(browser, "#drop").text == Path(__file__).name, 30)
    assert not browser.find_elements(By.CSS_SELECTOR, "#drop img")


def test_the_page_fits_a_phone(browser: Chrome, shipped: Running) -> None:
    screen = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        browser.get(shipped.url)
        find(browser, "#file").send_keys(str(PHOTO))
        until(lambda: find(browser, "#label").text == "cat", 30)
        edge = browser.execute_script(
            "const all = [...document.querySelectorAll('body *')];"
            "return Math.max(...all.map(each => each.getBoundingClientRect().right))"
        )
        assert edge <= 360 - 20  # The page's own margin.
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    server = Running(Settings(api_keys=["clé"])).wait_ready()
    yield server
    server.stop()


def test_the_page_asks_for_a_key_if_the_server_needs_one(browser: Chrome, locked: Running) -> None:
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
