"""Pretrained backbones without a model hub: small ones that ship with the package, and real ones of pip packages.

    model, tokenizer = dplearn.zoo.load("t5-mini")  # or "place-mini"
    model, tokenizer = dplearn.zoo.load("llama-mini")
    model, image_processor = dplearn.zoo.load("vit-mini")
    model, processor = dplearn.zoo.load("clip-mini")
    model, tokenizer = dplearn.zoo.load("smollm2-135m-instruct")  # LlamaForCausalLM
    model, tokenizer = dplearn.zoo.load("minilm-l6", num_labels=2)  # BertForSequenceClassification

The last two want packages that carry their weights (an error says which), `python -m dplearn.zoo list` says which are
there. Of those that ship each folder here holds Hugging Face files (config, safetensors in float16, tokenizer or
processor), the SHA-256 of every file, the model card, the losses of the pretraining and recorded figures.
"""

from dplearn.checks import is_whole
from dplearn.shelf import FOLDER as FOLDER
from dplearn.shelf import check_labels, folder_of, load, names
from dplearn.shelf import load_folder as load_folder
from dplearn.shelf import shipped as shipped
from dplearn.shelf import verify as verify

# A text model reads this before the answer word (t5-mini in its decoder, llama-mini behind the text):
# task.encode(..., answer_prefix=ANSWER_PREFIX).
ANSWER_PREFIX = "<extra_id_0>"

__all__ = ["ANSWER_PREFIX", "card", "load", "names", "random_control"]


def random_control(name: str, seed: int, num_labels: int | None = None):
    """A model of the same architecture with freshly initialised, never trained weights, in evaluation mode.

    ``num_labels`` as in :func:`load`.

    The control for every claim about pretraining: what a method reaches here it reaches without any pretraining.
    """
    from transformers import AutoConfig

    from .t5_model import fresh_model, shape_of
    from .vision_models import fresh_like

    if not is_whole(seed, 0):
        raise ValueError(f"seed={seed!r}: expected an integer of at least 0")
    if name in names() and name not in shipped():
        raise ValueError(f"name={name!r}: expected one that ships, {list(shipped())}")
    config = AutoConfig.from_pretrained(folder_of(name))
    check_labels(name, config.model_type, num_labels)
    if num_labels is not None:
        config.num_labels = num_labels
    if config.model_type in ("vit", "clip"):
        return fresh_like(config, seed).eval()
    if config.model_type == "llama":
        from . import causal

        return causal.fresh_model(config.vocab_size, seed).eval()
    return fresh_model(config.vocab_size, seed, shape_of(config)).eval()


def card(name: str) -> str:
    """The model card (Markdown): data, recipe, figures, controls, limits."""
    return (folder_of(name) / "README.md").read_text()
