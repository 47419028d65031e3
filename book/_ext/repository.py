"""Sphinx extension: what follows from the address of the repository, and from when and of what the book was built.

_config.yml has the address once, in `repository_url`. Where it is empty, the pages have no buttons that would lead
there: none for Colab and Binder, none for the source. The footer names the version and the date of the build; the date
is that of SOURCE_DATE_EPOCH where it is set, so that the same sources give the same pages.
`<!-- bibtex -->` on a page is replaced by the entries of CITATION.cff.
"""

import datetime
import os
import re
import time
import tomllib
from pathlib import Path

import yaml

MARK = "<!-- bibtex -->"
BUTTONS = ("use_repository_button", "use_issues_button")


def without_address(options):
    """The theme's options for a book whose repository has no address."""
    return {**options, "launch_buttons": {}, "repository_url": "", **dict.fromkeys(BUTTONS, False)}


def with_address(options):
    """The theme's options for a book in a public repository."""
    return {**options, **dict.fromkeys(BUTTONS, True)}


def footer(version, epoch):
    """Version and date, as the pages show them.

    >>> footer("1.2.3", 0)
    'dplearn 1.2.3, built on 1970-01-01'
    """
    day = datetime.datetime.fromtimestamp(epoch, datetime.UTC).date()
    return f"dplearn {version}, built on {day.isoformat()}"


def authors(people):
    """The authors of an entry, in BibTeX's form."""
    names = [
        "{" + who["name"] + "}" if "name" in who else f"{who['family-names']}, {who['given-names']}"
        for who in people
    ]
    return " and ".join(names)


def entry(kind, key, fields):
    """One BibTeX entry."""
    lines = [f"  {name:<9} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def bibtex(citation, address, year):
    """The entries of CITATION.cff: this software and book, and the paper."""
    (paper,) = citation["references"]
    ours = {
        "title": "{" + citation["title"] + "}",
        "author": authors(citation["authors"]),
        "year": year,
        "version": citation["version"],
        "url": address,
    }
    theirs = {
        "title": "{" + paper["title"] + "}",
        "author": authors(paper["authors"]),
        "booktitle": paper["collection-title"],
        "pages": f"{paper['start']}--{paper['end']}",
        "year": paper["year"],
        "url": paper["url"],
    }
    return "\n\n".join([
        entry("software", "dplearn", ours),
        entry("inproceedings", f"{paper['authors'][0]['family-names'].lower()}{paper['year']}position", theirs),
    ])  # fmt: skip


def set_options(app, config):
    """Buttons and footer."""
    options = dict(config.html_theme_options)
    address = (options.get("repository_url") or "").strip()
    options = with_address(options) if address else without_address(options)
    project = tomllib.loads(Path(app.srcdir, "pyproject.toml").read_text(encoding="utf8"))["project"]
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    options["extra_footer"] = f"<div>{footer(project['version'], epoch)}</div>"
    config.html_theme_options = options


def insert_entries(app, page, source):
    """Replace the mark by a block to copy."""
    if MARK not in source[0]:
        return
    path = Path(app.srcdir, "CITATION.cff")
    app.env.note_dependency(str(path))
    address = app.config.html_theme_options.get("repository_url", "")
    year = re.match(r"\d{4}", app.config.copyright)[0]
    text = bibtex(yaml.safe_load(path.read_text(encoding="utf8")), address, year)
    source[0] = source[0].replace(MARK, f"```bibtex\n{text}\n```")


def setup(app):
    """Set the options before the theme reads them."""
    app.connect("config-inited", set_options, priority=100)
    app.connect("source-read", insert_entries)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
