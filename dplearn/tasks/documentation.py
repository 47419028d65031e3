"""Real English: tasks made from the docstrings of installed, pinned libraries. Nothing is redistributed.

The sources are parsed with `ast` (no library is imported, no docstring is stored in this package) and cached for the
process. Each library is a *pretraining* library or a *task* library, never both; the modules of the task libraries
are split into train, validation and test, so that no text is shared between these. The extracted data has a hash:
where the installed versions give other data than the recorded one, a warning shows both.

docs/library    which library is a passage from (library names removed)
docs/signature  does a summary belong to a signature; wrong ones are summaries of other functions of the same library
docs/next       does the second passage follow the first; wrong ones are second passages from the same library
"""

import ast
import hashlib
import json
import random
import re
import warnings
import zlib
from functools import cache
from importlib import metadata, util
from pathlib import Path

from dplearn.checks import caller_level
from dplearn.tasks.base import Task

# import name -> (distribution, folders to read; () is all of it)
TASK_LIBRARIES = {
    "networkx": ("networkx", ()),
    "sklearn": ("scikit-learn", ()),
    "scipy": (
        "scipy",
        ("stats", "signal", "optimize", "linalg", "sparse", "spatial", "special", "ndimage", "interpolate"),
    ),
}
PRETRAINING_LIBRARIES = {
    "numpy": ("numpy", ()),
    "pandas": ("pandas", ()),
    "matplotlib": ("matplotlib", ()),
    "torch": (
        "torch",
        ("nn", "optim", "distributions", "utils/data", "linalg", "fft", "special", "autograd"),
    ),
    "sympy": (
        "sympy",
        ("core", "functions", "matrices", "ntheory", "sets", "stats", "combinatorics", "geometry", "solvers"),
    ),
}
LIBRARY_WORDS = {
    "networkx": "graphs",
    "sklearn": "learning",
    "scipy": "science",
    "numpy": "arrays",
    "pandas": "tables",
    "matplotlib": "plots",
    "torch": "tensors",
    "sympy": "symbols",
}
# Recorded with the versions in constraints.txt: library -> (version, first 16 hex digits of the data's SHA-256).
RECORDED = {
    "networkx": ("3.6.1", "44cb207c36dfb131"),
    "sklearn": ("1.9.1", "607236e89cf09c97"),
    "scipy": ("1.17.1", "31431133642a626f"),
}
SIZES = {"train": 2000, "validation": 500, "test": 1000}  # at most; see load
NAMES = ("docs/library", "docs/signature", "docs/next")
LONGEST = 26  # words of a passage or summary that are kept
SKIPPED_FOLDERS = {
    "tests",
    "test",
    "testing",
    "conftest",
    "_vendor",
    "vendor",
    "externals",
    "_external",
    "array_api_compat",
}


def plain(text: str) -> str:
    """One line of running text: roles, backquotes, emphasis and links are taken out."""
    text = re.sub(r":\w+(?::\w+)*:`~?([^`<]*)[^`]*`", r"\1", text)
    text = re.sub(r"`([^`<]*)<[^`]*`_+", r"\1", text)
    text = re.sub(r"[`*|]+|\[\d+\]_?", " ", text)
    return " ".join(re.sub(r"https?://\S+", " ", text).split())


def prose(paragraph: str) -> bool:
    """True for a paragraph of running text: no doctest, table, heading, list, directive or field."""
    lines = paragraph.strip().splitlines()
    if not lines or any(
        re.match(r"\s*(>>>|\.\.|[-=~^*+#]{3,}|[-*+|] |\d+\.|:\w+|@)", line) for line in lines
    ):
        return False
    if any(re.search(r"\s:\s|::$|\\|\$", line) for line in lines):
        return False
    words = plain(paragraph).split()
    letters = sum(word.strip(".,;:()'\"").isalpha() for word in words)
    return 6 <= len(words) <= 80 and letters >= 0.8 * len(words)


