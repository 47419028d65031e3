"""The shipped backbone: files are verified, text survives the tokenizer, instructions work and their absence is chance."""

import json
import random
import shutil

import pytest
import torch

from dplearn import tasks, zoo
from dplearn.tasks import world, world_words
from dplearn.zoo import (
    evaluation,
    gates,
    mixture,
    noise,
    pretraining,
    run_folder,
    stages,
    t5_model,
    world_streams,
)
from dplearn.zoo.__main__ import main

ENTRIES = [
    {"library": library, "module": "m", "name": f"f{i}", "signature": f"{word} ( a , b )",
     "summary": f"Fold the {word} of {i} things.", "passages": [f"Fold the {word} of {i} things.", f"It is number {i} of them."]}
    for i, (library, word) in enumerate([("numpy", "array"), ("numpy", "axis"), ("torch", "tensor"), ("torch", "graph")] * 20)
]  # fmt: skip


@pytest.fixture(scope="module")
def loaded():
    return zoo.load("t5-mini")


def test_load_gives_a_float32_model_in_evaluation_mode(loaded):
    model, tokenizer = loaded
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == len(tokenizer)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert model.lm_head.weight.data_ptr() == model.shared.weight.data_ptr()


def test_dtype_is_checked_and_used():
    assert zoo.load("t5-mini", torch.float64)[0].dtype == torch.float64
    with pytest.raises(ValueError, match="dtype=torch.int64: expected a floating point"):
        zoo.load("t5-mini", torch.int64)


def test_unknown_names_are_errors():
    for call in (zoo.load, zoo.card, lambda name: zoo.random_control(name, 0)):
        with pytest.raises(
            ValueError, match=r"name='t5-huge': expected one of \[.*'t5-mini', .*'smollm2-135m-instruct'\]"
        ):
            call("t5-huge")


def test_shipped_weights_are_small():
    assert sum(path.stat().st_size for path in zoo.FOLDER.glob("*/*.safetensors")) < 15e6


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), ValueError, "model.safetensors is damaged"),
        (lambda f: (f / "config.json").write_text((f / "config.json").read_text() + " "), ValueError, "config.json is damaged"),
        (lambda f: (f / "tokenizer.json").unlink(), FileNotFoundError, "tokenizer.json is missing"),
        (lambda f: (f / "sha256.json").write_text("{}"), ValueError, "has no hash of config.json"),
    ],
)  # fmt: skip
def test_damaged_files_are_named_before_anything_is_loaded(tmp_path, damage, error, message):
    folder = tmp_path / "t5-mini"
    shutil.copytree(zoo.FOLDER / "t5-mini", folder)
    zoo.verify(folder)
    damage(folder)
    with pytest.raises(error, match=message):
        zoo.load_folder(folder)


def test_text_survives_the_tokenizer(loaded):
    tokenizer = loaded[1]
    text = "hypothesis: is Anna in the garden ? premise: the red ball is owned by anna ."
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in ids
    plain = tokenizer.decode(ids, skip_special_tokens=True).split()
    assert plain == text.lower().replace(":", " :").split()


def test_every_word_of_the_world_is_one_token(loaded):
    tokenizer = loaded[1]
    for word in world.vocabulary():
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1 and ids[0] != tokenizer.unk_token_id, word


def test_label_words_are_distinct_first_tokens(loaded):
    for name in (*evaluation.SKILLS, "docs/library"):
        task_words = world_words.FAMILIES[name[6:]][1] if name.startswith("world/") else None
        if task_words:
            assert len(set(tasks.load(name).word_ids(loaded[1]))) == len(task_words)


@pytest.mark.parametrize("name", ["world/boolq", "world/rte", "world/color"])
def test_the_skill_is_there_with_an_instruction_and_not_without(loaded, name):
    task = tasks.load(name)
    assert evaluation.accuracy(*loaded, task, "test", count=200) >= 0.85
    assert abs(evaluation.accuracy(*loaded, task, "test", instructed=False) - 0.5) <= 0.05


def test_the_random_control_has_the_same_shape_and_other_weights(loaded):
    model = loaded[0]
    control, again = zoo.random_control("t5-mini", 3), zoo.random_control("t5-mini", 3)
    for (name, one), other, same in zip(
        model.named_parameters(), control.parameters(), again.parameters(), strict=True
    ):
        assert one.shape == other.shape and torch.equal(other, same)
        assert "layer_norm" in name or not torch.equal(one, other)
    with pytest.raises(ValueError, match="seed=-1: expected an integer of at least 0"):
        zoo.random_control("t5-mini", -1)


def test_the_streams_are_seeded_and_their_holes_are_answered():
    for stream in mixture.STREAMS:
        one, two = (mixture.Mixer("s", ENTRIES).example(stream) for _ in range(2))
        assert one == two
        for _ in range(20):
            text, target = mixture.Mixer(f"{stream}{_}", ENTRIES).example(stream)
            shown = [word for word in text.split() if word.startswith("<extra_id_") and word != noise.NOISE]
            answers = [word for word in target.split() if word.startswith("<extra_id_")]
            assert shown in (answers, []) and len(set(answers)) == len(answers) > 0


