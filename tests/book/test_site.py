"""The built pages in a real browser: what only a browser sees.

Headless Chromium opens every page of _build/html, on a desktop, on a phone and on paper, in the light and in the dark.
Checked are: all mathematics is drawn and has no error, the console is silent, nothing is asked of another host, no
page is wider than a phone, text can be read on its ground, code is not cut on a desktop, and what scrolls can be reached
by keyboard and says so. On a desktop axe-core adds its rules for people who do not see, or see little: no page has a
violation that it calls serious or critical. The second half shows that each check can fail.

Skipped where there is no browser or no built site; with DPLEARN_REQUIRE_BROWSER=1 that is a failure instead.
"""

import functools
import http.server
import importlib.util
import threading
from pathlib import Path

import pytest
from chromium import missing
from project import ROOT, toc_files

SITE = ROOT / "_build" / "html"
VIEWS = {
    "desktop-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "desktop-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone-light": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    "phone-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
    "paper-dark": {
        "viewport": {"width": 760, "height": 1000},
        "color_scheme": "dark",
    },  # printed from a dark screen
}

# Runs in the page, once its mathematics is typeset; returns a list of problems in words.
INSPECT = r"""
async () => {
  const problems = [];
  // Solutions and folded code are opened, so that what they hold is looked at too; nothing fades in while it is measured.
  const still = "*, *::before, *::after { transition: none !important; animation: none !important }";
  document.head.insertAdjacentHTML("beforeend", `<style>${still}</style>`);
  document.querySelectorAll(".toggle-hidden").forEach((part) => part.classList.remove("toggle-hidden"));
  document.querySelectorAll("article details").forEach((part) => (part.open = true));
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  const article = document.querySelector("article") || document.body;
  const short = (text) => (text || "").trim().replace(/\s+/g, " ").slice(0, 60);

  for (const place of document.querySelectorAll("span.math, div.math")) {
    const drawn = place.querySelector("mjx-container");
    if (!drawn) problems.push("math not drawn: " + short(place.textContent));
    else if (drawn.getBoundingClientRect().width < 1) problems.push("math has no width");
  }
  const errors = "mjx-merror, [data-mjx-error], mjx-mtext[style*='color: red'], [mathcolor='red']";
  for (const error of document.querySelectorAll(errors))
    problems.push("TeX error: " + short(error.getAttribute("data-mjx-error") || error.textContent));

  for (const image of article.querySelectorAll("img"))
    if (image.complete && image.naturalWidth === 0) problems.push("image not shown: " + image.getAttribute("src"));

  const width = document.documentElement.scrollWidth;
  if (width > window.innerWidth + 1) problems.push(`page is ${width} px wide, the window ${window.innerWidth} px`);

  // A formula in a sentence does not break by itself and does not scroll: what is longer than its line is lost.
  for (const formula of article.querySelectorAll("span.math > mjx-container")) {
    const line = formula.closest("p, li, td, th, dd, figcaption");
    const cut = formula.getBoundingClientRect().right - (line ? line.getBoundingClientRect().right : innerWidth);
    if (line && !formula.closest("[class*='-scroll'], .output") && cut > 2 && formula.checkVisibility())
      problems.push(`formula is cut by ${Math.round(cut)} px: ${short(formula.textContent)}`);
  }

  // Contrast of prose: WCAG's formula on the text colour and the nearest ground that is not transparent.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((v, i) => (i === 3 ? v / 255 : v));
  };
  const over = (top, ground) => top.slice(0, 3).map((v, i) => v * top[3] + ground[i] * (1 - top[3]));
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    const color = rgba(getComputedStyle(element).backgroundColor);
    return color[3] === 1 ? color.slice(0, 3) : over(color, ground(element.parentElement));
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const opacity = (element) =>
    element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1;
  const seen = new Set();
  const prose = "p, li, td, th, dt, dd, h1, h2, h3, p a, td a, li a, figcaption span, code, pre";
  for (const element of article.querySelectorAll(prose)) {
    if (!element.checkVisibility() || !element.textContent.trim() || element.matches(".headerlink")) continue;
    const under = ground(element);
    const ink = rgba(getComputedStyle(element).color);
    ink[3] *= opacity(element);
    const text = over(ink, under);
    const [high, low] = [luminance(text), luminance(under)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const key = element.tagName + text + under;
    const name = `<${element.tagName.toLowerCase()}> ${short(element.textContent)}`;
    if (ratio < 4.5 && !seen.has(key)) problems.push(`contrast ${ratio.toFixed(2)} of ${name}`);
    seen.add(key);
  }

  // What is wider than its box: code of a cell fits on a desktop; the rest can be reached by keyboard and has a cue.
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const screen = matchMedia("screen").matches;
  for (const box of article.querySelectorAll("*")) {
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
    if (!screen || !scrolls || box.scrollWidth <= box.clientWidth + 1 || !box.clientWidth) continue;
    if (box.closest("mjx-container") && !box.matches("div.math > mjx-container")) continue;
    if (!box.checkVisibility()) continue;
    const name = `<${box.tagName.toLowerCase()}> ${short(box.textContent)}`;
    if (window.innerWidth >= 1280 && box.matches(".cell_input pre")) problems.push("code is cut: " + name);
    if (box.tabIndex < 0) problems.push("scrolls, out of reach of the keyboard: " + name);
    if (getComputedStyle(box).maskImage === "none") problems.push("scrolls without a cue: " + name);
  }
  return problems;
}
"""