def first_words(text: str, count: int = LONGEST) -> str:
    return " ".join(text.split()[:count])


def split_name(name: str) -> str:
    """An identifier as words: "MaxPool2d" and "max_pool2d" both give "max pool 2 d"."""
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)).lower()


def signature_of(node) -> str:
    """Name and argument names as words, e.g. "max pool ( inputs , kernel size )"."""
    function = node
    if isinstance(node, ast.ClassDef):
        constructors = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        function = constructors[0] if constructors else None
    names = []
    if function is not None:
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names = [split_name(name) for name in names if name not in ("self", "cls")][:6]
    return f"{split_name(node.name)} ( {' , '.join(name for name in names if name)} )"


def entries_of(source: str) -> list[dict]:
    """Public functions and classes with a docstring: {"name", "signature", "summary", "passages"}."""
    described = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        paragraphs = re.split(r"\n\s*\n", ast.get_docstring(node) or "")
        summary = plain(paragraphs[0])
        good = prose(paragraphs[0]) or (len(summary.split()) >= 4 and summary.endswith("."))
        following, passages = True, []
        for paragraph in paragraphs:  # the leading run of prose: what comes next really follows
            following = following and prose(paragraph)
            if following:
                passages.append(first_words(plain(paragraph)))
        if good and 4 <= len(summary.split()):
            described.append(
                {
                    "name": node.name,
                    "signature": signature_of(node),
                    "summary": first_words(summary),
                    "passages": passages,
                }
            )
    return described


