"""Where the project's files are, and its scripts as modules, for tests of the book and of the project files."""

import importlib.util
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def tool(name, folder="_tools"):
    """A script of book/_tools or book/_ext as a module; the folders are no packages."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def toc_files():
    """The pages in _toc.yml, in order, without suffix; sections follow the page that they belong to."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"]] + [each["file"] for one in chapters for each in (one, *one.get("sections", ()))]
