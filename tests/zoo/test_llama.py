"""llama-mini: its sequences can be answered from the left, its run goes on where it stopped, and what ships is recorded."""

import json

import pytest
import torch

import dplearn as dp
from dplearn import tasks, zoo
from dplearn.experiments import records
from dplearn.files import write
from dplearn.tasks import world_words
from dplearn.zoo import causal, causal_mixture, evaluation, gates
from dplearn.zoo.__main__ import main
from dplearn.zoo.noise import NOISE

ENTRIES = [
    {"library": library, "module": "m", "name": f"f{i}", "signature": f"{word} ( a , b )",
     "summary": f"Fold the {word} of {i} things into several other pieces.", "passages": [f"Fold the {word}.", "It is long."]}
    for i, (library, word) in enumerate([("numpy", "array"), ("numpy", "axis"), ("torch", "tensor"), ("torch", "graph")] * 20)
]  # fmt: skip


@pytest.fixture(scope="module")
def loaded():
    return zoo.load("llama-mini")


@pytest.fixture(scope="module")
def tokenizer():
    return causal.build_tokenizer()


# --- the sequences ---


def test_answers_stand_in_their_holes_behind_the_cue():
    for stream in causal_mixture.STREAMS:
        for seed in range(10):
            text, target = causal_mixture.Mixer(f"{stream}{seed}", ENTRIES).example(stream)
            again = causal_mixture.Mixer(f"{stream}{seed}", ENTRIES).example(stream)
            assert (text, target) == again
            pieces = causal_mixture.in_place(text, target)
            words = " ".join(piece for piece, _ in pieces).split()
            said = [piece for piece, answer in pieces if answer]
            without = [word for word in target.split() if not word.startswith("<extra_id_")]
            assert " ".join(said).split() == without
            assert words.count(causal_mixture.CUE) == len(said)
            for (before, _), (_, answer) in zip(pieces, pieces[1:]):
                assert answer == before.endswith(causal_mixture.CUE)


@pytest.mark.parametrize("stream", ["recall_short", "recall_told"])
def test_what_is_recalled_was_told_before(stream):
    mixer = causal_mixture.Mixer(stream, ENTRIES)
    for _ in range(100):
        pieces = causal_mixture.in_place(*mixer.example(stream))
        for place, (words, answer) in enumerate(pieces):
            if answer:
                told = " ".join(piece for piece, _ in pieces[:place]).split()
                assert words in told


def asked_and_answered(stream, count=200):
    """(the two facts as lists of words, what is asked, the answer) of examples of a stream of two facts."""
    mixer = causal_mixture.Mixer(stream, ENTRIES)
    for _ in range(count):
        before = question = ""
        for words, answer in causal_mixture.in_place(*mixer.example(stream)):
            if answer:
                yield before, question, words
            question = words.removesuffix(causal_mixture.CUE)
            before += f" {question}"


def equal(text, pool):
    """Whether the two facts of a text share a word of the pool (each fact has one)."""
    first, second = [word for word in text.split() if word in pool][:2]
    return first == second


KINDS = {
    "colour": world_words.COLOURS,
    "person": world_words.PEOPLE,
    "place": world_words.PLACES,
    "thing": world_words.THINGS,
}
NAMED = KINDS | {"people": world_words.PEOPLE, "name": world_words.PEOPLE}


@pytest.mark.parametrize("stream", ["equal_words", "equal_short", "asked_equal", "color", "owner"])
def test_what_is_equal_is_what_is_answered(stream):
    seen = set()
    for text, question, answer in asked_and_answered(stream):
        words = question.replace("?", " ").split()
        facts = text.partition("sentence1:")[2] or text
        kinds = {kind for kind in NAMED for word in words if word.rstrip("s") == kind.rstrip("s")}
        kind = next((kind for kind in NAMED if kind in kinds), None)
        if kind is None:
            continue
        assert answer == ("yes" if equal(facts, NAMED[kind]) else "no"), (text, question)
        seen.add((kind, answer))
    assert {answer for _, answer in seen} == {"yes", "no"} and len(seen) >= 4


def test_instructions_stand_before_behind_and_around_short_facts():
    places = set()
    for text, _, _ in asked_and_answered("equal_short"):
        facts = [i for i, word in enumerate(text.split()) if word in world_words.COLOURS]
        asked = [i for i, word in enumerate(text.split()) if word in (":", "?")]
        places.add((asked[0] < facts[0], asked[-1] > facts[-1]))
    assert places == {(True, False), (False, True), (True, True)}