def sources(library: str, folders) -> list[Path]:
    """The library's own source files in a fixed order, without its tests."""
    spec = util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        name = {**TASK_LIBRARIES, **PRETRAINING_LIBRARIES}[library][0]
        raise ModuleNotFoundError(
            f"documentation of {name!r} is needed but it is not installed: pip install {name}"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    starts = [root / folder for folder in folders] or [root]
    files = [path for start in starts for path in start.rglob("*.py")]
    inside = [(path.relative_to(root), path) for path in files]
    return [
        path
        for short, path in sorted(inside)
        if not SKIPPED_FOLDERS.intersection(short.with_suffix("").parts)
    ]


@cache
def extract(library: str) -> tuple[dict, ...]:
    """All entries of a library, each with its "module"; repeated summaries are kept once."""
    folders = {**TASK_LIBRARIES, **PRETRAINING_LIBRARIES}[library][1]
    seen, entries = set(), []
    for path in sources(library, folders):
        module = (
            ".".join(path.with_suffix("").parts[path.parts.index(library) :])
            if library in path.parts
            else path.stem
        )
        try:
            in_file = entries_of(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # a template or a file for another Python
            continue
        for entry in in_file:
            if entry["summary"] not in seen:
                seen.add(entry["summary"])
                entries.append(entry | {"module": module, "library": library})
    return tuple(entries)


def data_hash(library: str) -> str:
    """The first 16 hex digits of the SHA-256 of everything extracted from the library."""
    text = json.dumps(extract(library), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_recorded(library: str) -> str:
    """The hash of the installed library's data; a warning if it is not the recorded one."""
    present, version = data_hash(library), metadata.version(TASK_LIBRARIES[library][0])
    wanted_version, wanted = RECORDED[library]
    if present != wanted:
        warnings.warn(
            f"documentation of {library}: version {version} gives data {present}, recorded results are for version "
            f"{wanted_version} with data {wanted}: figures on docs/ tasks will differ",
            stacklevel=caller_level(),
        )
    return present


def split_of(module: str) -> str:
    """Modules go to train (6 of 10), validation (1) or test (3) by a hash of their name."""
    slot = zlib.crc32(module.encode()) % 10
    return "validation" if slot == 0 else "test" if slot <= 3 else "train"


def entries(split: str) -> dict[str, list[dict]]:
    """Entries of the task libraries whose module is in this split: library -> entries."""
    return {
        library: [e for e in extract(library) if split_of(e["module"]) == split] for library in TASK_LIBRARIES
    }


def nameless(text: str) -> str:
    """Without the names of the libraries, which would give the answer away."""
    pattern = r"\b(networkx|nx|scikit-learn|scikit|sklearn|scipy|numpy|np)\b[.\w]*"
    return " ".join(re.sub(pattern, " ", text, flags=re.IGNORECASE).split())


def library_examples(split, size, rng):
    by_library = entries(split)
    texts = {
        library: list(dict.fromkeys(nameless(p) for e in listed for p in (e["summary"], *e["passages"])))
        for library, listed in by_library.items()
    }
    for library in texts:
        texts[library] = [text for text in texts[library] if len(text.split()) >= 6]
        rng.shuffle(texts[library])
    size = min(size, len(texts) * min(map(len, texts.values())))
    libraries = tuple(TASK_LIBRARIES)
    return [{"passage": texts[libraries[i % 3]][i // 3], "label": i % 3} for i in range(size)]


def signature_examples(split, size, rng):
    """Each entry is used once with its own summary or with that of another function of its library."""
    pool = [(library, entry) for library, listed in entries(split).items() for entry in listed]
    by_library = entries(split)
    examples = []
    for index, (library, entry) in enumerate(rng.sample(pool, min(size, len(pool)) // 2 * 2)):
        others = [e for e in by_library[library] if e["name"] != entry["name"]]
        summary = entry["summary"] if index % 2 else rng.choice(others)["summary"]
        examples.append({"signature": entry["signature"], "summary": summary, "label": index % 2})
    return examples


def next_examples(split, size, rng):
    """Two passages: neighbours in one docstring, or the second one from another docstring of the same library."""
    by_library = {
        key: [e for e in listed if len(e["passages"]) > 1] for key, listed in entries(split).items()
    }
    pool = [(library, entry) for library, listed in by_library.items() for entry in listed]
    examples = []
    for index, (library, entry) in enumerate(rng.sample(pool, min(size, len(pool)) // 2 * 2)):
        place = rng.randrange(len(entry["passages"]) - 1)
        others = [e for e in by_library[library] if e is not entry]
        second = entry["passages"][place + 1] if index % 2 else rng.choice(rng.choice(others)["passages"][1:])
        examples.append({"first": entry["passages"][place], "second": second, "label": index % 2})
    return examples


# name -> (labels, words, template, how the examples are made)
TASKS = {
    "docs/library": (
        tuple(TASK_LIBRARIES),
        tuple(LIBRARY_WORDS[library] for library in TASK_LIBRARIES),
        "passage: {passage}",
        library_examples,
    ),
    "docs/signature": (
        ("other", "own"),
        ("no", "yes"),
        "signature: {signature} summary: {summary}",
        signature_examples,
    ),
    "docs/next": (("other", "next"), ("no", "yes"), "first: {first} second: {second}", next_examples),
}


@cache
def load(name: str) -> Task:
    """A real-text task: "docs/library", "docs/signature" or "docs/next". The first call reads the sources (seconds).

    Splits are by module, so that validation and test text is from files that training never saw. Where a library has
    too few entries, a split is smaller than SIZES says. networkx, scikit-learn and scipy must be installed.
    """
    if name not in TASKS:
        raise ValueError(f"name={name!r}: expected one of {list(TASKS)}")
    labels, words, template, make = TASKS[name]
    hashes = {library: check_recorded(library) for library in TASK_LIBRARIES}
    splits = {}
    for split, size in SIZES.items():
        rng = random.Random(f"{name}/{split}")
        examples = make(split, size, rng)
        rng.shuffle(examples)
        splits[split] = tuple(examples)
    versions = ", ".join(
        f"{library} {metadata.version(TASK_LIBRARIES[library][0])} ({key})" for library, key in hashes.items()
    )
    return Task(name, labels, words, template, splits, "accuracy", f"docstrings of {versions}")
