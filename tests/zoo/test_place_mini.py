"""place-mini: what a place asks for, against words read off the texts; how it is made; its record, gates and card."""

import copy
import json
import random

import pytest
import torch

import dplearn as dp
from dplearn import tasks, zoo
from dplearn.tasks import place as sentences
from dplearn.tasks import world, world_scenes, world_words
from dplearn.zoo import evaluation, place, place_figures, t5_model
from dplearn.zoo.__main__ import main

FOLDER = zoo.FOLDER / "place-mini"


@pytest.fixture(scope="module")
def loaded():
    return zoo.load("place-mini")


def said(loaded, *texts):
    """The word that is generated for each text, by transformers alone."""
    model, tokenizer = loaded
    start = torch.tensor([[0, tokenizer.convert_tokens_to_ids(zoo.ANSWER_PREFIX)]] * len(texts))
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    found = model.generate(**batch, decoder_input_ids=start, max_new_tokens=2, do_sample=False)
    return tokenizer.batch_decode(found, skip_special_tokens=True)


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2e6


def test_before_it_asks_for_the_colour_behind_for_the_owner_and_where_for_the_place(loaded):
    text = "anna keeps a red ball in the garden ."
    tells = " tell" * 8
    assert said(loaded, f"tell {text}", f"{tells} {text}", f"{text} tell", f"{text} {tells}") == [
        "red", "red", "anna", "anna",
    ]  # fmt: skip
    assert said(loaded, f"where {text}", f"{text} where", f"where {text} where where") == ["garden"] * 3
    assert set(said(loaded, text, f"tell {text} tell", f"tell tell {text} tell")) <= {"red", "anna"}


def test_a_given_prompt_does_what_the_words_do(loaded):
    """Through the package's own insertion, at every split, on texts that pretraining does not have."""
    model, tokenizer = loaded
    task = tasks.load("place/mixed")
    examples, length = task.examples("test")[:40], 3
    vectors = place_figures.given_prompt(model, tokenizer, "place/mixed", length)
    words = torch.tensor(task.word_ids(tokenizer))
    batch = tokenizer([e["text"] for e in examples], padding=True, return_tensors="pt")
    decoder = torch.tensor([[0, tokenizer.convert_tokens_to_ids(zoo.ANSWER_PREFIX)]] * len(examples))
    for split in range(length + 1):
        prompted = dp.prompted(model, dp.PromptConfig(length=length, position=split), vectors=vectors).eval()
        with torch.no_grad():
            logits = prompted(**batch, decoder_input_ids=decoder).logits[:, -1, words]
        texts = [" ".join(["tell"] * split + [e["text"]] + ["tell"] * (length - split)) for e in examples]
        told = evaluation.word_logits(model, tokenizer, task, texts)
        torch.testing.assert_close(logits, told, rtol=1e-4, atol=1e-4)
        if split in (0, length):
            kind = "colour" if split else "person"
            right = sum(task.words[i] == e[kind] for i, e in zip(logits.argmax(-1), examples, strict=True))
            assert right >= 39


def test_the_known_right_splits_are_the_ones_with_the_lowest_loss(loaded):
    for name in ("place/mixed", "place/xor", "place/names"):
        task = tasks.load(name)
        loss = place_figures.losses(*loaded, cut_to(task, 40), "test", 2)[0]
        types = sentences.types_of(task, "test")[:40]
        assert sentences.share_right(name, types, loss.argmin(1), 2) >= 0.95


def cut_to(task, count):
    from dataclasses import replace

    return replace(task, splits={split: examples[:count] for split, examples in task.splits.items()})


def test_nothing_is_won_where_the_place_says_nothing(loaded):
    none, mixed = (
        place_figures.headroom(*loaded, cut_to(tasks.load(name), 100), 1)["accuracy"]
        for name in ("place/none", "place/mixed")
    )
    assert none["best fixed"] >= 0.98 and abs(none["oracle"] - none["best fixed"]) <= 0.02
    assert mixed["best fixed"] <= 0.65 and mixed["known"] >= 0.98 and abs(mixed["random"] - 0.5) < 0.01


