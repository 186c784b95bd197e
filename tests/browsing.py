"""Pages in chromium: where the browser is, which screens are tried, what goes wrong in a page, and a visitor of several."""

import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("RKHS_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (RKHS_CHROMIUM names it)")
SIZES = {"desktop, light": (1280, 900, "light"), "phone, dark": (390, 844, "dark")}
"""Width, height and colour scheme."""
WIDER = "document.documentElement.scrollWidth - innerWidth"
"""JavaScript: by how many pixels a page is wider than the screen."""


def faults_of(page, *ours):
    """A list that grows with what goes wrong in this page: errors, warnings, dialogs, and requests to addresses but `ours`."""
    faults = []
    page.on("console", lambda one: faults.append(one.text) if one.type in ("error", "warning") else None)
    page.on("pageerror", lambda one: faults.append(str(one)))
    page.on("dialog", lambda one: faults.append(f"dialog {one.message}"))
    page.on("request", lambda one: faults.append(one.url) if not one.url.startswith((*ours, "data:", "blob:")) else None)
    return faults


class Visitor:
    """Somebody who goes from page to page of a service, on one screen."""

    def __init__(self, browser, address, width, height, scheme):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, base_url=address)
        context.set_default_timeout(120_000)
        self.page, self.scheme = context.new_page(), scheme
        self.faults = faults_of(self.page, address)

    def arrived(self, path):
        """They come to this page, and it is fine."""
        self.page.wait_for_url(lambda url: path in url)
        self.page.wait_for_load_state("load")
        self.fine()

    def fine(self):
        """Nothing went wrong so far; the page is no wider than the screen, and light or dark as they want it."""
        assert not self.faults, f"{self.page.url}: {self.faults}"
        assert self.page.evaluate(WIDER) <= 0, self.page.url
        light = self.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part > 127)")
        assert light == (self.scheme == "light"), self.page.url

    def downloaded(self, link):
        """The content of the file behind a link."""
        with self.page.expect_download() as found:
            self.page.get_by_role("link", name=link, exact=True).click()
        return Path(found.value.path()).read_bytes()