def test_a_word_that_stood_before_is_seen():
    mixer = causal_mixture.Mixer("seen", ENTRIES)
    for _ in range(100):
        before = []
        pieces = causal_mixture.in_place(*mixer.example("seen"))
        for (word, _), (answer, _) in zip(pieces[::2], pieces[1::2], strict=True):
            word = word.removesuffix(f" {causal_mixture.CUE}")
            assert answer == ("yes" if word in before else "no")
            before.append(word)
        assert 8 <= len(before) <= 14 and len(set(before)) < len(before)


def test_a_batch_marks_its_answers_and_ends(tokenizer):
    pairs = [("anna red <extra_id_0> .", "<extra_id_0> ball"), ("is it so ?", "<extra_id_0> no")]
    batch = causal.collate(tokenizer, pairs)
    texts = ["anna red <extra_id_0> ball . </s> <pad>", "is it so ? <extra_id_0> no </s>"]
    for ids, answers, text in zip(batch["input_ids"], batch["answers"], texts, strict=True):
        assert " ".join(tokenizer.convert_ids_to_tokens(ids)).replace("▁", "") == text
        said = tokenizer.convert_ids_to_tokens(answers[answers != -100])
        assert said == [f"▁{'ball' if 'ball' in text else 'no'}", "</s>"]


def test_text_has_no_end_behind_it(tokenizer):
    assert tokenizer("red ball").input_ids == tokenizer("red ball", add_special_tokens=False).input_ids
    shipped = zoo.load("t5-mini")[1]
    assert shipped("red ball").input_ids == [*tokenizer("red ball").input_ids, shipped.eos_token_id]


# --- the loss and the run ---


def test_the_loss_is_of_answers_and_of_a_share_of_the_text(tokenizer, monkeypatch):
    model = causal.fresh_model(len(tokenizer)).double()
    mixer = causal_mixture.Mixer(0, ENTRIES)
    batch = causal.collate(tokenizer, [mixer.example(s) for s in ("recall_told", "senses", "color")])
    ids, answers = batch["input_ids"], batch["answers"]
    logs = model(input_ids=ids).logits.log_softmax(-1)
    own = -logs[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)  # for tokens 1, 2, ...
    said = answers[:, 1:] != -100
    unread = tokenizer.convert_tokens_to_ids(["<pad>", NOISE, causal_mixture.CUE])
    free = ~said & ~torch.isin(ids[:, 1:], torch.tensor(unread))
    for share in (1.0, 0.0):
        monkeypatch.setattr(causal, "READ", share)
        loss, answering = causal.loss_of(model, batch, tokenizer, 0)
        text = own[free].mean() if share else 0.0
        torch.testing.assert_close(answering, own[said].mean())
        torch.testing.assert_close(loss, own[said].mean() + causal.READ_WEIGHT * text)


