"""Progress of what takes long: in a terminal it says what is done and what is left, elsewhere and before it is silent."""

import io
from contextlib import redirect_stderr

import pytest
import tiny
import torch

import dplearn as dp
from dplearn import batches, progress


class Terminal(io.StringIO):
    """Standard error as a terminal has it."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal for ``redirect_stderr`` (a fixture cannot: pytest sets its own before the test), and no time to wait
    before the bar."""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    return Terminal()


def test_a_bar_says_what_is_done_of_how_many_and_goes_when_it_is_over(terminal):
    with redirect_stderr(terminal):
        told = progress.told(range(3), "counting")
        assert [next(told), next(told)] == [0, 1]
        assert "counting" in terminal.getvalue() and "/3" in terminal.getvalue()
        assert list(told) == [2] and terminal.getvalue().endswith("\r")


@pytest.mark.parametrize("case", ["no terminal", "not verbose", "before ten seconds"])
def test_nothing_is_shown(case, terminal, monkeypatch):
    if case == "no terminal":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    if case == "before ten seconds":
        monkeypatch.setattr(progress, "DELAY", 3600.0)
    with redirect_stderr(terminal):
        assert list(progress.told(iter("abc"), "letters", 3, verbose=case != "not verbose")) == [
            "a",
            "b",
            "c",
        ]
    assert terminal.getvalue() == ""


def rows(count):
    ids, mask = tiny.batch([5] * count)
    return [dict(input_ids=i, attention_mask=m, labels=torch.tensor([5, 1])) for i, m in zip(ids, mask)]


def test_what_goes_through_data_tells_it(terminal):
    model = dp.prompted(tiny.t5(), dp.PromptConfig(length=2, position="instance"))
    with redirect_stderr(terminal):
        model.fit_summaries(rows(4), batch_size=2)
        dp.decision_report(model, rows(4), batch_size=2, headroom=True)
    assert "summaries" in terminal.getvalue() and "/2" in terminal.getvalue()
    for words in ("deciding", "losses as decided", "position of others", "headroom of the position"):
        assert words in terminal.getvalue()
    said = len(terminal.getvalue())
    with redirect_stderr(terminal):
        dp.decision_report(model, rows(4), batch_size=2, headroom=True, verbose=False)
    assert len(terminal.getvalue()) == said


def test_images_and_kept_inputs_tell_it(terminal):
    model = dp.prompted(tiny.llama(), dp.PromptConfig(length=2, position="postfix"))
    ids, mask = tiny.batch([5, 5], eos=False)
    texts = [dict(input_ids=i, attention_mask=m, context_length=5) for i, m in zip(ids, mask)]
    clip = dp.prompted(tiny.clip(), dp.PromptConfig(length=2))
    with redirect_stderr(terminal):
        model.cache_inputs(texts, batch_size=1, verbose=True)
        clip.cache_images([{"pixel_values": each} for each in tiny.images(3)], batch_size=2)
    assert "\rkeeping inputs: " in terminal.getvalue() and "images" in terminal.getvalue()
    for data, said in (
        (texts, "/1"),
        (iter([texts[0] | {"input_ids": ids[:1], "attention_mask": mask[:1]}] * 3), "/3"),
    ):
        terminal.truncate(0)
        with redirect_stderr(terminal):
            model.cache_inputs(data, verbose=True)
        assert said in terminal.getvalue()
    terminal.truncate(0)
    with redirect_stderr(terminal):
        model.cache_inputs(texts, verbose=False)
    assert terminal.getvalue() == ""


def test_the_number_of_batches_is_that_of_the_batches():
    from torch.utils.data import DataLoader

    class Batches:
        """Some that were made elsewhere: their number is known, and none can be picked."""

        def __len__(self):
            return 3

        def __iter__(self):
            return iter(DataLoader(rows(5), batch_size=2))

    for data in (rows(5), DataLoader(rows(5), batch_size=2), rows(5)[0], Batches()):
        given = list(batches.batches_of(data, batch_size=2))
        assert batches.number_of_batches(data, 2) == len(given)
    assert batches.number_of_batches(iter(rows(5)), 2) is None