def test_every_word_is_one_token_and_an_unknown_one_is_unknown(loaded):
    tokenizer = loaded[1]
    for word in (*world.vocabulary(), "tell", "where", "."):
        (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert token not in tokenizer.all_special_ids
    assert tokenizer.unk_token_id in tokenizer("a zebra")["input_ids"]
    assert tokenizer("Tell it.")["input_ids"][-1] == tokenizer.eos_token_id
    assert len(tokenizer) == loaded[0].config.vocab_size == len(place.build_tokenizer())


def test_the_random_control_has_the_same_architecture(loaded):
    control, again = zoo.random_control("place-mini", 3), zoo.random_control("place-mini", 3)
    for (name, one), other, same in zip(
        loaded[0].named_parameters(), control.parameters(), again.parameters(), strict=True
    ):
        assert one.shape == other.shape and torch.equal(other, same)
        assert "layer_norm" in name or not torch.equal(one, other)


def test_it_starts_as_the_first_layers_of_its_parent():
    parent, parents = zoo.load("t5-mini")
    tokenizer = place.build_tokenizer()
    model = place.cut(parent, parents, tokenizer)
    for word in ("anna", "garden", "tell", "."):
        rows = [t(word, add_special_tokens=False)["input_ids"][0] for t in (tokenizer, parents)]
        assert torch.equal(model.shared.weight[rows[0]], parent.shared.weight[rows[1]])
    assert model.lm_head.weight.data_ptr() == model.shared.weight.data_ptr()
    ids = [t("anna keeps a red ball .", return_tensors="pt")["input_ids"] for t in (tokenizer, parents)]
    with torch.no_grad():
        states = [
            m.encoder(i, output_hidden_states=True).hidden_states[1] for m, i in zip((model, parent), ids)
        ]
    torch.testing.assert_close(*states)


def test_the_stream_asks_as_it_says():
    for kind in place.KINDS:
        coins = set()
        for seed in range(60):
            text, target = place.example(world_scenes.World(seed), kind)
            words, answer = text.split(), target.split()
            assert answer[0] == zoo.ANSWER_PREFIX and len(answer) == 2
            asked = "where" if kind == "anywhere" else "tell"
            ends = words[0] == asked, words[-1] == asked
            assert sum(word in ("tell", "where") for word in words) == words.count(asked) <= place.MOST
            shown = {
                "before": (True, False),
                "behind": (False, True),
                "around": (True, True),
                "bare": (False,) * 2,
            }
            assert any(ends) if kind == "anywhere" else ends == shown[kind]
            pools = {
                "before": world_words.COLOURS,
                "behind": world_words.PEOPLE,
                "anywhere": world_words.PLACES,
            }
            assert answer[1] in words and answer[1] in pools.get(
                kind, world_words.COLOURS + world_words.PEOPLE
            )
            coins.add(answer[1] in world_words.COLOURS)
            person, colour, thing = (
                next(w for w in words if w in pool)
                for pool in (world_words.PEOPLE, world_words.COLOURS, world_words.THINGS)
            )
            assert world_scenes.part_of(person, colour, thing) == "train"
        assert len(coins) == (2 if kind in ("around", "bare") else 1)


def test_the_coin_ignores_the_text():
    rng, row = random.Random(0), {"colour": "red", "person": "anna", "place": "barn"}
    for kind in ("bare", "around"):
        answers = [place.asked(rng, kind, "x", row)[1] for _ in range(2000)]
        assert abs(answers.count("red") / 2000 - 0.5) < 0.05 and set(answers) == {"red", "anna"}


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "BATCH", 4)
    tokenizer = place.build_tokenizer()
    shape = place.SHAPE_MINI | dict(d_model=16, d_ff=16, num_layers=1)
    found = []
    for name, stops in (("whole", [4]), ("halves", [3, 4])):
        (tmp_path / name).mkdir()
        for stop in stops:
            model = t5_model.fresh_model(len(tokenizer), 0, shape)
            place.train(model, tokenizer, tmp_path / name, report_every=2, stop=stop)
        found.append(model.state_dict())
    assert all(torch.equal(one, found[1][name]) for name, one in found[0].items())
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "halves")]
    strip = [[{k: v for k, v in json.loads(line).items() if k != "minutes"} for line in log] for log in logs]
    assert strip[0] == strip[1] and [line["step"] for line in strip[0]] == [2, 4]


def test_the_rate_rises_and_falls_to_its_end():
    rates = [place.rate_at(step) for step in range(place.STEPS + 1)]
    assert max(rates) == place.RATE == rates[place.WARMUP] and rates[0] == place.RATE / place.WARMUP
    assert rates[-1] == pytest.approx(place.RATE * place.LAST) and min(rates[place.WARMUP :]) == rates[-1]


def test_losses_are_recorded_to_the_last_step():
    losses = json.loads((FOLDER / "losses.json").read_text())
    assert losses[-1]["step"] == place.STEPS and losses[-1]["held_out"]["before"] >= 0.98


def test_the_recorded_gates_hold_but_for_the_last_and_gates_can_fail():
    found = place_figures.recorded("place-mini")
    assert [text[0] for text, holds, _ in place_figures.judge(found) if not holds] == ["6"]
    found = copy.deepcopy(found)
    found["tuned"][0]["random"] = [0.1]
    none = next(i for i, row in enumerate(found["headroom"]) if row["task"] == "place/none")
    mixed = next(i for i, row in enumerate(found["headroom"]) if row["task"] == "place/mixed")
    tell = next(i for i, row in enumerate(found["asked"]) if (row["word"], row["before"]) == ("tell", 1))
    changes = {
        "1": lambda f: f["asked"][tell].update(person=0.5),
        "2": lambda f: f["asked"][0].update(colour=0.9),
        "3": lambda f: f["asked"][-1].update(place=0.5),
        "4": lambda f: f["asked"][tell].update(random=[0.0, 0.2]),
        "5": lambda f: f["headroom"][none]["accuracy"].update(known=0.5),
        "6": lambda f: f["tuned"][0].update(random=[0.9]),
    }
    more = {"5": lambda f: f["headroom"][mixed]["accuracy"].update({"best fixed": 0.9})}
    for gate, change in [*changes.items(), *more.items()]:
        broken = copy.deepcopy(found)
        change(broken)
        assert [text[0] for text, holds, _ in place_figures.judge(broken) if not holds] == [gate]


def test_the_record_is_what_the_model_does_now(loaded):
    found = place_figures.recorded("place-mini")
    for row in found["asked"][:2]:
        shares = place_figures.shares(*loaded, row["word"], row["before"], row["behind"])
        assert shares == pytest.approx({kind: row[kind] for kind in shares}, abs=0.01)


def test_the_card_shows_the_record(capsys):
    assert main(["check", "place-mini", "--quick"]) == 0
    printed = capsys.readouterr().out.strip()
    card = zoo.card("place-mini")
    assert printed in card and "gate 6" in printed
    hashes = json.loads((FOLDER / "sha256.json").read_text())
    assert hashes["model.safetensors"] in card and place_figures.FILE in hashes
    last = json.loads((FOLDER / "losses.json").read_text())[-1]
    assert f"{last['loss']:.3f}" in card and f"{last['samples']:,}" in card
    assert main(["list"]) == 0 and "place-mini" in capsys.readouterr().out
