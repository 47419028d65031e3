"""Prompt tuning, P-tuning, prefix tuning and LoRA of the library peft, trained and scored as our prompts are.

They see the same examples in the same budget, with the same optimizer and the loss over label words, and are read at
the same row. Where the library would make the comparison uneven, it is told otherwise:

- A decoder-only model's logits have a row for each virtual token of prompt tuning and P-tuning (none of prefix
  tuning), and position ids are dropped: padding is moved behind the input, and the answer is read behind those rows.
- For an encoder-decoder, prompts have vectors for a decoder too by default, which nothing reads: there are none here.
  Prefix tuning is in the decoder alone. The library deals its numbers out four to a layer, of which two are read, and
  begins anew behind the last: with an even number of layers two of them would share a prefix, and half of the numbers
  be idle. So it is told of one layer more then; the numbers of that one are idle, and are not counted as trained.
- Prompt tuning starts as our prompts do, at rows of the vocabulary (``start = "random"``: at the library's normal
  vectors), and the frozen model has no dropout while it is trained (``backbone_dropout``).

The library is imported when such a method runs, and not before.
"""

from __future__ import annotations

import copy
import enum
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from dplearn.backbones import adapt
from dplearn.backbones.rows import last_real, take_rows
from dplearn.config import PromptConfig
from dplearn.experiments.fitting import Settings, device
from dplearn.experiments.rivals import options_of
from dplearn.experiments.tuning import USUAL, Encode, run_of, text_for, words_of
from dplearn.experiments.watching import LOOKS, Looks, Objective, fit_and_watch
from dplearn.tasks.base import Task

OURS = ("type", "start", "backbone_dropout")  # options that are not the library's


def library() -> ModuleType:
    """The library peft.

    Raises
    ------
    ModuleNotFoundError : it is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "peft is not installed, which a method of kind 'peft' runs: pip install peft (it is in the extra "
            "'experiments')"
        ) from None
    return peft


def tune_peft(
    backbone: PreTrainedModel,
    tokenizer,
    task: Task,
    options: Mapping,
    settings: Settings = USUAL,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
    encode: Encode | None = None,
    looks: Looks = LOOKS,
) -> dict:
    """Train a method of the library peft on a text backbone and score it; the backbone stays as it was.

    Parameters
    ----------
    options : the type of the method, and options of it (:func:`dplearn.experiments.rivals.options_of`).
    settings : of the run. ``init_words`` are for prompt tuning; what is said of decisions has no effect.
    encode : as in :func:`dplearn.experiments.tuning.tune_prompt`, and so are the others.

    Returns a row as of a prompt, without what is said of decisions, and with the library's configuration as a plain
    dict ("peft").

    Raises
    ------
    ValueError : an unknown type or option, or a wrong value.
    ModuleNotFoundError : the library is not installed.
    """
    options = options_of("peft", options)
    library()
    set_seed(seed)
    backbone = backbone.to(device())
    encode, given = text_for(backbone, tokenizer, task, answer_prefix, encode)
    model = adapted(backbone, options, _start(backbone, tokenizer, options, settings)).to(device())
    run = run_of(model, task, encode, given, settings.bf16)
    objective = given["compute_loss_func"] = Objective(run.loss, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = settings.optimizer_over([{"params": trained, "lr": settings.learning_rate}])
    row = fit_and_watch(run, settings, seed, optimizer, splits, objective.mean, looks, **given)
    row["trained_parameters"] -= idle(backbone, model.model.active_peft_config)
    used = cast(Any, model.model).active_peft_config.to_dict()
    return row | {"peft": plain({"type": options["type"]} | used)}


def _start(backbone: PreTrainedModel, tokenizer, options: Mapping, settings: Settings) -> Tensor | None:
    """First vectors (l, d) of prompt tuning, those of our prefix with the same seed; None: the library's own."""
    if options["type"] != "prompt-tuning" or options["start"] == "random":
        return None
    config = PromptConfig(length=options["num_virtual_tokens"])
    words = words_of(backbone, tokenizer, config, settings.init_words)
    return adapt(backbone).initial_vectors(config) if words is None else words


def adapted(backbone: PreTrainedModel, options: Mapping, start: Tensor | None = None) -> Adapted:
    """A backbone with a method of the library, as a model of its own that shares the backbone's weights.

    options : all of :func:`dplearn.experiments.rivals.options_of`.  start : first vectors of prompt tuning.
    """
    view = sharing(backbone)
    frozen = [*view.modules()]
    with warnings.catch_warnings():  # a FutureWarning: the library asks transformers by an old name
        warnings.simplefilter("ignore", FutureWarning)
        model = library().get_peft_model(view, config_of(backbone, options))
    if start is not None:
        with torch.no_grad():
            model.prompt_encoder["default"].embedding.weight.copy_(start)
    return Adapted(model, frozen, options["backbone_dropout"])


