"""The whole book as one PDF: Chromium prints each page of _toc.yml, pypdf joins them.

    python book/_tools/make_pdf.py _build/html _build/book.pdf

Pages stand in the order of the contents, each with its title in the footer and in the outline. A link to another page
of the book leads to the place where that page begins; links to the source code are dropped, others stay as they are.
The look is the print style of book/_static/custom.css. Chromium is the one that DPLEARN_BROWSER names, or the first
that is found.
"""

import functools
import html
import http.server
import io
import os
import shutil
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag

import yaml

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOOTER = (
    '<div style="width: 100%; margin: 0 15mm; font: 8px sans-serif; display: flex; justify-content: space-between">'
    '<span>{title}</span><span><span class="pageNumber"></span> / <span class="totalPages"></span></span></div>'
)
# Anchors carry the name of their page: "exercises" is one of sixteen once the pages are joined.
READY = """async (page) => {
  for (const part of document.querySelectorAll("[id]")) part.id = `${page}--${part.id}`;
  for (const link of document.querySelectorAll("a[href^='#']"))
    link.setAttribute("href", `#${page}--${decodeURIComponent(link.getAttribute("href").slice(1))}`);
  document.querySelectorAll("article details").forEach((part) => (part.open = true));
  document.querySelectorAll("article img").forEach((image) => (image.loading = "eager"));
  await document.fonts.ready;
}"""


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *args):
        pass


def contents():
    """The pages of _toc.yml in order, without suffix; sections follow the page that they belong to."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"]] + [each["file"] for one in chapters for each in (one, *one.get("sections", ()))]


def printed(browser, base, name):
    """(title, PDF) of the page called name of the site at base: bytes, as Chromium prints it on A4."""
    page = browser.new_page()
    page.set_default_timeout(180_000)
    page.emulate_media(media="print", color_scheme="light")
    page.goto(f"{base}/{name}.html", wait_until="load")
    page.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 0) : 0")
    page.evaluate(READY, name)
    title = page.title().rpartition(" — ")[0] or page.title()
    data = page.pdf(
        format="A4",
        scale=0.75,  # 88 columns of code in one line, text of 9 points
        margin={"top": "15mm", "bottom": "18mm", "left": "15mm", "right": "15mm"},
        print_background=True,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=FOOTER.format(title=html.escape(title)),
    )
    page.close()
    return title, data


def target_of(address, base, starts):
    """Where a link leads: the number of a sheet, None for a page that is not in the book, or "outside".

    base: the address of the site's root; starts: {name of a page: the sheet on which it begins}.
    """
    if not address.startswith(f"{base}/"):
        return "outside"
    path = unquote(urldefrag(address)[0].removeprefix(f"{base}/")).partition("?")[0]
    return starts.get(path.removesuffix(".html"))


def join(parts, base):
    """One PDF of the parts [(name, title, bytes)], with an outline and links between the parts."""
    import pypdf
    from pypdf.annotations import Link
    from pypdf.generic import Fit, NameObject

    writer, starts = pypdf.PdfWriter(), {}
    for name, title, data in parts:
        starts[name] = len(writer.pages)
        writer.append(io.BytesIO(data), outline_item=title, import_outline=False)
    for number, page in enumerate(writer.pages):
        kept, inner = [], []
        for reference in page.get("/Annots", []):
            annotation = reference.get_object()
            address = annotation.get("/A", {}).get("/URI")
            target = "outside" if address is None else target_of(str(address), base, starts)
            if target == "outside":
                kept.append(reference)
            elif target is not None:
                inner.append((annotation["/Rect"], target))
        page[NameObject("/Annots")] = pypdf.generic.ArrayObject(kept)
        for place, target in inner:
            writer.add_annotation(
                number, Link(rect=place, target_page_index=target, fit=Fit.fit_horizontally(top=842))
            )
    writer.add_metadata({"/Title": parts[0][1]})
    return writer


def make(site, target, pages=None):
    """Print the pages (all of _toc.yml) of a built site into target; returns the number of sheets."""
    from playwright.sync_api import sync_playwright

    executable = os.environ.get("DPLEARN_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise FileNotFoundError(
            f"no browser: expected one of {', '.join(BROWSERS)}, or DPLEARN_BROWSER to name it"
        )
    pages = contents() if pages is None else pages
    missing = [name for name in pages if not Path(site, f"{name}.html").is_file()]
    if missing:
        raise FileNotFoundError(f"site={str(site)!r}: expected a built book, found no {missing[0]}.html")
    handler, parts = functools.partial(Silent, directory=site), []
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        sync_playwright() as playwright,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for number, name in enumerate(pages, start=1):
            parts.append((name, *printed(browser, base, name)))
            print(f"{number} of {len(pages)}: {name}", flush=True)
        browser.close()
        server.shutdown()
    writer = join(parts, base)
    writer.write(target)
    return len(writer.pages)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(f"{make(*sys.argv[1:])} sheets in {sys.argv[2]}")
