"""A prompt in words: the lines of `model.summary()` and the card in a checkpoint's folder.

Both count what training changes. Vectors that a fixed size leaves out, and the weights of a pool of one prompt, are
parameters that cannot change any output: they are listed as not in use and not counted as trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from dplearn.config import PromptConfig
from dplearn.controllers import FixedDecision
from dplearn.length import resolve_size
from dplearn.position import resolve_split
from dplearn.prompt import DynamicPrompt

if TYPE_CHECKING:
    from dplearn.model import PromptedModel


class Summary(str):
    """A string that a notebook or the interpreter shows as it is, without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


class Decision(NamedTuple):
    """One of the three decisions: where it is made ("fixed", "task", "instance", ...) and what it is."""

    level: str
    words: str


class Count(NamedTuple):
    """Numbers of parameters: trained, without any effect, and held as they are."""

    trained: int
    unused: int
    frozen: int


def decisions(config: PromptConfig) -> dict[str, Decision]:
    """The three decisions in words, under "where", "how many" and "which".

    >>> decisions(PromptConfig(length=20, size=8))["how many"]
    Decision(level='fixed', words='the first 8 of 20; 12 vectors are not in use')
    """
    where = _where(config)
    if config.insert is not None:
        where = where._replace(words=f"{where.words}, {config.insert.split('-')[0]} the position embeddings")
    if config.towers == "vision":
        where = where._replace(words="behind the patches, where no place matters")
    return {"where": where, "how many": _how_many(config), "which": _which(config)}


# The image part of a prompt that an image-text model has in both towers.
IMAGE_PART = {
    "both": "the image has as many vectors of its own, behind the patches",
    "coupled": "the image's vectors, behind the patches, are linear maps of the text's, one for each layer",
}


def _learned(level: str, config: PromptConfig) -> str:
    if level == "instance" and config.summary == "image":
        return "decided for each image from the frozen model's view of it"
    if level == "instance":
        looked_at = "the encoder's view" if config.summary == "encoder" else "the mean of its embeddings"
        return f"decided for each input from {looked_at}"
    return "learned for each task" if config.tasks and len(config.tasks) > 1 else "learned for the task"


def _where(config: PromptConfig) -> Decision:
    split, size = resolve_split(config.position, config.length), resolve_size(config.size, config.length)
    most = config.length if size is None else size  # how many vectors there can be to place
    if split is None:
        words = (
            f"a split in 0..{most} (so many vectors before the input), {_learned(config.position, config)}"
        )
        return Decision(config.position, words)
    if split == 0:
        return Decision("fixed", "after the input (postfix)")
    if split >= most:
        return Decision("fixed", "before the input (prefix)")
    return Decision("fixed", f"around the input: the first {split} before it, the rest after it")


def _how_many(config: PromptConfig) -> Decision:
    size, length = resolve_size(config.size, config.length), config.length
    if size is None:
        return Decision(config.size, f"0 to {length}, {_learned(config.size, config)}")
    if size == length:
        return Decision("fixed", f"all {length}")
    rest = length - size
    return Decision(
        "fixed", f"the first {size} of {length}; {rest} vector{' is' if rest == 1 else 's are'} not in use"
    )


def _which(config: PromptConfig) -> Decision:
    if config.vector == "single":
        return Decision("single", "one prompt")
    kind = "one prompt" if config.mixing == "hard" else f"a mixture ({config.mixing})"
    return Decision(
        config.vector, f"{kind} out of a pool of {config.pool_size}, {_learned(config.vector, config)}"
    )


def entries_in_use(prompt: DynamicPrompt) -> dict[str, int]:
    """How many entries of each parameter can change an output, by the parameter's name."""
    counts = {name: parameter.numel() for name, parameter in prompt.named_parameters()}
    if isinstance(prompt.size, FixedDecision):
        counts["vectors"] = counts["vectors"] // prompt.length * prompt.size.option
    if (
        prompt.vector is not None and prompt.vectors.shape[0] == 1
    ):  # a mixture of one has weight 1 whatever it learns
        counts |= {name: 0 for name in counts if name.startswith("vector.")}
    return counts


def count(prompt: DynamicPrompt, backbone: nn.Module) -> Count:
    """Parameters of the prompt and of the backbone by what training does to them; shared ones count once."""
    in_use = entries_in_use(prompt)
    every = sum(parameter.numel() for parameter in prompt.parameters())
    trained = sum(in_use[name] for name, parameter in prompt.named_parameters() if parameter.requires_grad)
    unused = every - sum(in_use.values())
    return Count(trained, unused, sum(p.numel() for p in backbone.parameters()) + every - unused - trained)


