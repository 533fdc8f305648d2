"""Debian's chromium without a window, driven by selenium, and what axe-core says of the page that it shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.services import wait_for

__all__ = ["Browser", "Keys", "open_browser"]


class Browser:
    """A browser with one tab; waits for what a test asks for."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def look(self, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """Set the window's size, and what colours its user likes."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        likes = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": likes})

    def open(self, address: str) -> None:
        self.driver.get(address)

    def all(self, selector: str) -> list[WebElement]:
        """Return those that are shown."""
        shown = "return [...document.querySelectorAll(arguments[0])].filter((one) => one.checkVisibility())"
        found: list[WebElement] = self.run(shown, selector)
        return found

    def one(self, selector: str) -> WebElement:
        """Return the first that is shown, as soon as there is one."""
        wait_for(lambda: self.all(selector), 20)
        return self.all(selector)[0]

    def text(self, selector: str) -> str:
        """Return what stands there, hidden or not."""
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def wait_for_text(self, selector: str, part: str) -> None:
        wait_for(lambda: part in self.text(selector), 20)

    def run(self, script: str, *arguments: object) -> Any:  # noqa: ANN401 - what the script returns
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def focused(self) -> str:
        """The id of what has the focus, or its tag."""
        return str(self.run("return document.activeElement.id || document.activeElement.tagName"))

    def errors(self) -> list[str]:
        """Return what the browser complains of, such as what the policy forbids, but not that a request was refused."""
        log: list[dict[str, str]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        messages = [entry["message"] for entry in log if entry["level"] == "SEVERE"]
        return [message for message in messages if "Failed to load resource" not in message]

    def faults(self) -> list[str]:
        """Return axe-core's serious findings against WCAG 2.1 AA."""
        if not self.run("return Boolean(window.axe)"):
            source = files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
            self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": source})
        found: dict[str, Any] = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run({resultTypes: ['violations']}).then(done, (error) => done({failed: String(error)}))"
        )
        assert "failed" not in found, found
        return [
            f"{one['id']}: {json.dumps([node['html'][:200] for node in one['nodes'][:3]])}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser; skip the test where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",  # which containers do not have
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-proxy-server",
    ):
        options.add_argument(argument)
    running = webdriver.Chrome(options=options, service=Service(driver))
    try:
        running.set_page_load_timeout(30)
        running.set_script_timeout(30)
        yield Browser(running)
    finally:
        running.quit()
