"""What a model hub reads in a card: the YAML in front, the kind of task, and lines of code that run as they stand."""

from __future__ import annotations

from typing import Any

from dplearn.checks import refuse
from dplearn.config import DECISIONS, PromptConfig
from dplearn.packaged import PACKAGED
from dplearn.shelf import origin

# What users may say in front of a card, as huggingface_hub's ModelCardData calls it; lists of text or one text.
METADATA = (
    "license",
    "license_name",
    "license_link",
    "language",
    "datasets",
    "metrics",
    "tags",
    "base_model",
    "pipeline_tag",
    "model_name",
    "eval_results",
)
# The end of a class's name in transformers -> the hub's word for what it does.
TASKS = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
    "ForConditionalGeneration": "text-generation",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}
# What the last lines of code in a card print.
SHOWN = {
    "image-classification": "model(**batch).logits.softmax(-1)",
    "text-classification": "model(**batch).logits.softmax(-1)",
    "token-classification": "model(**batch).logits.argmax(-1)",
    "question-answering": "model(**batch).start_logits.argmax(-1)",
    "fill-mask": "model(**batch).logits.argmax(-1)",
    "feature-extraction": "model(**batch).last_hidden_state.shape",
    "image-feature-extraction": "model(**batch).last_hidden_state.shape",
    "zero-shot-image-classification": "model.classify(**batch)",
}
FOLDER = "this-folder"  # what stands for a folder whose name nobody else knows


def pipeline_tag(backbone: dict) -> str:
    """The hub's word for what a backbone does, from its description in a checkpoint.

    >>> pipeline_tag({"class": "T5ForConditionalGeneration"}), pipeline_tag({"class": "ViTModel", "patch": [3, 4, 4]})
    ('text-generation', 'image-feature-extraction')
    """
    for ending, tag in TASKS.items():
        if str(backbone["class"]).endswith(ending):
            return tag
    if "vision_width" in backbone:
        return "zero-shot-image-classification"
    return "image-feature-extraction" if "patch" in backbone else "feature-extraction"


def base_model(backbone: dict) -> str | None:
    """The backbone's name on the hub, where it has one."""
    name = backbone["name_or_path"]
    return name if origin(name) == "hub" else PACKAGED[name].repository if name in PACKAGED else None


def front_matter(
    config: PromptConfig, backbone: dict, metadata: dict | None = None, source: str = FOLDER
) -> str:
    """The YAML in front of a card: library, licence, tags, task and base model, and what ``metadata`` says.

    A hub wants a licence: where none is given it is "unknown".

    Parameters
    ----------
    backbone : the description that a checkpoint records.
    metadata : some of "license", "license_name", "license_link", "language", "datasets", "metrics", "tags",
        "base_model", "pipeline_tag", "model_name" and "eval_results", in the form of huggingface_hub's
        ``ModelCardData``: ``{"license": "apache-2.0", "language": "en", "metrics": ["accuracy"]}``. Each is text or a
        list of it, but for results, a list of its ``EvalResult``. Tags are added to ours; all else takes the place of
        what is known.
    source : where the prompt lies; results are results of it.

    Raises
    ------
    ValueError : an entry of ``metadata`` is unknown or of another kind.
    """
    import yaml
    from huggingface_hub import ModelCardData

    given = _checked(metadata)
    learned = any(decision.words(config).level in ("task", "instance") for decision in DECISIONS.values())
    tags = ["prompt-tuning", "soft-prompt", *(["dynamic-prompt"] if learned else []), backbone["model_type"]]
    more = given.pop("tags", [])
    more = [more] if isinstance(more, str) else more
    data: dict[str, Any] = {
        "license": "unknown",
        "library_name": "dplearn",
        "base_model": base_model(backbone),
    }
    data |= {"pipeline_tag": pipeline_tag(backbone), "tags": tags + [tag for tag in more if tag not in tags]}
    if "eval_results" in given:
        data["model_name"] = f"A prompt for {backbone['class']}" if source == FOLDER else source
    data |= given
    if data["base_model"] is not None:
        data["base_model_relation"] = "adapter"
    text = yaml.dump(ModelCardData(**data).to_dict(), Dumper=_dumper(), sort_keys=False, allow_unicode=True)
    return text.rstrip()


