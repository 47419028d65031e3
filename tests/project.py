"""Where the project's files are, and its scripts as modules, for tests of the book and of the project files."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tool(name, folder="_tools"):
    """A script of book/_tools or book/_ext as a module; the folders are no packages."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