def test_bare_text_is_answered_by_a_coin_that_ignores_the_text():
    mixer = mixture.Mixer(0, ENTRIES)
    said = {True: [], False: []}
    for _ in range(1200):
        text, target = world_streams.bare(mixer.world, "color")
        colours = [word for word in text.split() if word in world_words.COLOURS]
        if len(colours) == 2:  # damaged text may lack one
            said[colours[0] == colours[1]].append(target.endswith(" no"))
    assert min(map(len, said.values())) > 400
    shares = [sum(values) / len(values) for values in said.values()]
    assert all(0.74 < share < 0.86 for share in shares) and abs(shares[0] - shares[1]) < 0.07
    answers = {mixture.Mixer(i, ENTRIES).example("bare")[1].split()[-1] for i in range(200)}
    assert answers == {"yes", "no", "maybe"}


def test_coins_and_instructions_stand_among_noise_on_every_side():
    for stream, shortest, longest in (("bare", 1, 24), ("boolq", 1, 12)):
        seen = {True: 0, False: 0}
        sides = set()
        for seed in range(300):
            words = mixture.Mixer(seed, ENTRIES).example(stream)[0].split()
            count = words.count(noise.NOISE)
            seen[count > 0] += 1
            assert count == 0 or shortest <= count <= longest
            if count:
                sides.add((words[0] == noise.NOISE, noise.NOISE in words[-2:]))
        assert min(seen.values()) > 60 and {(True, False), (False, True), (True, True)} <= sides
    rng = random.Random(0)
    assert noise.among_noise(rng, "a b", 1).replace(noise.NOISE, "").split() == ["a", "b"]


def test_noise_is_random_vectors_where_the_mark_stands_and_nothing_else_changes():
    model = t5_model.fresh_model(64)
    ids = torch.tensor([[5, 9, 6, 9], [9, 5, 6, 7]] * 100)
    generator = torch.Generator().manual_seed(0)
    embeds = noise.embed_with_noise(model, ids, 9, generator)
    table = model.shared.weight
    assert torch.equal(embeds[ids != 9], table[ids[ids != 9]])
    vectors = embeds[ids == 9]
    assert not (vectors == table[9]).all(-1).all()  # the mark's own row is drawn no more often than others
    rows = (vectors.unsqueeze(1) == table).all(-1).any(1)  # a row of the vocabulary, as it is
    assert 0.3 < rows.float().mean() < 0.5
    sizes = (vectors[~rows].std(-1) / table.std()).log2()
    assert sizes.min() < 0.5 and 2.0 < sizes.max() < 3.5
    again = noise.embed_with_noise(model, ids, 9, torch.Generator().manual_seed(0))
    assert torch.equal(embeds, again)


def test_the_fused_activation_is_the_same_function():
    model = t5_model.fresh_model(64).double()
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[5]])}
    before = model(**batch).logits
    t5_model.fuse_activations(model)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "GELU" in kinds and "NewGELUActivation" not in kinds
    torch.testing.assert_close(model(**batch).logits, before, rtol=1e-12, atol=1e-12)


def test_people_of_instructed_examples_are_not_the_new_ones():
    mixer = mixture.Mixer(0, ENTRIES)
    for family in world_words.FAMILIES:
        for _ in range(50):
            assert not set(mixer.example(family)[0].split()) & set(world_words.NEW_PEOPLE)
    assert any(set(mixer.example("told_corrupt")[0].split()) & set(world_words.NEW_PEOPLE) for _ in range(50))


def test_the_plan_covers_all_steps_and_ends():
    assert stages.plan(0, pretraining.STAGES)[1] < 1e-4
    assert stages.plan(stages.total_steps(pretraining.STAGES) - 1, pretraining.STAGES)[1] == pytest.approx(
        pretraining.STAGES[-1].rates[1]
    )
    with pytest.raises(ValueError, match="is after the last stage"):
        stages.plan(stages.total_steps(pretraining.STAGES), pretraining.STAGES)


def test_a_checkpoint_brings_everything_back(tmp_path):
    model = t5_model.fresh_model(64)
    optimizer = torch.optim.AdamW(t5_model.parameter_groups(model), lr=1e-3)
    model(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[5]])).loss.backward()
    optimizer.step()
    assert run_folder.load_checkpoint(tmp_path, model, optimizer) == {}
    run_folder.save_checkpoint(tmp_path, model, optimizer, step=7, tokens=99, seconds=1.5)
    other = t5_model.fresh_model(64, seed=9)
    again = torch.optim.AdamW(t5_model.parameter_groups(other), lr=1e-3)
    progress = run_folder.load_checkpoint(tmp_path, other, again)
    assert progress == {"step": 7, "tokens": 99, "seconds": 1.5}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    moments = [each.state_dict()["state"] for each in (optimizer, again)]
    assert moments[0].keys() == moments[1].keys() and moments[0]
    assert all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])


def row(task, method, seed, score):
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "purpose": "report",
        "seconds": 60,
        "scores": {"test": {"accuracy": score}},
    }


