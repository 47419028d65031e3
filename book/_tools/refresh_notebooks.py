"""Execute notebooks and store them in the one normal form in which they are kept.

    python book/_tools/refresh_notebooks.py notebooks/00_first_prompt.ipynb ...

Normal form: outputs present, execution counts 1..n, streams merged, ids by position, no metadata that depends on
who ran it. Running it twice gives the same bytes, so a diff shows only what changed. The package's tests compare
the stored files with normal_form() below.
"""

import argparse
import copy
import os
import time
from pathlib import Path

import nbformat

# Everything else in the metadata (editor state, kernel names of someone's machine) is dropped.
CELL_METADATA = ("tags", "mystnb")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def merged(outputs):
    """Outputs with neighbouring pieces of the same stream joined, and without run-dependent fields."""
    result = []
    for output in outputs:
        output = copy.deepcopy(output)
        output.pop("transient", None)
        last = result[-1] if result else None
        if output.output_type == "stream" and last is not None and last.get("name") == output.name:
            last.text += output.text
        else:
            result.append(output)
    return result


def normal_form(notebook):
    """The notebook in normal form, as text; the argument is not changed."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({k: cell.metadata[k] for k in CELL_METADATA if k in cell.metadata})

        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = merged(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def execute(notebook, folder):
    """Run every cell in a fresh kernel whose working directory is folder; returns the executed notebook."""
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def refresh(path):
    """Execute and store one notebook; returns True if the file changed."""
    before = path.read_text(encoding="utf8")
    notebook = nbformat.reads(before, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    after = normal_form(execute(notebook, path.parent))
    if after == before:
        return False
    temporary = path.with_suffix(".ipynb.tmp")
    temporary.write_text(after, encoding="utf8")
    temporary.replace(path)
    return True


def main():
    """Refresh the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    # One thread: the same order of additions on every machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # As in notebooks/conftest.py: no advice to install ipywidgets in the stored outputs.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    for path in parser.parse_args().notebooks:
        print(f"{path} ...", end=" ", flush=True)
        start = time.perf_counter()
        changed = refresh(path)
        print(f"{time.perf_counter() - start:.0f} s, {'stored' if changed else 'unchanged'}", flush=True)


if __name__ == "__main__":
    main()
