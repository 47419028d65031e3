"""Sphinx extension: make API pages of docstrings that are written to be read as plain text.

The package's docstrings hold short paragraphs, numpy-style sections and two kinds of lists:

    Parameters
    ----------
    length : l, the number of prompt vectors        an entry of a section or of a paragraph, with a colon
    path       folder with the task's files         an entry of a table, with two or more spaces

`rewrite` turns entries into field lists, so that sphinx-autodoc-typehints can add their types, and other indented
lines into literal blocks. `types_before_examples` keeps its types out of examples. A reference to a name that the
package re-exports (`dplearn.Annealing`), or to a method that a class has inherited, is led to where it is defined.
"""

import inspect
import re

ENTRY = re.compile(r"^(?P<indent>\s*)(?P<name>\S.*?) : (?P<text>.*)$")
COLUMN = re.compile(r"^(?P<indent>\s*)(?P<name>\S+(?: \S+)*)\s{2,}(?P<text>\S.*)$")
NAMED = re.compile(
    r"^(?P<indent>\s*)(?:(?P<name>\w+(?:, \w+)*) : |(?P<field>[a-z_]\w*(?:, \w+)*): )(?P<text>\S.*)$"
)
BESIDE = re.compile(r"\s{2,}([a-z_]\w*) ?: ")
BULLET = re.compile(r"\s*[*-] ")
FIELDS = {"Parameters": "param", "Raises": "raises", "Returns": "returns", "Yields": "returns"}


def indent_of(line):
    """Number of leading blanks."""
    return len(line) - len(line.lstrip())


def is_column(line):
    """True for "name    text": a sentence that only has two blanks after its full stop is none."""
    match = COLUMN.match(line)
    return bool(match) and len(match["name"]) <= 60 and match["name"][-1] not in ".;,?!" and ">>>" not in line


def entry_at(lines, start, match):
    """The entry that begins at lines[start] with its indented continuation: (name, text, next line)."""
    text, end = [match["text"].strip()], start + 1
    while end < len(lines) and lines[end].strip() and indent_of(lines[end]) > len(match["indent"]):
        text.append(lines[end].strip())
        end += 1
    return (match["name"] or match["field"]).strip(), " ".join(text), end


def escaped(text):
    """Prose with its bars taken as bars (|u - v|), not as the marks of a substitution; `code` stays as it is."""
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)


def field(kind, name, text):
    """One line of a field list, or of a bullet list where the name is not one that a signature can have."""
    text = escaped(text)
    if kind == "param" and name.replace("*", "").isidentifier():
        return f":param {name.replace('*', '')}: {text}"
    if kind == "raises" and name.replace(".", "").isidentifier():
        return f":raises {name}: {text}"
    return f"* ``{name}`` {text}"


def named_entries(lines, start):
    """The entries (name, text) of a paragraph that has nothing else, and the next line; None for any other paragraph.

    One entry is enough where its colon stands apart ("length : how many"); else there have to be two. Two blanks part
    entries of one line.
    """
    entries, apart, i = [], False, start
    while i < len(lines) and lines[i].strip():
        match = NAMED.match(lines[i])
        if match is None or len(match["indent"]) != indent_of(lines[start]):
            return None
        apart |= match["name"] is not None
        first, text, i = entry_at(lines, i, match)
        parts = [first, *BESIDE.split(text)]
        entries += zip(parts[::2], parts[1::2])
    return (entries, i) if apart or len(entries) > 1 else None