# preload: axe would ask for style sheets at addresses that do not exist, for a rule that is off.
# Axe looks at every element. Code has ten thousand, of a few dozen looks: one of each look stays. So do twenty formulas.
AXE = Path(importlib.util.find_spec("axe_playwright_python").origin).with_name("axe.min.js")
FEWER = """
() => {
  const looks = new Set();
  for (const code of document.querySelectorAll("article pre")) {
    for (const token of code.querySelectorAll("span[class]:not(:has(*))")) {
      const look = [token.className, code.parentElement.className, !code.closest(".cell_output")].join(" ");
      if (looks.has(look)) token.replaceWith(token.textContent);
      looks.add(look);
    }
    code.normalize();
  }
  for (const formula of [...document.querySelectorAll("article mjx-container:not(:has(a))")].slice(20))
    formula.textContent = "x";
}
"""
ACCESSIBLE = """
async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"], preload: false });
  return violations
    .filter(({ impact }) => ["serious", "critical"].includes(impact))
    .flatMap(({ id, nodes }) => nodes.map(({ html }) => `axe ${id}: ${html.slice(0, 100)}`));
}
"""


def pages():
    """Addresses of the pages below the site's root: the book's, from _toc.yml, and those that Sphinx adds."""
    return [f"{name}.html" for name in toc_files()] + ["genindex.html", "search.html"]


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    """The address of a local server of the built site."""
    if not (SITE / "index.html").exists():
        missing("no built site in _build/html: run make book first")
    handler = functools.partial(Silent, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def problems_of(browser, address, page_name, view, change=None):
    """Open one page in one view; returns the problems found. change: a function of the HTML, applied on the way."""
    problems = []
    page = browser.new_page(**VIEWS[view])
    if view.startswith("paper"):
        page.emulate_media(media="print")
    page.on(
        "console", lambda m: problems.append(f"console: {m.text}") if m.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))

    def guard(route):
        url = route.request.url
        if not url.startswith((address, "data:", "blob:")):
            problems.append(f"asks another host: {url}")
            route.abort()
        elif change is not None and route.request.is_navigation_request():
            response = route.fetch()
            route.fulfill(response=response, body=change(response.text()))
        else:
            route.continue_()

    page.set_default_timeout(60_000)  # the cores may be shared
    page.route("**/*", guard)
    response = page.goto(f"{address}/{page_name}", wait_until="load")
    if not response.ok:
        problems.append(f"status {response.status}")
    problems += page.evaluate(INSPECT)
    theme = page.evaluate("document.documentElement.dataset.theme")
    if theme != VIEWS[view]["color_scheme"]:
        problems.append(f"theme is {theme}, the reader asked for {VIEWS[view]['color_scheme']}")
    if view.startswith("desktop"):
        page.evaluate(FEWER)
        page.evaluate(AXE.read_text(encoding="utf8"))
        problems += page.evaluate(ACCESSIBLE)
    page.close()
    return problems


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("page_name", pages())
def test_page(browser, address, page_name, view):
    if not (SITE / page_name).exists():
        missing(f"{page_name} is not in the built site, which is older than _toc.yml: run make book")
    assert problems_of(browser, address, page_name, view) == []