def verdicts(rows):
    return {gate.split()[0]: holds for gate, holds, _ in gates.judge_runs(rows)}


def test_gates_hold_and_fail_as_they_should():
    rows = [
        row(task, method, seed, score + 0.01 * seed)
        for task in gates.TWO_WAY
        for method, score in (
            (gates.PROMPT, 0.85),
            (gates.RANDOM, 0.5),
            (gates.FULL, 0.9),
            (gates.WORDS, 0.5),
        )
        for seed in range(3)
    ]
    rows += [row("docs/signature", gates.PROMPT, seed, 0.7 + 0.01 * seed) for seed in range(3)]
    rows += [row("docs/signature", gates.RANDOM, seed, 0.5) for seed in range(3)]
    assert verdicts(rows) == {"3": True, "4": True, "4b": True, "5": True}
    broken = [r | {"scores": {"test": {"accuracy": 0.7}}} if r["method"] == gates.RANDOM else r for r in rows]
    assert verdicts(broken) == {"3": True, "4": False, "4b": True, "5": False}
    low = [r | {"scores": {"test": {"accuracy": 0.6}}} if r["method"] == gates.PROMPT else r for r in rows]
    assert verdicts(low)["3"] is False
    zero = [
        {"task": t, "split": "test", "chance": 0.5, "instructed": 0.95, "bare": 0.5} for t in gates.FAMILIES
    ]
    assert [holds for _, holds, _ in gates.judge_zero_shot(zero)] == [True, True]
    zero[0]["bare"], zero[1]["instructed"], zero[2]["instructed"] = 0.6, 0.8, 0.8
    assert [holds for _, holds, _ in gates.judge_zero_shot(zero)] == [False, False]


def test_the_commands_print_what_ships(capsys):
    assert main(["list"]) == 0 and "t5-mini" in capsys.readouterr().out
    assert main(["card", "t5-mini"]) == 0 and "model organism" in capsys.readouterr().out
    assert main(["check", "t5-mini", "--quick"]) == 0 and "gate 1" in capsys.readouterr().out


def test_pretraining_does_not_overwrite_a_run(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    assert main(["pretrain", "t5-mini", "--folder", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err


def test_losses_are_recorded_to_the_last_step():
    losses = json.loads((zoo.FOLDER / "t5-mini" / "losses.json").read_text())
    assert losses[-1]["step"] == stages.total_steps(pretraining.STAGES)
    assert losses[-1]["loss"] < losses[0]["loss"] / 5


# --- models elsewhere ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t5-mini", "T5ForConditionalGeneration"),
        ("llama-mini", "LlamaForCausalLM"),
        ("clip-mini", "CLIPModel"),
        ("vit-mini", "ViTForImageClassification"),
    ],
)
def test_a_folder_is_loaded_as_what_its_config_says(tmp_path, name, expected):
    """Its weights are those of the shelf, its name is its path, and what prepares inputs comes along."""
    model, processor = zoo.load(name)
    folder = tmp_path / "mine"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    again, other = zoo.load(str(folder))
    assert type(again).__name__ == expected and not again.training and type(other) is type(processor)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_labels_of_models_elsewhere(tmp_path):
    model, processor = zoo.load("vit-mini")
    model.save_pretrained(tmp_path / "vit")
    processor.save_pretrained(tmp_path / "vit")
    assert zoo.load(str(tmp_path / "vit"), num_labels=7)[0].config.num_labels == 7
    for labels, message in ((1, "num_labels=1: expected an integer of at least 2"), ("7", "num_labels='7'")):
        with pytest.raises(ValueError, match=message):
            zoo.load(str(tmp_path / "vit"), num_labels=labels)
    model, tokenizer = zoo.load("t5-mini")
    model.save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="num_labels=7: expected None, .* has no classification head"):
        zoo.load(str(tmp_path / "t5"), num_labels=7)


def test_an_encoder_elsewhere_is_bare_or_a_classifier(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=64
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    zoo.load("t5-mini")[1].save_pretrained(tmp_path / "bert")
    assert type(zoo.load(str(tmp_path / "bert"))[0]).__name__ == "BertModel"
    assert type(zoo.load(str(tmp_path / "bert"), num_labels=3)[0]).__name__ == "BertForSequenceClassification"


def test_a_tokenizer_that_cannot_be_read_here_says_what_it_needs(tmp_path, monkeypatch):
    """A SentencePiece model alone, without the two packages; with tokenizer.json nothing more is needed."""
    model, tokenizer = zoo.load("t5-mini")
    model.save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "spiece.model").write_bytes(b"")
    for name in ("is_sentencepiece_available", "is_protobuf_available"):
        with monkeypatch.context() as patched:
            patched.setattr(f"transformers.utils.{name}", lambda: False)
            with pytest.raises(ModuleNotFoundError, match="pip install sentencepiece protobuf"):
                zoo.load(str(tmp_path / "t5"))
    tokenizer.save_pretrained(tmp_path / "t5")
    monkeypatch.setattr("transformers.utils.is_sentencepiece_available", lambda: False)
    assert zoo.load(str(tmp_path / "t5"))[1].get_vocab() == tokenizer.get_vocab()
