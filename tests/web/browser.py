"""A real Chromium without a window, its profile thrown away with the test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "web"

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = (
    "there is no chromium with its chromedriver on this machine (Debian: apt-get install chromium chromium-driver)"
)

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1100,800",
)


class Browser:
    """What a person does, and what only the browser itself can tell."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def open_tab(self, url: str) -> str:
        """A new tab; -> its handle."""
        self.driver.switch_to.new_window("tab")
        self.open(url)
        return self.driver.current_window_handle

    def switch(self, tab: str) -> None:
        self.driver.switch_to.window(tab)

    @property
    def url(self) -> str:
        return self.driver.current_url

    @property
    def text(self) -> str:
        """What the page says."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def fill(self, **fields: str) -> None:
        for name, value in fields.items():
            element = self.driver.find_element(By.NAME, name)
            element.clear()
            element.send_keys(value)

    def press(self, button: str) -> None:
        """Presses the button that says *button*."""
        self.driver.find_element(By.XPATH, f"//button[normalize-space()='{button}']").click()

    def wait(self, condition: Any) -> None:
        """Returns once condition() holds; TimeoutException after 10 s."""
        # While a page is replaced, its elements are stale or not there yet.
        replaced = (StaleElementReferenceException, NoSuchElementException)
        WebDriverWait(self.driver, 10, 0.05, replaced).until(lambda _: condition())

    def run(self, script: str) -> Any:
        """Runs code of the page."""
        return self.driver.execute_script(script)

    def run_async(self, script: str) -> Any:
        """Runs code of the page that answers by calling `done`."""
        return self.driver.execute_async_script(f"const done = arguments[0]; {script}")

    def cookies(self) -> dict[str, dict[str, Any]]:
        """Every cookie of the page's site as the browser keeps it, those that code cannot read too."""
        found = self.driver.execute_cdp_cmd("Network.getAllCookies", {})["cookies"]
        return {cookie["name"]: cookie for cookie in found}

    def shoot(self, name: str) -> None:
        """Saves what the page looks like."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A fresh browser whose profile is the folder *profile*."""
    options = ChromeOptions()
    options.binary_location = BROWSER or ""
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = Chrome(options=options, service=Service(executable_path=DRIVER))
    try:
        driver.set_page_load_timeout(20)
        driver.set_script_timeout(20)
        yield Browser(driver)
    finally:
        driver.quit()
