"""The small things that `transformers.Trainer` needs to train a prompt: annealing, the loss over label words, groups.

There is no trainer here: a prompted model is trained by `transformers.Trainer` as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from dplearn.estimators import repeat, surrogate
from dplearn.named_prompts import NamedPrompts


class Annealing(TrainerCallback):
    """Set the Gumbel-Softmax temperature before every optimizer step.

    Parameters
    ----------
    schedule : function from the global step (int, from 0) to a temperature, such as those of
        :func:`dplearn.choice.schedule`. It sees the global step, so a resumed run continues where it stopped.

    Raises
    ------
    TypeError : ``schedule`` is no function.
    """

    def __init__(self, schedule: Callable[[int], float]):
        if not callable(schedule):
            raise TypeError(
                f"schedule is a {type(schedule).__name__}, expected a function of the step, such as "
                "dplearn.schedule('linear', steps=...)"
            )
        self.schedule = schedule

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        unwrapped = getattr(model, "module", model)  # DistributedDataParallel
        unwrapped.set_temperature(self.schedule(state.global_step))


class LabelWordLoss:
    """Cross-entropy over the label words' logits at the answer position, as the paper trains and reads T5.

    The answer is the last column of ``labels``; each label is the token id of a label word. Pass it to the Trainer:
    ``Trainer(..., compute_loss_func=loss, preprocess_logits_for_metrics=loss.predictions)``, with
    ``data_collator=DataCollatorForSeq2Seq(tokenizer, model)``, which adds an encoder-decoder's decoder inputs.

    Scores are read in the last column of the logits. In a prompted decoder-only model that is the last real row,
    behind the prompt and what ``keep_last`` leaves there, wherever the padding is. In a decoder-only model *without* a
    prompt, and with padding on the right, it is padding: take the last real row before
    (:class:`dplearn.experiments.tuning.LastRow`).

    The Trainer takes the labels away from the model when it has a loss of its own. What only the model knows of the
    loss, the cost of a learned size (``output.penalty``) and the decisions that were tried for each instance
    (``output.draws`` of the estimators "score-function" and "exact"), is then added here. A prompted model wants to be
    told that somebody does so: set ``model.loss_outside = True`` where its prompt has one of these.

    Parameters
    ----------
    word_ids : one distinct token id per label, in label order (``Task.word_ids``).

    Raises
    ------
    ValueError : fewer than two ``word_ids`` or two alike; when called, a label that is none of them.

    >>> loss = LabelWordLoss([7, 3])
    >>> loss.predictions(torch.eye(10)[torch.tensor([[3], [7]])], labels=None)
    tensor([1, 0])
    """

    def __init__(self, word_ids: Sequence[int]):
        if len(set(word_ids)) != len(word_ids) or len(word_ids) < 2:
            raise ValueError(
                f"word_ids={list(word_ids)} is not valid, expected at least two distinct token ids"
            )
        self.word_ids = torch.as_tensor(list(word_ids))

    def word_logits(self, logits: Tensor) -> Tensor:
        """Logits of the label words (B, labels) from decoder logits (B, L, vocabulary)."""
        return logits[:, -1, self.word_ids.to(logits.device)].float()

    def targets(self, labels: Tensor) -> Tensor:
        """Label indices (B,) from label token ids (B, L).

        Raises
        ------
        ValueError : the last column holds an id that is no label word, such as -100 where labels of different lengths
            were padded on the right.
        """
        if labels.ndim != 2 or labels.shape[1] == 0:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, expected (batch, label tokens), the answer last"
            )
        hits = labels[:, -1:] == self.word_ids.to(labels.device)
        known = hits.any(1)
        # This waits for a device, once a step: training on wrong labels costs more. Compiled code cannot look, so there
        # such a label becomes an index that no row of logits has, which cross-entropy refuses on every device.
        if not torch.compiler.is_compiling() and not known.all():
            row = int((~known).nonzero()[0])
            raise ValueError(
                f"labels[{row}] ends with token id {int(labels[row, -1])}, expected one of the label words "
                f"word_ids={self.word_ids.tolist()}: the answer is the last column of labels"
            )
        return hits.int().argmax(1).masked_fill(~known, len(self.word_ids))

    def predictions(self, logits: Tensor | tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        """Predicted label indices (B,); has the signature of the Trainer's ``preprocess_logits_for_metrics``."""
        return self.word_logits(logits[0] if isinstance(logits, tuple) else logits).argmax(-1)

    def losses(self, outputs: Any, labels: Tensor) -> Tensor:
        """The loss of each instance, (B,): what :func:`dplearn.decision_report` asks for."""
        logits, targets = self.word_logits(outputs["logits"]), self.targets(labels)
        targets = repeat(targets, len(logits) // len(targets), len(targets))
        return nn.functional.cross_entropy(logits, targets, reduction="none")

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Loss of a batch; has the signature of the Trainer's ``compute_loss_func``.

        A mean over the batch, or a sum divided by ``num_items_in_batch`` token labels where the Trainer gives that
        (gradient accumulation over unequal batches).
        """
        losses, draws = self.losses(outputs, labels), outputs.get("draws")
        if draws is not None:  # several decisions were tried for each instance (dplearn.estimators)
            losses = surrogate(losses.view(-1, len(labels)), draws)
        losses = losses + outputs.get("penalty", 0.0)  # the cost of a learned size
        # A decoder-only model's labels are counted from the second column on: where the answer is alone, none is.
        if num_items_in_batch is None or num_items_in_batch == 0:
            return losses.mean()
        return losses.sum() * labels.shape[1] / num_items_in_batch


def parameter_groups(
    model: NamedPrompts, prompt_lr: float, controller_lr: float, head_lr: float | None = None
) -> list[dict]:
    """Optimizer groups, where there is something in them: the prompt vectors, the controllers (and the maps of a
    coupled image prompt), a trained head. What a part belongs to is said where it is attached
    (:meth:`dplearn.DynamicPrompt.attach`).

    Prompt vectors live at the scale of embeddings and take large steps (0.3 with Adafactor, Lester et al. 2021);
    logits of a controller and weights of a head saturate at such steps. The authors' code uses one rate for all.

    Parameters
    ----------
    head_lr : learning rate of a trained head; None is the controllers' rate.

    Raises
    ------
    ValueError : a head that is to be trained would get the rate 0 of the controllers, unsaid.
    TypeError : ``model`` has no prompt.
    """
    if not hasattr(model, "prompt"):  # (what torch.compile wraps is no NamedPrompts, and has one)
        raise TypeError(f"model is a {type(model).__name__}, expected a prompted model (dplearn.prompted)")
    if head_lr is None and controller_lr == 0 and model.prompt.parameters_by_group()["head"]:
        raise ValueError(
            "controller_lr=0 would be the rate of the trained head too, expected a head_lr of its own: 0 if it is "
            "to stay as it is"
        )
    rates = (prompt_lr, controller_lr, controller_lr if head_lr is None else head_lr)
    groups = model.prompt.parameters_by_group().values()
    return [{"params": group, "lr": rate} for group, rate in zip(groups, rates) if group]
