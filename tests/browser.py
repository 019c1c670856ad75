"""A browser for tests of pages: a headless chromium, and what a page says and asks for while it is open.

::

    @pytest.fixture(scope="module")
    def browser():
        with chromium() as launched:
            yield launched

    def test_a_page(browser, tmp_path):
        with browser.open(tmp_path / "report.html") as visit:
            assert visit.page.inner_text("h1") == "..."
            visit.assert_quiet()
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OF_THE_PAGE = ("file:", "data:", "blob:")


class Visit(NamedTuple):
    """A page that is open."""

    page: Any
    """Playwright's."""
    messages: list[str]
    """Of its console, each behind its kind, such as "log: drawn"."""
    errors: list[str]
    """Exceptions that nobody caught, and what the console calls an error, such as what a security policy refused."""
    requests: list[str]
    """Addresses outside the file that it asked for."""

    def assert_quiet(self) -> None:
        """It has neither failed anywhere nor asked for anything outside its file."""
        assert not self.requests, self.requests
        assert not self.errors, self.errors


class Browser:
    """A chromium that is running."""

    def __init__(self, running: Any) -> None:
        self._running = running

    @contextmanager
    def open(self, path: Path, *, width: int = 1200, height: int = 900, **context: Any) -> Iterator[Visit]:
        """A file in a window of its own.

        Args:
            path: of the page.
            width: of the window, in pixels.
            height: likewise.
            context: more for Playwright's ``new_context``, such as ``color_scheme="dark"``, ``has_touch=True``,
                ``reduced_motion="reduce"``, ``java_script_enabled=False``.
        """
        window = self._running.new_context(viewport={"width": width, "height": height}, **context)
        try:
            visit = Visit(window.new_page(), [], [], [])
            visit.page.set_default_timeout(15_000)
            visit.page.on("console", lambda message: _heard(visit, message))
            visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
            window.on("request", lambda request: _asked(visit, request.url))
            visit.page.goto(path.resolve().as_uri())
            yield visit
        finally:
            window.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser that PYVAE_CHROMIUM names, or the first on PATH; skips where there is none or no driver of it."""
    driver = pytest.importorskip(
        "playwright.sync_api",
        reason="no Playwright, which drives a browser: pip install 'pyvae-engine[test]'",
    )
    named = os.environ.get("PYVAE_CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, _NAMES)), None)
    if named and not found:
        pytest.fail(f"PYVAE_CHROMIUM={named} is no program")
    if not found:
        pytest.skip("no chromium on PATH: apt-get install chromium, or name one in PYVAE_CHROMIUM")
    with driver.sync_playwright() as playwright:
        # containers run as root, for whom chromium's sandbox does not start, and give little shared memory
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        running = playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield Browser(running)
        finally:
            running.close()


def _heard(visit: Visit, message: Any) -> None:
    visit.messages.append(f"{message.type}: {message.text}")
    if message.type == "error":
        visit.errors.append(message.text)


def _asked(visit: Visit, address: str) -> None:
    if not address.startswith(_OF_THE_PAGE):
        visit.requests.append(address)