def origin(name: str) -> str:
    """Where a backbone of this name comes from: "zoo", "hub", "folder" or "unknown" (it has no name).

    >>> [origin(name) for name in ("t5-mini", "google/flan-t5-small", "")]
    ['zoo', 'hub', 'unknown']
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    from dplearn import zoo

    if not name or name in zoo.names():
        return "zoo" if name else "unknown"
    try:
        validate_repo_id(name)
    except HFValidationError:
        return "folder"
    return "folder" if Path(name).exists() else "hub"


def write_card(config: PromptConfig, counted: Count, backbone: dict) -> str:
    """The Markdown card of a checkpoint: what it is, for which backbone, and how to load it.

    ``backbone`` is the description that the checkpoint records. A folder's name is left out: it would tell others
    about this machine and help nobody.
    """
    from dplearn import __version__

    name, kind, source = backbone["name_or_path"], backbone["class"], origin(backbone["name_or_path"])
    base = [f'base_model: "{name}"'] if source == "hub" else []
    which = {
        "zoo": f"the frozen `{name}`, which ships with dplearn ({kind})",
        "hub": f"the frozen `{name}` ({kind})",
        "folder": f"a frozen {kind} that was loaded from a folder",
        "unknown": f"a frozen {kind} without a name",
    }[source]
    known = source in ("zoo", "hub")
    call = 'dp.from_pretrained("this-folder")' if known else 'dp.from_pretrained("this-folder", backbone)'
    tasks = [f"- Tasks: {', '.join(repr(task) for task in config.tasks)}."] if config.tasks else []
    width = backbone["vision_width" if config.towers == "vision" else "width"]
    unused = f" ({counted.unused:,} more are not in use)" if counted.unused else ""
    lines = [
        "---",
        "library_name: dplearn",
        *base,
        "---",
        "",
        f"# A prompt for {kind}",
        "",
        f"{config.length} vectors of width {width} that steer {which}. The backbone is not in this folder.",
        "",
        *(f"- {name.capitalize()}: {found.words}." for name, found in decisions(config).items()),
        *([f"- Image: {IMAGE_PART[config.towers]}."] if config.towers in IMAGE_PART else []),
        *(
            [f"- Depth: fresh vectors in each of the first {config.depth} layers."]
            if config.depth > 1
            else []
        ),
        f"- Trained parameters: {counted.trained:,}{unused}.",
        *tasks,
        "",
        "```python",
        "import dplearn as dp",
        "",
        f"model = {call}",
        "```",
        "",
        f"Written by dplearn {__version__}. `prompt_config.json` holds the settings and names the file of tensors.",
    ]
    return "\n".join(lines) + "\n"


def summarize(model: PromptedModel, backbone: dict, size: int) -> Summary:
    """The text of :meth:`dplearn.PromptedModel.summary`; ``size`` is the number of bytes of its checkpoint."""
    prompt, config = model.prompt, model.prompt_config
    counted, in_use = count(prompt, model.backbone), entries_in_use(prompt)
    parts = {"where": "position.", "how many": "size.", "which": "vector."}
    rows = [("decision", "level", "parameters", "in words")]
    for name, found in decisions(config).items():
        own = sum(entries for key, entries in in_use.items() if key.startswith(parts[name]))
        rows.append((name, found.level, f"{own:,}", found.words))
    shape = " x ".join(str(number) for number in prompt.vectors.shape)
    rows.append(("vectors", "", f"{in_use['vectors']:,}", f"{shape} (last: the width)"))
    if config.towers in IMAGE_PART:
        own = sum(entries for key, entries in in_use.items() if key.startswith("vision."))
        rows.append(("image", "", f"{own:,}", IMAGE_PART[config.towers]))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in rows]
    name = backbone["name_or_path"]
    named = f" {name}" if origin(name) in ("zoo", "hub") else ""
    others = [other for other in model.prompts if other != model.active_prompt]
    lines = [
        f"backbone    {backbone['class']}{named}, width {backbone['width']}",
        f"prompt      {model.active_prompt}" + (f" (also there: {', '.join(others)})" if others else ""),
        "",
        *table,
        "",
        f"trained     {counted.trained:,} parameters",
        f"not in use  {counted.unused:,} parameters",
        f"frozen      {counted.frozen:,} parameters",
        f"checkpoint  {size:,} bytes",
    ]
    return Summary("\n".join(lines))
