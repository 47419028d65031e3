"""Check the built site without a browser: links, anchors, loads, and words for those who do not see a page.

    python book/_tools/check_site.py _build/html

Found are links that lead nowhere, loads from elsewhere, images and tables without words, pages without a description,
and pages whose scripts, mathematics apart, are heavier than a first visit should be. Prints every problem and exits
with 1 if there is one. What only a browser can see (mathematics, scripts, layout) is checked by the browser test,
tests/book/test_site.py.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

# Elements whose address the browser fetches by itself.
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
# <link> only fetches with one of these relations; others (canonical, next) are plain references.
# The bytes of the scripts of one page, as they lie on the disk; MathJax, which only pages with formulas load, apart.
HEAVIEST, MATHEMATICS = 2_000_000, "mathjax"
LINK_LOADS = {"stylesheet", "icon", "preload", "modulepreload", "manifest", "preconnect", "dns-prefetch"}


class Page(HTMLParser):
    """Collects the anchors, links, loads, scripts, images, tables and the description of one page."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads, self.wordless = set(), [], [], []
        self.scripts, self.nameless, self.described, self.leads_on = [], [], False, False
        self.feed(path.read_text(encoding="utf8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.update(attributes[key] for key in ("id", "name") if attributes.get(key))
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag in LOADS and attributes.get(LOADS[tag]):
            self.loads.append(attributes[LOADS[tag]])
        if attributes.get("srcset"):
            self.loads += [each.split()[0] for each in attributes["srcset"].split(",") if each.strip()]
        if tag == "link" and LINK_LOADS & set((attributes.get("rel") or "").split()):
            self.loads.append(attributes.get("href") or "")
        if tag == "img" and not is_described(attributes):
            self.wordless.append(attributes.get("src", ""))
        if tag == "script" and attributes.get("src"):
            self.scripts.append(attributes["src"])
        if tag == "meta":
            self.described |= attributes.get("name") == "description" and bool(attributes.get("content"))
            self.leads_on |= attributes.get("http-equiv", "").lower() == "refresh"
        # Sphinx lays out its indices as tables; they are lists.
        if (
            tag == "table"
            and not attributes.get("aria-label")
            and "indextable" not in attributes.get("class", "")
        ):
            self.nameless.append(self.getpos()[0])
        if tag == "caption" and self.nameless:
            self.nameless.pop()


def is_described(attributes):
    """True if an image has words, or an empty alt on purpose; Sphinx puts the file name where there are none."""
    alt = attributes.get("alt")
    return alt is not None and not alt.endswith((".png", ".svg", ".jpg"))


def is_outside(address):
    """True if the address names another host."""
    return urlparse(address).scheme in ("http", "https") or address.startswith("//")


def weight_of(address, path):
    """The bytes of a script that the page at path loads; 0 for one that is not there, which is another problem."""
    file = path.parent / unquote(urlparse(address).path)
    return 0 if is_outside(address) or not file.is_file() else file.stat().st_size


def problems_of(path, pages, root):
    """Yield one line per problem of the page at path."""
    page = pages[path]
    for address in page.loads:
        if is_outside(address):
            yield f"loads from outside: {address}"
    for address in page.wordless:
        yield f"image without alternative text: {address}"
    for line in page.nameless:
        yield f"table without caption or name: line {line}"
    if not page.described and not page.leads_on:
        yield "no description"
    weight = sum(weight_of(address, path) for address in page.scripts if MATHEMATICS not in address)
    if weight > HEAVIEST:
        yield f"scripts of {weight} bytes, expected at most {HEAVIEST}"
    for address in page.links + page.loads:
        if is_outside(address) or urlparse(address).scheme:
            continue
        name, anchor = urldefrag(address)
        target = (path.parent / unquote(name.split("?")[0])).resolve() if name.split("?")[0] else path
        if target.is_dir():
            target = target / "index.html"
        if root not in target.parents or not target.exists():
            yield f"broken link: {address}"
        elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
            yield f"broken anchor: {address}"


def main(folder):
    """Check every page below folder; returns the exit status."""
    root = Path(folder).resolve()
    # _static holds files of the theme, templates among them, and no pages.
    pages = {
        path: Page(path) for path in sorted(root.rglob("*.html")) if root / "_static" not in path.parents
    }
    if not pages:
        print(f"{folder}: no pages; run make book first")
        return 1
    found = 0
    for path in pages:
        for line in problems_of(path, pages, root):
            print(f"{path.relative_to(root)}: {line}")
            found += 1
    links = sum(len(page.links) for page in pages.values())
    print(f"{len(pages)} pages, {links} links, {found} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 2 else __doc__)
