"""A prompt in words: the lines of `model.summary()` and the card in a checkpoint's folder.

Both count what training changes. Vectors that a fixed size leaves out, and the weights of a pool of one prompt, are
parameters that cannot change any output: they are listed as not in use and not counted as trained.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from dplearn import card_hub
from dplearn.backbones.heads import paths_of
from dplearn.config import DECISIONS, PromptConfig
from dplearn.controllers import Words
from dplearn.prompt import DynamicPrompt
from dplearn.shelf import origin
from dplearn.version import __version__


class Summary(str):
    """A string that a notebook or the interpreter shows as it is, without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


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


def decisions(config: PromptConfig) -> dict[str, Words]:
    """The decisions in words, under "where", "how many", "which", and the titles of others.

    >>> decisions(PromptConfig(length=20, size=8))["how many"]
    Words(level='fixed', words='the first 8 of 20; 12 vectors are not in use')
    """
    return {decision.title: decision.words(config) for decision in DECISIONS.values()}


def image_part(config: PromptConfig) -> str | None:
    """What a prompt for both towers does in the image, in words; None for all others.

    >>> image_part(PromptConfig(towers="coupled", depth=3))
    'a linear map of the text vectors for each of 3 layers'
    """
    layers = "one layer" if config.depth == 1 else f"each of {config.depth} layers"
    if config.towers == "coupled":
        return f"a linear map of the text vectors for {layers}"
    return f"vectors of its own for {layers}" if config.towers == "both" else None


def count(prompt: DynamicPrompt, backbone: nn.Module) -> Count:
    """Parameters of the prompt and of the backbone by what training does to them; shared ones count once."""
    in_use = prompt.entries_in_use()
    every = sum(parameter.numel() for parameter in prompt.parameters())
    trained = {name: in_use[name] for name, parameter in prompt.named_parameters() if parameter.requires_grad}
    total, unused = sum(trained.values()), every - sum(in_use.values())
    frozen = sum(p.numel() for p in backbone.parameters()) + every - unused - total
    return Count(total, unused, frozen, sum(n for name, n in trained.items() if name.startswith("head.")))


def write_card(
    config: PromptConfig,
    counted: Count,
    backbone: dict,
    metadata: dict | None = None,
    source: str = card_hub.FOLDER,
) -> str:
    """The Markdown card of a checkpoint: what it is, for which backbone, and how to load and ask it.

    ``backbone`` is the description that the checkpoint records. A folder's name is left out: it would tell others
    about this machine and help nobody. ``metadata`` and ``source`` are those of :func:`dplearn.card_hub.front_matter`.

    Raises
    ------
    ValueError : an entry of ``metadata`` is unknown or of another kind.
    """
    name, kind = backbone["name_or_path"], backbone["class"]
    which = {
        "zoo": f"the frozen `{name}`, which dplearn.zoo loads ({kind})",
        "hub": f"the frozen `{name}` ({kind})",
        "folder": f"a frozen {kind} that was loaded from a folder",
        "unknown": f"a frozen {kind} without a name",
    }[origin(name)]
    lines = [
        "---",
        card_hub.front_matter(config, backbone, metadata, source),
        "---",
        "",
        f"# A prompt for {kind}",
        "",
        f"{config.length} vectors of width {_width(config, backbone)} that steer {which}. "
        "The backbone is not in this folder.",
        "",
        *_facts(config, counted),
        "",
        "```python",
        *card_hub.code(config, backbone, source),
        "```",
        "",
        f"Written by dplearn {__version__}. `prompt_config.json` holds the settings and names the file of tensors.",
    ]
    return "\n".join(lines) + "\n"


def _facts(config: PromptConfig, counted: Count) -> list[str]:
    """The list of a card: the decisions, what else there is, and what is trained."""
    facts = {name.capitalize(): decision.words for name, decision in decisions(config).items()}
    if config.depth > 1:
        layers = f"each of {config.depth} layers from layer {config.from_layer} on"
        first = config.from_layer == 1
        facts["Depth"] = f"fresh vectors in {f'each of the first {config.depth} layers' if first else layers}"
    elif config.from_layer > 1:
        facts["Depth"] = f"vectors at the input of layer {config.from_layer}"
    if said := image_part(config):
        facts["In the image"] = said
    if config.head == "trained":
        facts["Head"] = f"trained, {counted.head:,} parameters"
    unused = f" ({counted.unused:,} more are not in use)" if counted.unused else ""
    facts["Trained parameters"] = f"{counted.trained:,}{unused}"
    if config.tasks:
        facts["Tasks"] = ", ".join(map(repr, config.tasks))
    return [f"- {name}: {words}." for name, words in facts.items()]


def _width(config: PromptConfig, backbone: dict) -> int:
    return backbone["vision_width" if config.towers == "vision" else "width"]


def summarize(
    prompt: DynamicPrompt,
    config: PromptConfig,
    counted: Count,
    backbone: dict,
    name: str,
    others: list[str],
    size: int,
) -> Summary:
    """The text of :meth:`dplearn.PromptedModel.summary`.

    ``backbone`` is the description that a checkpoint records, ``name`` the prompt's, ``others`` those of prompts at
    rest, ``size`` the number of bytes of its checkpoint.
    """
    known = backbone["name_or_path"]
    named = f" {known}" if origin(known) in ("zoo", "hub") else ""
    lines = [
        f"backbone    {backbone['class']}{named}, width {_width(config, backbone)}",
        f"prompt      {name}" + (f" (also there: {', '.join(others)})" if others else ""),
        "",
        *_parts_table(prompt, config, counted.head),
        "",
        f"trained     {counted.trained:,} parameters",
        f"not in use  {counted.unused:,} parameters",
        f"frozen      {counted.frozen:,} parameters",
        f"checkpoint  {size:,} bytes",
    ]
    return Summary("\n".join(lines))


def _parts_table(prompt: DynamicPrompt, config: PromptConfig, of_head: int) -> list[str]:
    """The lines of a table of what the prompt is made of: decisions, vectors, an image's part, a trained head."""
    in_use = prompt.entries_in_use()
    rows = [("decision", "level", "parameters", "in words")]
    for part, decision in DECISIONS.items():
        own = sum(entries for key, entries in in_use.items() if key.startswith(f"{part}."))
        said = decision.words(config)
        rows.append((decision.title, said.level, f"{own:,}", said.words))
    shape = " x ".join(str(number) for number in prompt.vectors.shape)
    rows.append(("vectors", "", f"{in_use['vectors']:,}", f"{shape} (last: the width)"))
    if "vision" in prompt.attached:
        own = sum(entries for key, entries in in_use.items() if key.startswith("vision."))
        rows.append(("image", "", f"{own:,}", image_part(config) or ""))
    head = prompt.attached.get("head")
    if head is not None:
        copied = f"a copy of the backbone's {', '.join(paths_of(head))}"
        rows.append(("head", "trained", f"{of_head:,}", copied))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in rows]