def _checked(metadata: object) -> dict:
    """A copy of what users say in front of a card, each entry known and of its kind."""
    from huggingface_hub import EvalResult

    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        refuse("metadata", metadata, f"a dict with some of {list(METADATA)}")
    for name, value in metadata.items():
        if name not in METADATA:
            refuse("metadata", name, f"entries named {list(METADATA)}")
        kind, words = (
            (EvalResult, "EvalResult of huggingface_hub") if name == "eval_results" else (str, "text")
        )
        entries = value if isinstance(value, list | tuple) else [value]
        if not entries or not all(isinstance(entry, kind) and entry for entry in entries):
            refuse(f"metadata[{name!r}]", value, f"{words}, or a list of it")
    return {
        name: list(value) if isinstance(value, list | tuple) or name == "eval_results" else value
        for name, value in metadata.items()
    }


def _dumper() -> type:
    """A writer of YAML that puts quotes around text which looks like a number in any version of YAML."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        looks_like_a_number = value.replace("_", "").replace(".", "", 1).replace("e", "", 1).isdigit()
        return dumper.represent_scalar(
            "tag:yaml.org,2002:str", value, style='"' if looks_like_a_number else None
        )

    Dumper.add_representer(str, text)
    return Dumper


def code(config: PromptConfig, backbone: dict, source: str = FOLDER) -> list[str]:
    """Lines of Python that load the prompt from ``source`` and ask it once.

    They run as they stand where the backbone has a name that others can use; otherwise ``backbone`` has to be there.
    """
    name, kind = backbone["name_or_path"], origin(backbone["name_or_path"])
    if kind not in ("zoo", "hub"):
        return [
            "import dplearn as dp",
            "",
            f"# backbone: the {backbone['class']} that the prompt was trained on",
            f"model = dp.from_pretrained({source!r}, backbone)".replace("'", '"'),
        ]
    tag = pipeline_tag(backbone)
    sees, reads = "image" in tag, "image" not in tag or "zero-shot" in tag
    helper = "processor" if sees else "tokenizer"
    auto = f"Auto{'Processor' if sees and reads else 'ImageProcessor' if sees else 'Tokenizer'}"
    # With tasks, what decides in an image-text model differs, and so how many task_ids a batch has.
    asks = tag in ("text-generation", *SHOWN) and not (sees and reads and config.tasks)
    imports = ["from PIL import Image"] if sees and asks else []
    imports += [f"from transformers import {auto}"] if kind == "hub" else []
    loaded = f'dp.zoo.load("{name}")[1]' if kind == "zoo" else f'{auto}.from_pretrained("{name}")'
    lines = [*imports, *([""] if imports else []), "import dplearn as dp", "", f"{helper} = {loaded}"]
    lines += [f'model = dp.from_pretrained("{source}")  # with its backbone']
    return [*lines, *(_question(config, tag, sees, reads) if asks else [])]


def _question(config: PromptConfig, tag: str, sees: bool, reads: bool) -> list[str]:
    """The lines that make a batch of one and print what the model says."""
    lines, task = [], f", task_ids={[config.tasks[0]]!r}".replace("'", '"') if config.tasks else ""
    if sees:
        lines = ['image = Image.new("RGB", (64, 64), "white")  # yours: Image.open("photo.png")']
        given = 'text=["a cat", "a dog"], images=[image], padding=True' if reads else "images=[image]"
        lines += [f'batch = processor({given}, return_tensors="pt")']
    else:
        lines = ['batch = tokenizer(["anna keeps a red ball in the garden ."], return_tensors="pt")']
    if tag == "text-generation":
        lines += [f"answer = model.generate(**batch{task}, max_new_tokens=5)"]
        return [*lines, "print(tokenizer.batch_decode(answer, skip_special_tokens=True))"]
    return [*lines, f"print({SHOWN[tag].replace('**batch', f'**batch{task}')})"]
