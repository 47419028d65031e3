"""Data as batches for a model that is read, not trained: a data set, a list of examples, or a loader as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import cast

import torch
from torch.utils.data import DataLoader, Dataset

from dplearn.checks import shown


def number_of_batches(data: Iterable[dict] | Sequence[dict], batch_size: int) -> int | None:
    """How many batches :func:`batches_of` gives; None where nobody knows before the end.

    >>> number_of_batches([{"a": 1}] * 5, 2), number_of_batches({"a": [1, 2]}, 64), number_of_batches(iter([]), 2)
    (3, 1, None)
    """
    if isinstance(data, Mapping):
        return 1
    if not isinstance(data, Sized):
        return None
    return -(-len(data) // batch_size) if _holds_examples(data) else len(data)


def _check_example(example: object) -> None:
    if isinstance(example, (int, float, str, list, tuple, torch.Tensor)):
        raise TypeError(
            f"data holds {shown(example)}, expected examples by name: {{'input_ids': ..., 'attention_mask': ...}}, or "
            "a collate function that makes batches of what it holds"
        )


def _holds_examples(data: object) -> bool:
    """Whether data are examples with indices, and not batches."""
    return hasattr(data, "__getitem__") and not isinstance(data, DataLoader)


def batches_of(
    data: Iterable[dict] | Sequence[dict],
    collate: Callable[[list[dict]], dict] | None = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> Iterator[dict]:
    """Batches, in the order of the data, with their tensors on ``device``.

    Parameters
    ----------
    data : examples (anything with a length and indices), one batch, or an iterable of batches such as a DataLoader.
    collate : examples -> batch, such as ``DataCollatorForSeq2Seq(tokenizer, model)``; None: transformers' default, for
        examples of one length. For examples only.
    batch_size : examples in a batch, at least 1. For examples only.

    Raises
    ------
    ValueError : examples of different lengths without a ``collate`` that pads them.
    TypeError : what is no example, without a ``collate`` that makes batches of it.
    """
    loader: Iterable[Mapping]
    if isinstance(data, Mapping):
        loader = [data]
    elif not _holds_examples(data):
        loader = data
    else:
        from transformers import default_data_collator

        loader = DataLoader(cast(Dataset, data), batch_size, collate_fn=collate or default_data_collator)
        if collate is None and len(cast(Sized, data)):
            _check_example(cast(Sequence, data)[0])
    try:
        for batch in loader:
            yield {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in dict(batch).items()}
    except ValueError as error:
        if collate is None and "expected sequence of length" in str(error):
            raise ValueError(
                "collate=None, and the examples have different lengths: expected a collate function that pads, such as "
                "transformers.DataCollatorForSeq2Seq(tokenizer, model)"
            ) from error
        raise
