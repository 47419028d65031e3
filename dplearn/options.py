"""How an option of a prompt is declared: once, for validation, refusals and documentation (:mod:`dplearn.config`)."""

from __future__ import annotations

from dataclasses import field
from typing import Any, NamedTuple

from dplearn.checks import Check

# Kinds of backbone, and how an error message calls what they read.
KINDS = {"text": "text", "vision": "images", "image-text": "image-text models"}


class Option(NamedTuple):
    """What is declared of an option.

    words: one line of documentation.  check: (name, value) -> ValueError that names both and what was expected.
    default: of the field of PromptConfig.  kinds: the kinds of backbone that serve the option; others refuse all but
    the default.  only: values that fewer kinds serve -> these.  before: what prompts did that were saved before there
    was this option; None: as the default says.
    """

    words: str
    check: Check
    default: object
    kinds: tuple[str, ...] = tuple(KINDS)
    only: dict[Any, tuple[str, ...]] | None = None
    before: object = None

    def refuse_unserved(self, name: str, value: object, kind: str, model: str, reads: str) -> None:
        """Raise ValueError where a value asks for what only another kind of backbone serves."""
        served = (self.only or {}).get(value, self.kinds)
        if kind not in served and value != self.default:
            nouns = " and ".join(KINDS[each] for each in served)
            raise ValueError(
                f"{name}={value!r} is for {nouns}, expected {self.default!r}: {model} reads {reads}"
            )

    def row(self, name: str) -> tuple[str, str, str, str, str]:
        """Name, default, what is expected, the kinds of backbone that serve it, words."""
        kinds = "all" if self.kinds == tuple(KINDS) else ", ".join(self.kinds)
        kinds += "".join(f"; {value!r}: {', '.join(few)}" for value, few in (self.only or {}).items())
        return name, repr(self.default), self.check.expected, kinds, self.words


def option(
    default: object,
    words: str,
    check: Check,
    kinds: tuple[str, ...] = tuple(KINDS),
    only: dict | None = None,
    before: object = None,
) -> Any:
    """A field of a dataclass with what is declared of it."""
    return field(default=default, metadata={"option": Option(words, check, default, kinds, only, before)})
