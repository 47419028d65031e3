"""Headless Chromium for the tests that need a browser: the fixture ``browser``, and what happens without one."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def missing(what):
    """Skip with the reason, or fail where the browser test is required."""
    if os.environ.get("DPLEARN_REQUIRE_BROWSER") == "1":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: the one in DPLEARN_BROWSER, or the first that is installed."""
    executable = os.environ.get("DPLEARN_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        missing(f"no browser: none of {', '.join(NAMES)} is installed, and DPLEARN_BROWSER is not set")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # No sandbox: containers that run as root do not offer one; the pages are our own.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()
