"""A figure as HTML: its elements, the numbers that it holds, and itself in a browser that reports what goes wrong."""

import json
import re
from html.parser import HTMLParser


def stored(html):
    """The numbers that a page holds."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, and whether all elements are closed in order."""

    VOID = {"br", "input", "meta"}

    def __init__(self, html):
        super().__init__()
        self.found, self.open, self.words = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] not in ("script", "style"):
            self.words.append(data)


class Opened:
    """HTML in a browser, with what its console said and what it asked for."""

    def __init__(self, browser, body, width=1000, **options):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        self.page.set_default_timeout(60_000)  # the cores may be shared
        self.console, self.requests = [], []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.route("**/*", lambda route: (self.requests.append(route.request.url), route.abort()))
        self.page.set_content(f'<!doctype html><meta charset="utf-8"><title>t</title><body>{body}')

    def find(self, name):
        return self.page.locator(f"#{name}")

    def close(self):
        self.page.close()
        assert self.console == [] and self.requests == []

    def in_jupyterlab(self, html):
        """Put in as JupyterLab does: parsed without running scripts, each script then replaced by a copy."""
        self.page.evaluate(
            """html => {
              const host = document.createElement("div");
              host.innerHTML = html;
              for (const old of [...host.querySelectorAll("script")]) {
                const copy = document.createElement("script");
                for (const { name, value } of old.attributes) copy.setAttribute(name, value);
                copy.textContent = old.textContent;
                old.replaceWith(copy);
              }
              document.body.append(host);
            }""",
            html,
        )
