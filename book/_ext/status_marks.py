"""Sphinx extension: the roles {ready}`...` and {planned}`...`, marks that are words and not only colours."""

from docutils import nodes


def mark(name):
    """A role that writes its text in a span of the class name."""

    def role(role_name, rawtext, text, lineno, inliner, options=None, content=None):
        return [nodes.inline(rawtext, text, classes=[name])], []

    return role


def setup(app):
    """Register both roles."""
    for name in ("ready", "planned"):
        app.add_role(name, mark(name))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
