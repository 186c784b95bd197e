"""Pages in chromium: where the browser is, which screens are tried, and what goes wrong in a page."""

import os
import shutil

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
