"""The book on paper: the order of its pages, their outline, and where links between them lead."""

import io

import pytest
from project import ROOT, toc_files, tool

pypdf = pytest.importorskip("pypdf")
BASE = "http://127.0.0.1:1"
SITE = ROOT / "_build" / "html"


def sheets(number, *addresses):
    """A PDF of blank sheets; the first has a link to each address."""
    from pypdf.annotations import Link

    writer = pypdf.PdfWriter()
    for _ in range(number):
        writer.add_blank_page(595, 842)
    for n, address in enumerate(addresses):
        writer.add_annotation(0, Link(rect=(10, 10 * n, 90, 10 * n + 8), url=address))
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def links(page, reader):
    """Where the links of a sheet lead: an address, or the number of a sheet."""
    found = []
    for reference in page.get("/Annots", []):
        annotation = reference.get_object()
        if isinstance(annotation.get("/Dest"), str):
            continue  # to an anchor of the same page
        if "/Dest" in annotation:
            sheet = annotation["/Dest"][0]
            found.append(sheet if isinstance(sheet, int) else reader.get_page_number(sheet.get_object()))
        else:
            found.append(str(annotation["/A"]["/URI"]))
    return found


def test_all_pages_in_the_order_of_the_contents():
    assert tool("make_pdf").contents() == toc_files()


@pytest.mark.parametrize(
    "address, expected",
    [
        (f"{BASE}/notebooks/b.html#exercises", 3),
        (f"{BASE}/book/a.html", 0),
        (f"{BASE}/_modules/dplearn/x.html#f", None),
        ("https://example.org/book/a.html", "outside"),
    ],
)
def test_where_a_link_leads(address, expected):
    assert tool("make_pdf").target_of(address, BASE, {"book/a": 0, "notebooks/b": 3}) == expected


def test_parts_are_joined_with_an_outline_and_their_links():
    outside = "https://example.org/"
    first = sheets(3, f"{BASE}/notebooks/b.html#x", outside, f"{BASE}/_modules/y.html")
    parts = [("book/a", "The first", first), ("notebooks/b", "The second", sheets(2, f"{BASE}/book/a.html"))]
    file = io.BytesIO()
    tool("make_pdf").join(parts, BASE).write(file)
    reader = pypdf.PdfReader(file)
    assert len(reader.pages) == 5 and reader.metadata.title == "The first"
    outline = [(item.title, reader.get_destination_page_number(item)) for item in reader.outline]
    assert outline == [("The first", 0), ("The second", 3)]
    assert links(reader.pages[0], reader) == [outside, 3]
    assert links(reader.pages[3], reader) == [0]


def test_a_site_that_is_not_built_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DPLEARN_BROWSER", "none")
    with pytest.raises(FileNotFoundError, match=r"site=.*expected a built book, found no book/intro\.html"):
        tool("make_pdf").make(tmp_path, tmp_path / "book.pdf")


def test_a_browser_prints_the_pages(browser, tmp_path):
    """Two small pages: text, formulas as letters, links from one to the other, anchors that do not clash."""
    from chromium import missing

    pages = ["book/notation", "book/glossary"]
    if not all((SITE / f"{name}.html").is_file() for name in pages):
        missing("no built site in _build/html: run make book first")
    module = tool("make_pdf")
    printed = [(name, *module.printed(browser, SITE.as_uri(), name)) for name in pages]
    assert [title for _, title, _ in printed] == ["Notation", "Glossary"]
    file = io.BytesIO()
    module.join(printed, SITE.as_uri()).write(file)
    reader = pypdf.PdfReader(file)
    start = reader.get_destination_page_number(reader.outline[1])
    text = [" ".join(page.extract_text().split()) for page in reader.pages]
    assert "number of inputs in a batch" in " ".join(text[:start])
    assert "Low-rank adaptation" in " ".join(text[start:])
    assert 0 in [target for page in reader.pages[start:] for target in links(page, reader)]
    assert all(
        name.startswith(("/book/notation--", "/book/glossary--")) for name in reader.named_destinations
    )
