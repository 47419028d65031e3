"""Sphinx extension: figures, equations, theorems and exercises of a chapter carry its number, as in 3.2.

A chapter's number is that of its title, "03 · Attention with prompts". So a new figure renumbers its own chapter alone.
"""

import re

from sphinx.environment.collectors.toctree import TocTreeCollector

CHAPTER = re.compile(r"(\d\d) · ")


def chapter_of(title):
    """The number at the start of a chapter's title, or None for other pages."""
    match = CHAPTER.match(title)
    return int(match.group(1)) if match else None


def number(app, env):
    """Number what is numbered once more, as if the pages were sections with the chapters' numbers."""
    chapters = {page: chapter_of(title.astext()) for page, title in env.titles.items()}
    usual = env.toc_secnumbers
    env.toc_secnumbers = {page: {"": (n,)} for page, n in chapters.items() if n is not None}
    try:
        return TocTreeCollector().assign_figure_numbers(env)
    finally:
        env.toc_secnumbers = usual  # titles show the number that they were written with


def setup(app):
    """Number after Sphinx's own numbering, which listens to the same event."""
    app.connect("env-get-updated", number, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
