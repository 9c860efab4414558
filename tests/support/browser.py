"""A headless Chromium for tests of pages: what a page complains of or asks for is kept."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.waiting import HANG_S

PROGRAM = shutil.which("chromium")
needs_a_browser = pytest.mark.skipif(PROGRAM is None, reason="there is no chromium; `make browser` installs it")


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """While it is there, an event loop counts as running in this thread: asyncio.run is refused."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"], timeout=1000 * HANG_S)
        yield started
        started.close()


class Tab:
    """A page in a tab of its own."""

    def __init__(self, chromium: Any, url: str, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.url = url
        self.page = chromium.new_page(**options)
        self.page.set_default_timeout(1000 * HANG_S)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


class Shown(Tab):
    """A report, once all of its figures are drawn."""

    def __init__(self, chromium: Any, url: str, **options: Any) -> None:
        super().__init__(chromium, url, **options)
        self.page.locator(".panel:not(.drawn)").first.wait_for(state="detached")

    def open_all(self) -> None:
        """Open all that can be folded away."""
        for details in self.page.locator("details").all():
            details.evaluate("element => { element.open = true; }")

    def check(self) -> None:
        """No complaint, no request but for the page itself, nothing wider than the window; closes it."""
        wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 "
        wide += "&& !e.closest('.scroll, nav, .list')).map(e => e.outerHTML.slice(0, 200)).slice(0, 5)"
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith("data:")] == [self.url]
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), self.page.evaluate(wide)
        self.page.close()