def sharing(backbone: nn.Module) -> nn.Module:
    """A copy of a model's modules with the same weights, frozen, which are not copied.

    What is done to its modules does not touch the backbone, and it costs no memory.
    """
    memo: dict[int, Tensor] = {id(value): value for value in backbone.buffers()}
    for parameter in backbone.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(backbone, memo)


def config_of(backbone: PreTrainedModel, options: Mapping):
    """The library's configuration for a backbone."""
    peft, both = library(), backbone.config.is_encoder_decoder
    given = {name: value for name, value in options.items() if name not in OURS and value is not None}
    given["task_type"] = "SEQ_2_SEQ_LM" if both else "CAUSAL_LM"
    kind = options["type"]
    if kind == "lora":
        named = {"fan_in_fan_out": any(isinstance(module, Conv1D) for module in backbone.modules())}
        return peft.LoraConfig(**given | named)
    if kind == "prefix-tuning":
        return peft.PrefixTuningConfig(**given | (_keys(backbone.config) if both else {}))
    # At the width of what is embedded; one stack has vectors, not the decoder too.
    given |= {
        "num_transformer_submodules": 1,
        "token_dim": backbone.get_input_embeddings().weight.shape[1],
    }
    return (peft.PromptTuningConfig if kind == "prompt-tuning" else peft.PromptEncoderConfig)(**given)


def _layers(config) -> int:
    """How many layers a decoder has."""
    layers = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None)
    return config.num_hidden_layers if layers is None else layers


def _keys(config) -> dict[str, int]:
    """Layers, heads and width of the keys of a decoder (the library takes an encoder's, and one width for all)."""
    layers = _layers(config)
    heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    width = heads * config.d_kv if hasattr(config, "d_kv") else config.hidden_size
    return {"num_layers": layers + 1 - layers % 2, "num_attention_heads": heads, "token_dim": width}


def idle(backbone: PreTrainedModel, config) -> int:
    """How many of the trained numbers nothing reads: those of prefix tuning for a layer that a decoder does not have.

    config : the library's.
    """
    if config.peft_type != "PREFIX_TUNING" or not backbone.config.is_encoder_decoder:
        return 0
    rows = config.encoder_hidden_size + 1 if config.prefix_projection else config.num_virtual_tokens
    return (config.num_layers - _layers(backbone.config)) * 2 * config.token_dim * rows


class Adapted(nn.Module):
    """A model of the library that answers as a bare backbone does, in the last row of its logits.

    Parameters
    ----------
    model : the library's.
    frozen : its modules that were there before.
    dropout : whether these have their dropout while training.
    """

    def __init__(self, model: nn.Module, frozen: Sequence[nn.Module], dropout: bool = False):
        super().__init__()
        self.model, self._frozen, self.dropout = model, tuple(frozen), dropout
        self.config = model.config

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Adapted:
        """Training mode, in which what is frozen stays in evaluation mode, unless it is to have its dropout."""
        super().train(mode)
        for module in self._frozen:
            module.training = mode and self.dropout
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Logits (B, L, vocabulary) of an encoder-decoder for ``decoder_input_ids`` (B, L); of a decoder-only model (B,
        1, vocabulary), those of the last real token.

        input_ids, attention_mask: (B, T).  ``labels`` are for a loss outside; the Trainer looks for their name.
        """
        ids, mask = on_the_left(input_ids, attention_mask)
        given = {} if decoder_input_ids is None else {"decoder_input_ids": decoder_input_ids}
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **given).logits
        if cast(Any, self.config).is_encoder_decoder:
            return {"logits": logits}
        virtual = logits.shape[1] - ids.shape[1]  # rows of prompt tuning and P-tuning
        return {"logits": take_rows(logits, (last_real(mask) + virtual).unsqueeze(1))}


def on_the_left(input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (B, T) with their real tokens from the first column on, and the padding behind them.

    >>> on_the_left(torch.tensor([[0, 7, 8]]), torch.tensor([[0, 1, 1]]))
    (tensor([[7, 8, 0]]), tensor([[1, 1, 0]]))
    """
    order = (mask == 0).long().argsort(dim=1, stable=True)
    return input_ids.gather(1, order), mask.gather(1, order)


def plain(value):
    """A configuration as plain JSON values: names of enumerations, sets as sorted lists.

    >>> plain({"a": {3, 1}, "b": (None, 0.5)})
    {'a': [1, 3], 'b': [None, 0.5]}
    """
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value))
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value
