"""Tasks by name: `load("world/rte")`, `load("superglue/cb", path="folder")`, `load("images/digits")`.

The part before "/" names the family, and only the module of that family is imported.
Text: world (generated small world), place (the place of a prompt decides), docs (real text of installed libraries),
superglue (through `datasets`).
Images: images (offline), vtab, fgvc and coop (through `datasets` or from local files).
Of your own: texts/folder and images/folder, or `text_folder`, `image_folder` and `image_lists`.
A family module has `NAMES`, its task names with the family in front, and `load(name, **options)`.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

from dplearn.tasks.base import Task
from dplearn.tasks.images import ImageTask
from dplearn.tasks.own_images import image_folder, image_lists
from dplearn.tasks.own_texts import text_folder

FAMILIES = {
    "world": "dplearn.tasks.world",
    "place": "dplearn.tasks.place",
    "docs": "dplearn.tasks.documentation",
    "superglue": "dplearn.tasks.superglue",
    "texts": "dplearn.tasks.own_texts",
    "images": "dplearn.tasks.images",
    "vtab": "dplearn.tasks.vision_sets",
    "fgvc": "dplearn.tasks.vision_sets",
    "coop": "dplearn.tasks.vision_sets",
}

__all__ = ["ImageTask", "Task", "image_folder", "image_lists", "load", "names", "text_folder"]


def names(family: str | None = None) -> tuple[str, ...]:
    """All task names, or those of one family.

    >>> names("superglue")
    ('superglue/boolq', 'superglue/multirc', 'superglue/rte', 'superglue/cb', 'superglue/wic')
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family={family!r}: expected one of {list(FAMILIES)}")
    chosen = list(FAMILIES) if family is None else [family]
    return tuple(
        name for key in chosen for name in import_module(FAMILIES[key]).NAMES if name.startswith(f"{key}/")
    )


def load(name: str, **options: Any) -> Task | ImageTask:
    """The task of that name; the options are those of its family's `load`."""
    return family_of(name).load(name, **options)


def family_of(name: str) -> ModuleType:
    """The module of the task of that name; an unknown name is an error that lists those that there are."""
    family = name.partition("/")[0] if isinstance(name, str) else None
    if family not in FAMILIES:
        raise ValueError(f"name={name!r}: expected 'family/task' with a family out of {list(FAMILIES)}")
    if name not in names(family):
        raise ValueError(f"name={name!r}: expected one of {list(names(family))}")
    return import_module(FAMILIES[family])