def rewrite(lines, callable_=True):
    """The lines of a docstring as reStructuredText. callable_: entries of tables name parameters."""
    result, section, i = [], None, 0
    while i < len(lines):
        line, after = lines[i], lines[i + 1] if i + 1 < len(lines) else ""
        before = result[-1] if result else ""
        if not line.strip():
            result.append("")
            i += 1
        elif line.lstrip().startswith(">>>"):
            # Examples stay as they are, up to the next blank line.
            result += [""] if before.strip() else []
            while i < len(lines) and lines[i].strip():
                result.append(lines[i])
                i += 1
        elif re.fullmatch(r"-{3,}", after.strip()) and indent_of(line) == indent_of(after):
            section, i = line.strip(), i + 2
            result.append("")
            if section not in FIELDS:
                result += [f".. rubric:: {section}", ""]
        elif FIELDS.get(section) in ("param", "raises") and ENTRY.match(line):
            name, text, i = entry_at(lines, i, ENTRY.match(line))
            # Several errors may share a line: "FileNotFoundError, IsADirectoryError : no such file".
            names = name.split(", ") if FIELDS[section] == "raises" else [name]
            result += [field(FIELDS[section], each, text) for each in names]
        elif FIELDS.get(section) == "returns":
            block = []
            while i < len(lines) and lines[i].strip():
                block.append(lines[i].strip())
                i += 1
            result.append(f":returns: {escaped(' '.join(block))}")
            section = None
        elif not before.strip() and named_entries(lines, i):
            entries, i = named_entries(lines, i)
            are_parameters = callable_ and section is None and all(name.isidentifier() for name, _ in entries)
            result += [field("param" if are_parameters else None, name, text) for name, text in entries]
        elif is_column(line) and not before.endswith("::"):
            result.append("")
            while i < len(lines) and is_column(lines[i]):
                name, text, i = entry_at(lines, i, COLUMN.match(lines[i]))
                result.append(field("param" if callable_ else None, name, text))
            result.append("")
        elif indent_of(line) and (not before.strip() or before[0] != " ") and not BULLET.match(before):
            # An indented block that is no entry: shown as it stands.
            result += ["", "::", ""]
            while i < len(lines) and (indent_of(lines[i]) or not lines[i].strip()):
                result.append("    " + lines[i])
                i += 1
            result.append("")
        else:
            section = section if before.strip() else None
            result.append(escaped(line))
            i += 1
    return result


def process(app, what, name, obj, options, lines):
    """Rewrite one docstring in place."""
    lines[:] = rewrite(list(lines), callable_=what != "module")


def types_before_examples(lines):
    """Move the type of what is returned in front of an example: sphinx-autodoc-typehints may have put it inside."""
    for at in [at for at, line in enumerate(lines) if line.startswith(":rtype:")]:
        start = at
        while start and lines[start - 1].strip():
            start -= 1
        if any(line.lstrip().startswith(">>>") for line in (lines[start], *lines[at + 1 : at + 2])):
            lines[start:start] = ["", lines.pop(at), ""]


def process_types(app, what, name, obj, options, lines):
    """The same, for the docstring of one object."""
    types_before_examples(lines)


def skip(app, what, name, obj, skip_, options):
    """Leave out the fields of named tuples, whose only text is "Alias for field number 0"."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def defined_name(target):
    """The full name under which a re-exported object or an inherited method is documented, or None."""
    import dplearn

    thing = dplearn
    for part in target.split(".")[1:]:
        thing = getattr(thing, part, None)
    if thing is None or inspect.ismodule(thing) or not hasattr(thing, "__qualname__"):
        return None
    return f"{thing.__module__}.{thing.__qualname__}"


def resolve(app, env, node, contnode):
    """Find dplearn.X where X is defined, and a bare name in the class or module whose docstring has it."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    around = [node.get("py:module"), node.get("py:class")]
    places = [] if around[0] is None else [".".join(filter(None, around)), around[0]]
    for full in [target, *(f"{place}.{target}" for place in places)]:
        name = defined_name(full) if full.startswith("dplearn.") else None
        if name is not None and name != target:
            domain = env.get_domain("py")
            found = domain.resolve_xref(
                env, node["refdoc"], app.builder, node["reftype"], name, node, contnode
            )
            if found is not None:
                return found
    return None


def setup(app):
    """Register the handlers; other extensions work on the docstring in between."""
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("autodoc-process-docstring", process_types, priority=900)
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", resolve)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
