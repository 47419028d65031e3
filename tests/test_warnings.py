"""A warning names the line of the program that called the package, not one inside of it or of PyTorch."""

import inspect
import warnings

import pytest
import tiny
import torch

import dplearn as dp

IDS = torch.tensor([[5, 6, 7, 0]])  # padding, and no mask
MASK = torch.tensor([[1, 1, 1, 0]])
LABELS = torch.tensor([[4, 1]])


def made(**options):
    return dp.prompted(tiny.t5(), dp.PromptConfig(length=2, **{"position": "task"} | options))


def line_after(call):
    """The number of the line below this one's caller."""
    return call.f_lineno + 1


def of_padding():
    model = made().eval()
    line = line_after(inspect.currentframe())
    model(IDS, labels=LABELS)
    return line, "input_ids begin or end with the padding token"


def of_padding_while_a_prompt_is_looked_at():
    model = made().eval()
    line = line_after(inspect.currentframe())
    model.summarize(IDS)
    return line, "input_ids begin or end with the padding token"


def of_one_draw():
    model = made(estimator="score-function-batch", samples=1).train()
    line = line_after(inspect.currentframe())
    model(IDS, MASK, labels=LABELS)
    return line, "with one draw learns nothing from a batch of one instance"


def of_gradients_in_evaluation():
    loss = made().eval()(IDS, MASK, labels=LABELS).loss
    line = line_after(inspect.currentframe())
    loss.backward()
    return line, "gradients are computed in evaluation mode"


@pytest.mark.parametrize(
    "warned", [of_padding, of_padding_while_a_prompt_is_looked_at, of_one_draw, of_gradients_in_evaluation]
)
def test_a_warning_names_the_line_that_called(warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line, text = warned()
    (found,) = [each for each in caught if text in str(each.message)]
    assert (found.filename, found.lineno) == (__file__, line)