def test_the_parts_of_a_batch_together_give_its_gradient(tokenizer, monkeypatch):
    monkeypatch.setattr(causal, "READ", 0.0)
    mixer = causal_mixture.Mixer(0, ENTRIES)
    streams = ("recall_told", "equal_words", "color", "seen")
    pairs = [mixer.example(stream) for stream in streams]
    found = []
    for parts in ([pairs], [pairs[:1], pairs[1:]]):
        model = causal.fresh_model(len(tokenizer)).double()
        optimizer = torch.optim.SGD(causal.parameter_groups(model), lr=1.0)
        losses = causal.advance(
            model, optimizer, [causal.collate(tokenizer, part) for part in parts], tokenizer, 1.0, 0
        )
        found.append((losses, [parameter.detach() for parameter in model.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_first_heads_look_back_and_at_equal_words_and_a_next_one_behind_them():
    model = causal.fresh_model(4096)
    model.set_attn_implementation("eager")
    ids = torch.tensor([[100, 200, 300, 400, 500, 600, 700, 800, 900, 200, 1000]])
    with torch.no_grad():
        first, second = model(ids, output_attentions=True).attentions[:2]
    for head in range(2):
        assert all(first[0, head, t].argmax() == t - head - 1 for t in range(3, 11))
        assert first[0, head + 2, 9].argmax() == 1  # the first 200, not the second itself
    assert second[0, 0, 9].argmax() == 2  # behind the first 200


def test_embeddings_start_from_those_of_t5_mini():
    model, theirs = causal.fresh_model(4096), zoo.load("t5-mini")[0].shared.weight.detach()
    causal.take_words(model)
    mine = model.get_input_embeddings().weight.detach()
    assert (mine[:, 0] == causal.COMMON).all()
    torch.testing.assert_close(mine[:, 1:].std().item(), causal.SPREAD, rtol=0.02, atol=0)
    for one, other in ((5, 800), (77, 4000)):  # differences of rows keep their direction
        pair = (mine[one] - mine[other])[1:], (theirs[one] - theirs[other])[1:]
        assert torch.cosine_similarity(*pair, dim=0) > 0.9999


def test_a_run_goes_on_where_it_stopped(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: None)
    monkeypatch.setattr(causal, "BATCH", 4)
    monkeypatch.setattr(causal, "PARTS", 2)
    monkeypatch.setattr(causal, "BLOCK", 2)
    monkeypatch.setattr(causal, "HELD_OUT", 2)
    stage = causal.Stage(causal.BLOCK, (1e-3, 1e-3), {"recall_short": 1, "bare": 1})
    for name, parts in {"once": (2,), "twice": (1, 2)}.items():
        tokenizer.save_pretrained(tmp_path / name / "tokenizer")
        write(tmp_path / name / "documents.json", json.dumps(ENTRIES).encode())
        for part in parts:
            monkeypatch.setattr(causal, "STAGES", (stage,) * part)
            causal.train(0, tmp_path / name, report_every=causal.BLOCK)
    one, two = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("once", "twice")
    )
    assert one["step"] == two["step"] == 2 * causal.BLOCK and one["tokens"] == two["tokens"]
    assert all(torch.equal(value, two["model"][key]) for key, value in one["model"].items())
    target = causal.export(tmp_path / "twice", tmp_path / "export")
    zoo.verify(target)
    assert [row["step"] for row in json.loads((target / "losses.json").read_text())] == [2, 4]


# --- what ships ---


def test_it_is_a_small_llama_in_float32(loaded):
    model, tokenizer = loaded
    assert type(model).__name__ == "LlamaForCausalLM" and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == len(tokenizer)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert (zoo.FOLDER / "llama-mini" / "model.safetensors").stat().st_size < 4e6


def test_the_random_control_has_the_same_shape_and_other_weights(loaded):
    control, again = zoo.random_control("llama-mini", 3), zoo.random_control("llama-mini", 3)
    for (name, one), other, same in zip(
        loaded[0].named_parameters(), control.parameters(), again.parameters(), strict=True
    ):
        assert one.shape == other.shape and torch.equal(other, same)
        assert "norm" in name or not torch.equal(one, other)


def test_an_answer_does_not_depend_on_its_batch(loaded):
    task = tasks.load("world/color")
    texts = evaluation.instructed_texts(task, task.examples("test")[:40])
    alone = evaluation.predict(*loaded, task, texts, batch_size=1)
    assert alone == evaluation.predict(*loaded, task, texts, batch_size=40)


def test_it_generates_the_answer_and_stops_with_a_prompt_too(loaded):
    model, tokenizer = loaded
    texts = [
        "same colour or not : sentence1: in the barn anna has a red ball . sentence2: ben keeps a red cup in the mill ."
    ]
    ids = tokenizer([f"{text} {zoo.ANSWER_PREFIX}" for text in texts], return_tensors="pt")
    plain = model.generate(**ids, max_new_tokens=4, do_sample=False)[:, ids.input_ids.shape[1] :]
    assert tokenizer.decode(plain[0]) == "yes</s>"
    # Vectors that are the instruction's own are as good as the instruction.
    instruction = tokenizer("same colour or not :", return_tensors="pt").input_ids
    rest = tokenizer(texts[0].partition(": ")[2] + f" {zoo.ANSWER_PREFIX}", return_tensors="pt")
    prompted = dp.prompted(model, dp.PromptConfig(length=instruction.shape[1], position="prefix"))
    with torch.no_grad():
        prompted.prompt.vectors.copy_(model.get_input_embeddings()(instruction[0]))
    found = prompted.generate(**rest, keep_last=1, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, plain)


# Held-out texts (people and wordings that pretraining knows, combinations that it does not) and their right answers.
KNOWN = [
    ("same colour or not : sentence1: in the barn anna has a red ball . sentence2: ben keeps a red cup in the mill .", "yes"),
    ("same colour or not : sentence1: in the barn anna has a red ball . sentence2: ben keeps a blue cup in the mill .", "no"),
    ("sentence1: in the barn anna has a red ball . sentence2: anna keeps a blue cup in the mill . do the names match ?", "yes"),
    ("sentence1: in the barn anna has a red ball . sentence2: ben keeps a blue cup in the mill . do the names match ?", "no"),
]  # fmt: skip


@pytest.mark.parametrize("text, answer", KNOWN)
def test_known_answers(loaded, text, answer):
    task = tasks.load("world/color")
    assert task.words[evaluation.predict(*loaded, task, [text])[0]] == answer


@pytest.mark.parametrize("name", ["world/color", "world/owner"])
def test_the_skill_is_there_with_an_instruction_and_not_without(loaded, name):
    task = tasks.load(name)
    recorded = {
        row["task"]: row for row in gates.zero_shot_rows("llama-mini", run=False) if row["split"] == "test"
    }
    found = evaluation.accuracy(*loaded, task, "test", count=200)
    assert found >= 0.85 and abs(found - recorded[name]["instructed"]) <= 0.06
    assert abs(evaluation.accuracy(*loaded, task, "test", instructed=False, count=200) - 0.5) <= 0.08


def test_the_card_prints_what_is_recorded(capsys):
    card = zoo.card("llama-mini")
    for row in gates.zero_shot_rows("llama-mini", run=False):
        figures = " | ".join(f"{row[name]:.3f}" for name in ("instructed", "bare", "chance"))
        assert f"| {row['task']} | {row['split']} | {figures} |" in card
    last = json.loads((zoo.FOLDER / "llama-mini" / "losses.json").read_text())[-1]
    assert last["step"] == causal.total_steps(causal.STAGES) and f"{last['step']:,} steps" in card
    for stream, value in last["held_out"].items():
        assert f"| {stream} | {value:.3f} |" in card
    assert main(["check", "llama-mini", "--quick"]) == 0
    assert capsys.readouterr().out.partition("task             method")[2].strip() in card
    assert json.loads((zoo.FOLDER / "llama-mini" / "sha256.json").read_text())["model.safetensors"] in card


def test_a_tuned_prompt_calls_the_skill_up_and_random_layers_have_none():
    """The recorded runs, averaged here by hand."""
    rows = [row for row in records.load("gates-llama")["rows"] if row["purpose"] == "report"]
    found = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row["scores"]["test"]["accuracy"])
    mean = {method: sum(values) / len(values) for method, values in found.items()}
    assert len(found["prefix"]) == 5 and min(found["prefix"]) >= 0.8
    assert abs(mean["no prompt"] - 0.5) <= 0.05 and abs(mean["bag of words"] - 0.5) <= 0.06
    assert mean["prefix"] - mean["prefix, random layers"] >= 0.2


def verdicts(zero, rows):
    return {gate.split()[0]: holds for gate, holds, _ in gates.judge_equality(zero, rows)}


def test_the_gates_of_equality_hold_and_fail_as_they_should():
    zero = [
        {"task": task, "split": "test", "chance": 0.5, "instructed": 0.9, "bare": 0.5}
        for task in gates.EQUALITY
    ]
    rows = [
        {"task": "world/owner", "method": method, "seed": seed, "purpose": "report",
         "scores": {"test": {"accuracy": score + 0.01 * seed}}}
        for method, score in ((gates.PROMPT, 0.8), (gates.RANDOM, 0.5)) for seed in range(3)
    ]  # fmt: skip
    assert verdicts(zero, rows) == {"E1": True, "E2": True} and verdicts(zero, []) == {"E1": True, "E2": None}
    low = [
        row | {"scores": {"test": {"accuracy": 0.7}}} if row["method"] == gates.PROMPT else row
        for row in rows
    ]
    same = [row | {"scores": {"test": {"accuracy": 0.9}}} for row in rows]
    assert not verdicts(zero, low)["E2"] and not verdicts(zero, same)["E2"]
    for change in ({"instructed": 0.89}, {"bare": 0.56}):
        assert not verdicts([zero[0], zero[1] | change], rows)["E1"]


def test_families_that_were_not_run_are_open_and_not_failed():
    rows = [{"task": "world/owner", "method": gates.PROMPT, "seed": 1, "purpose": "report", "seconds": 9,
             "scores": {"test": {"accuracy": 0.9}}}]  # fmt: skip
    holds = {gate.split()[0]: holds for gate, holds, _ in gates.judge_runs(rows)}
    assert holds == {"3": None, "4": None, "4b": True, "5": None}
