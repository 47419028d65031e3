"""A prompt in words: the lines of `model.summary()` and the card in a checkpoint's folder.

Both count what training changes. Vectors that a fixed size leaves out, and the weights of a pool of one prompt, are
parameters that cannot change any output: they are listed as not in use and not counted as trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from dplearn.config import PromptConfig
from dplearn.controllers import LEARNED, FixedDecision
from dplearn.length import resolve_size
from dplearn.position import resolve_split
from dplearn.prompt import DynamicPrompt
from dplearn.shelf import origin

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
    """Numbers of parameters: trained, without any effect, held as they are, and of the trained ones those of a head."""

    trained: int
    unused: int
    frozen: int
    head: int = 0

    @property
    def total(self) -> int:
        """All parameters, of the prompt and of the backbone."""
        return self.trained + self.unused + self.frozen


def decisions(config: PromptConfig) -> dict[str, Decision]:
    """The three decisions in words, under "where", "how many" and "which".

    >>> decisions(PromptConfig(length=20, size=8))["how many"]
    Decision(level='fixed', words='the first 8 of 20; 12 vectors are not in use')
    """
    where = _where(config)
    if config.insert is not None:
        side = config.insert.split("-")[0]
        words = "with positions of its own" if side == "position" else f"{side} the position embeddings"
        where = where._replace(words=f"{where.words}, {words}")
    return {"where": where, "how many": _how_many(config), "which": _which(config)}


def _learned(level: str, config: PromptConfig) -> str:
    if level == "instance":
        seen = {"encoder": "the encoder's view", "image": "the model's view of it"}
        looked_at = seen.get(config.summary, "the mean of its embeddings")
        what = "image" if config.summary == "image" or config.towers == "vision" else "input"
        return f"decided for each {what} from {looked_at}"
    return "learned for each task" if config.tasks and len(config.tasks) > 1 else "learned for the task"


def _where(config: PromptConfig) -> Decision:
    if config.towers == "vision":
        level = config.position if config.position in LEARNED else "fixed"
        return Decision(level, "in the image, behind the patches, where no order matters")
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


def image_part(config: PromptConfig) -> str | None:
    """What a prompt for both towers does in the image, in words; None for all others.

    >>> image_part(PromptConfig(towers="coupled", depth=3))
    'a linear map of the text vectors for each of 3 layers'
    """
    layers = "one layer" if config.depth == 1 else f"each of {config.depth} layers"
    if config.towers == "coupled":
        return f"a linear map of the text vectors for {layers}"
    return f"vectors of its own for {layers}" if config.towers == "both" else None


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
    trained = {name: in_use[name] for name, parameter in prompt.named_parameters() if parameter.requires_grad}
    total, unused = sum(trained.values()), every - sum(in_use.values())
    frozen = sum(p.numel() for p in backbone.parameters()) + every - unused - total
    return Count(total, unused, frozen, sum(n for name, n in trained.items() if name.startswith("head.")))


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
    unused = f" ({counted.unused:,} more are not in use)" if counted.unused else ""
    lines = [
        "---",
        "library_name: dplearn",
        *base,
        "---",
        "",
        f"# A prompt for {kind}",
        "",
        f"{config.length} vectors of width {_width(config, backbone)} that steer {which}. "
        "The backbone is not in this folder.",
        "",
        *(f"- {name.capitalize()}: {found.words}." for name, found in decisions(config).items()),
        *(
            [f"- Depth: fresh vectors in each of the first {config.depth} layers."]
            if config.depth > 1
            else []
        ),
        *([f"- In the image: {image_part(config)}."] if image_part(config) else []),
        *([f"- Head: trained, {counted.head:,} parameters."] if config.head == "trained" else []),
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


def _width(config: PromptConfig, backbone: dict) -> int:
    return backbone["vision_width" if config.towers == "vision" else "width"]


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
    if prompt.vision is not None:
        own = sum(entries for key, entries in in_use.items() if key.startswith("vision."))
        rows.append(("image", "", f"{own:,}", image_part(config)))
    if prompt.head is not None:
        rows.append(
            ("head", "trained", f"{counted.head:,}", f"a copy of the backbone's {', '.join(prompt.head)}")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in rows]
    name = backbone["name_or_path"]
    named = f" {name}" if origin(name) in ("zoo", "hub") else ""
    others = [other for other in model.prompts if other != model.active_prompt]
    lines = [
        f"backbone    {backbone['class']}{named}, width {_width(config, backbone)}",
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
