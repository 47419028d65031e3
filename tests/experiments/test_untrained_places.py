"""The untrained place study: log-probabilities as by hand, and a summary of numbers whose answer is known."""

import json

import pytest
import tiny
import torch
from nli import byte_level, task

import dplearn as dp
from dplearn.experiments import untrained_places as places


@pytest.mark.parametrize("cue", ["", " answer:"])
def test_log_probabilities_are_those_of_each_text_alone(cue):
    tokenizer, data = byte_level(), task()
    llama = tiny.llama(vocab_size=len(tokenizer), dtype=torch.float32)
    options = dict(split="train", length=3, splits=(0, 2, 3), prompts=2, cue=cue, seed=4)
    found = places.word_log_probabilities(llama, tokenizer, data, **options)
    assert found.shape == (2, 3, 2, 2)
    generator, words = torch.Generator().manual_seed(4), data.word_ids(tokenizer, llama)
    table = llama.get_input_embeddings()
    for prompt in found:
        config = dp.PromptConfig(length=3, position=0)
        vectors = dp.prompted(llama, config, generator=generator).prompt.vectors.detach()
        for k, scores in zip((0, 2, 3), prompt, strict=True):
            for example, one in zip(data.splits["train"], scores, strict=True):
                text = table(torch.tensor(tokenizer(data.text(example))["input_ids"]))
                end = table(torch.tensor(tokenizer(cue)["input_ids"], dtype=torch.long))
                with torch.no_grad():
                    rows = torch.cat([vectors[:k], text, vectors[k:], end])[None]
                    by_hand = llama(inputs_embeds=rows).logits[0, -1].log_softmax(-1)[words]
                torch.testing.assert_close(one, by_hand, rtol=1e-4, atol=1e-5)
    assert (found[:, 0] - found[:, -1]).abs().min() > 1e-4  # the place changes something


def test_the_summary_of_known_numbers():
    """Two prompts, two splits, two texts: text 0 is right at split 0, text 1 at split 1, in both prompts."""
    good, bad = [0.0, -3.0], [-3.0, 0.0]  # label 0 is the answer
    scores = torch.tensor([[[good, bad], [bad, good]]] * 2)
    found = places.summary(scores, [0, 0])
    low, high = (torch.tensor(pair).log_softmax(0)[0].neg().item() for pair in (good, bad))
    assert found["change"] == 3.0 and found["flips"] == 1.0 and found["spread"] == 1.5
    assert found["losses"] == pytest.approx([(low + high) / 2] * 2, abs=1e-4)
    assert found["best_fixed"] == found["oracle_task"] == found["random"] == found["losses"][0]
    assert found["oracle_instance"] == found["cross_fitted"] == pytest.approx(low, abs=1e-4)
    assert found["accuracy"] == [0.5, 0.5]


def test_noise_is_won_by_the_oracle_and_not_by_the_cross_fitted_choice():
    scores = torch.randn(6, 3, 400, 2, generator=torch.Generator().manual_seed(0))
    found = places.summary(scores, [0] * 400)
    assert found["oracle_instance"] < found["best_fixed"] - 0.3
    assert abs(found["cross_fitted"] - found["random"]) < 0.05
    assert places.summary(scores[:1], [0] * 400)["cross_fitted"] is None


@pytest.mark.parametrize("splits", [(0,), (0, 0), (0, 11), (-1, 3)])
def test_splits_are_checked(splits):
    with pytest.raises(ValueError, match=r"splits=.* two or more different integers in 0\.\.10"):
        places.word_log_probabilities(None, None, task(), splits=splits)


def test_the_command_records_every_row(tmp_path, monkeypatch, capsys):
    tokenizer = byte_level()
    llama = tiny.llama(vocab_size=len(tokenizer), dtype=torch.float32)
    monkeypatch.setattr(places.shelf, "load", lambda name: (llama, tokenizer))
    splits = {"train": task().splits["train"], "validation": task().splits["train"]}
    monkeypatch.setattr(places, "load", lambda name, **options: task(splits=splits))
    out = tmp_path / "places.json"
    places.main(["--data", "x", "--tasks", "cb", "--texts", "2", "--prompts", "2", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["cue"] for row in rows] == ["", " answer:"] and rows[0]["splits"] == [0, 5, 10]
    assert "24 texts to read" in capsys.readouterr().out