def test_search_finds_a_page(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=postfix", wait_until="networkidle")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    assert "notation" in page.inner_html("#search-results")
    page.close()


def test_search_shows_no_tex(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=temperature", wait_until="networkidle")
    page.wait_for_selector("#search-results p.context", timeout=10_000)
    found = page.inner_text("#search-results")
    assert "Contents" not in found and "previous" not in found
    assert "temperature" in found.lower() and "\\(" not in found and "\\tau" not in found
    page.close()


CHAPTER = "notebooks/05_gumbel_softmax.html"
TERM = "a[data-definition]"


def visible_definition(page):
    """The text of the definition on the page, or None while it is hidden."""
    box = page.locator("#definition")
    return box.inner_text() if box.is_visible() else None


def test_a_definition_shows_on_hover_and_on_focus(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{address}/{CHAPTER}")
    link = page.locator(TERM).first
    expected = " ".join(link.get_attribute("data-definition").split())
    assert len(expected) > 20 and visible_definition(page) is None
    link.hover()
    assert visible_definition(page) == expected
    box = page.locator("#definition").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.keyboard.press("Escape")
    assert visible_definition(page) is None
    link.focus()
    assert visible_definition(page) == expected
    assert link.get_attribute("aria-describedby") == "definition"
    link.evaluate("link => link.blur()")
    assert visible_definition(page) is None and link.get_attribute("aria-describedby") is None
    page.close()


def test_the_first_tap_defines_and_the_second_follows(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.goto(f"{address}/{CHAPTER}")
    link = page.locator(TERM).first
    link.tap()
    assert visible_definition(page) and page.url.endswith(CHAPTER)
    link.tap()
    page.wait_for_url("**/book/glossary.html#term-*")
    page.close()


def test_printed_lines_without_columns_break_on_a_phone(browser, address):
    """The result stands at their end. Aligned lines stay whole, and so does everything on a wide screen."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{address}/{CHAPTER}")
    wraps = """boxes => boxes.map(box => [getComputedStyle(box).whiteSpace, box.scrollWidth <= box.clientWidth + 1,
      / {2,}/.test(box.textContent.trim())])"""
    printed = page.locator("article .cell_output pre")
    prose, aligned = [], []
    for space, fits, columns in printed.evaluate_all(wraps):
        (prose if space == "pre-wrap" else aligned).append((fits, columns))
    assert len(prose) > 3 and all(fits for fits, _ in prose)
    assert aligned and all(columns for _, columns in aligned)
    page.set_viewport_size({"width": 1280, "height": 900})
    assert {space for space, *_ in printed.evaluate_all(wraps)} == {"pre"}
    page.close()


def test_what_is_wider_fades_where_more_follows(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{address}/{CHAPTER}")
    box = page.wait_for_selector("article pre.more-right")
    assert box.get_attribute("tabindex") == "0"
    box.evaluate("box => (box.scrollLeft = box.scrollWidth)")
    page.wait_for_function("box => box.matches('.more-left:not(.more-right)')", arg=box)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function("document.querySelectorAll('article .cell_input pre.more-left').length === 0")
    page.close()


FIGURES = """
() => Promise.all([...document.querySelectorAll("article .drawing")].map(async (figure) => {
  const images = [...figure.querySelectorAll("img")].filter((image) => image.checkVisibility());
  for (const image of images) image.loading = "eager"; // those in the dark wait until they are seen
  await Promise.all(images.map((image) => image.decode()));
  const links = [...figure.querySelectorAll("a")].filter((link) => link.checkVisibility());
  return {
    files: images.map((image) => image.currentSrc.split("/").pop()),
    words: images.map((image) => image.alt),
    grounds: images.map((image) => getComputedStyle(image).backgroundColor + getComputedStyle(image).filter),
    widths: images.map((image) => image.getBoundingClientRect().width),
    links: links.map((link) => link.getAttribute("aria-label")),
    caption: figure.closest("figure").querySelector("figcaption").checkVisibility(),
  };
}))
"""


@pytest.mark.parametrize("view", VIEWS)
def test_a_figure_is_shown_and_heard_once(browser, address, view):
    page = browser.new_page(**VIEWS[view])
    page.emulate_media(media="print" if view.startswith("paper") else "screen")
    page.goto(f"{address}/{CHAPTER}")
    found = page.evaluate(FIGURES)
    assert len(found) == 4
    kind = "-dark.svg" if view.endswith("dark") and not view.startswith("paper") else ".svg"
    for figure in found:
        (file,), (words,), (width,) = figure["files"], figure["words"], figure["widths"]
        assert file.endswith(kind) and (kind != ".svg" or "-dark" not in file)
        assert figure["grounds"] == ["rgba(0, 0, 0, 0)none"] and figure["caption"]
        assert figure["links"] == ([] if view.startswith("paper") else ["Open this figure alone"])
        assert page.get_by_role("img", name=words, exact=True).count() == 1
        assert not view.startswith("phone") or width >= 358  # what test_figures.py reckons with
    narrow = ["fig-gumbel-bias", "fig-gumbel-segments"] if view.startswith("phone") else []
    assert [f["files"][0].partition("-narrow")[0] for f in found if "-narrow" in f["files"][0]] == narrow
    page.close()


def test_a_figure_opens_alone_on_its_ground(browser, address):
    page = browser.new_page(**VIEWS["desktop-dark"])
    page.goto(f"{address}/{CHAPTER}")
    page.locator("article .drawing").first.click()
    page.wait_for_url("**/_images/fig-gumbel-bias-dark.svg#ground")
    ground = "getComputedStyle(document.getElementById('ground'))"
    assert page.evaluate(f"{ground}.visibility") == "visible"
    assert page.evaluate(f"{ground}.fill") == "rgb(18, 18, 18)"
    page.goto(page.url.partition("#")[0])
    assert page.evaluate(f"{ground}.visibility") == "hidden"
    page.close()


def test_icons_are_drawn(browser, address):
    """Without the theme's script they are letters of its font."""
    page = browser.new_page()
    page.goto(f"{address}/book/intro.html")
    page.evaluate("document.fonts.ready.then(() => 0)")
    fonts = page.evaluate("[...document.fonts].filter((f) => f.status === 'loaded').map((f) => f.family)")
    assert any("Font Awesome" in name for name in fonts)
    icons = page.evaluate(
        """[...document.querySelectorAll('.article-header-buttons i')].filter((icon) => icon.checkVisibility())
        .map((icon) => [getComputedStyle(icon, '::before').content, icon.getBoundingClientRect().width])"""
    )
    assert len(icons) >= 2
    assert all(content not in ("none", "normal", '""') and width >= 10 for content, width in icons)
    page.close()


BEFORE_END = "</article>"
BROKEN = {
    "undefined macro": (r'<span class="math">\(\nosuchmacro x\)</span>', "TeX error"),
    "unbalanced braces": (r'<div class="math">\[\frac{1}{2\]</div>', "math not drawn|TeX error"),
    "outside request": ('<script src="https://example.org/a.js"></script>', "asks another host"),
    "console error": ("<script>console.error('broken')</script>", "console: broken"),
    "script error": ("<script>undefinedFunction()</script>", "script error"),
    "missing image": ('<img src="no-such-file.png" alt="none">', "image not shown"),
    "too wide": ('<div style="width: 900px">wide</div>', "px wide"),
    "pale text by opacity": ('<p style="opacity: 0.4">pale</p>', "contrast"),
    "pale text": ('<p style="color: #777; background: #888">pale</p>', "contrast"),
    "out of reach": (
        '<div style="overflow-x: auto"><div style="width: 900px">wide</div></div>',
        "out of reach of the keyboard",
    ),
    "long formula": (
        r'<p><span class="math">\(a + b + c + d + e + f + g + h + i + j + k + l + m + n\)</span></p>',
        "formula is cut",
    ),
    "no cue": (
        '<div style="overflow-x: auto" tabindex="0"><div style="width: 900px">wide</div></div>',
        "without a cue",
    ),
}
BROKEN_DESKTOP = {
    "no name": ("<button></button>", "axe button-name"),
    "long code": (f'<div class="cell_input"><pre>{"x" * 120}</pre></div>', "code is cut"),
}


@pytest.mark.parametrize("name", [*BROKEN, *BROKEN_DESKTOP])
def test_broken_page_is_found(browser, address, name):
    html, expected = (BROKEN | BROKEN_DESKTOP)[name]
    # The last piece of the article's own content: wide boxes elsewhere would be cut off by the theme.
    found = problems_of(
        browser,
        address,
        "book/notation.html",
        "desktop-light" if name in BROKEN_DESKTOP else "phone-light",
        change=lambda text: text.replace(BEFORE_END, html + BEFORE_END, 1),
    )
    assert any(part in line for part in expected.split("|") for line in found), f"found only {found}"


def test_raw_mathematics_is_found(browser, address):
    def without_mathjax(text):
        return text.replace("mathjax/tex-chtml-full.js", "mathjax/missing.js")

    found = problems_of(browser, address, "book/notation.html", "desktop-light", change=without_mathjax)
    assert any("math not drawn" in line for line in found)
