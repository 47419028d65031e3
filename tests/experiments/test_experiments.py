"""The experiment runner: every method scored alike, choices without the test split, records with provenance."""

import json

import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import dplearn as dp
from dplearn.experiments import execution, fitting, probes, records, tuning
from dplearn.tasks.base import Task

WORDS = ["<pad>", "</s>", "<unk>", "yes", "no", *"abcdefgh"]


def tokenizer():
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def task(count=60):
    """Is there an "a" in the text? A bag of words solves it; a third of the texts hold one."""
    generator = torch.Generator().manual_seed(0)

    def examples(n):
        rows = []
        for i in range(n):
            letters = [WORDS[6 + int(j)] for j in torch.randint(0, 7, (2 + i % 4,), generator=generator)]
            label = int(i % 3 == 0)
            rows.append({"text": " ".join(letters[:1] + ["a"] * label + letters[1:]), "label": label})
        return rows

    splits = {"train": examples(count), "validation": examples(30), "test": examples(30)}
    return Task("toy/a", ("absent", "present"), ("no", "yes"), "{text}", splits, "accuracy", "made here")


SETTINGS = fitting.Settings(steps=3, batch_size=8)


def by_hand(model, split="test"):
    """Accuracy computed one example at a time, without padding."""
    tok, data, right = tokenizer(), task(), 0
    for row in data.encode(tok, split):
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])
            ).logits[0, -1]
        right += int(logits[[4, 3]].argmax() == [4, 3].index(row["labels"][-1]))
    return right / len(data.examples(split))


def test_zero_shot_equals_scoring_one_by_one_and_leaves_the_model_alone():
    backbone = tiny.t5(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    row = tuning.zero_shot(backbone, tokenizer(), task())
    assert row["scores"]["test"]["accuracy"] == pytest.approx(by_hand(backbone))
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def next_word(model, row):
    """The label index that a decoder-only model gives one example, alone, without padding, read at its last token."""
    ids = torch.tensor([row["input_ids"] + row["labels"][:-1]])
    with torch.no_grad():
        return int(model(input_ids=ids).logits[0, -1][[4, 3]].argmax())


@pytest.fixture
def predicted(monkeypatch):
    """The label indices of every split that is scored, by its name."""
    found, usual = {}, Task.score

    def score(self, split, predictions):
        found[split] = list(predictions)
        return usual(self, split, predictions)

    monkeypatch.setattr(Task, "score", score)
    return found


@pytest.mark.parametrize(("make", "seed"), [(tiny.gpt2, 1), (tiny.llama, 0)])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("cue", ["", "b g"])
def test_a_decoder_only_model_is_read_at_its_last_real_token(make, seed, side, cue, predicted):
    """Padding is not the answer, and what precedes the answer word is a part of the input."""
    backbone, tok, data = make(seed=seed, dtype=torch.float32), tokenizer(), task()
    tok.padding_side = side
    tuning.zero_shot(backbone, tok, data, answer_prefix=cue)
    assert set(predicted) == {"validation", "test"}
    for split, found in predicted.items():
        wanted = [next_word(backbone, row) for row in data.encode(tok, split, answer_prefix=cue)]
        assert found == wanted and 0 < sum(wanted) < len(wanted)  # it does not always say the same
    rows = data.encode(tok, "test")
    batch = tok.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
    read = tuning.LastRow(backbone)(**batch)["logits"][:, 0]
    for row, found in zip(rows, read, strict=True):
        alone = backbone(input_ids=torch.tensor([row["input_ids"]])).logits[0, -1]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_fine_tuning_a_decoder_only_model_reads_what_it_is_scored_on(predicted):
    backbone, data, tok = tiny.gpt2(dtype=torch.float32), task(), tokenizer()
    rows = data.encode(tok, "test")
    before = [next_word(backbone, row) for row in rows]
    settings = fitting.Settings(steps=25, batch_size=30, learning_rate=1e-2, warmup=0)
    row = tuning.fine_tune(backbone, tok, data, settings)
    assert predicted["test"] == [next_word(backbone.eval(), row) for row in rows] != before
    assert row["losses"][-1] < 0.8 * row["losses"][0]


@pytest.mark.parametrize("position", ["prefix", "postfix", "instance"])
def test_tune_prompt_on_a_decoder_only_model_keeps_the_cue_behind_the_prompt(position, predicted):
    backbone, data, tok = tiny.gpt2(seed=1, dtype=torch.float32), task(), tokenizer()
    config = dp.PromptConfig(length=3, position=position)
    tuning.tune_prompt(backbone, tok, data, config, fitting.Settings(steps=0), 5, answer_prefix="b g")
    torch.manual_seed(5)
    model, wanted = dp.prompted(backbone, config).eval(), []
    for row in data.encode(tok, "test", answer_prefix="b g"):
        ids, cue = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"][:-1]])
        with torch.no_grad():
            split = int(model.decide(ids)["position"].index)
            table, vectors = backbone.get_input_embeddings(), model.prompt.vectors[None]
            embeds = torch.cat([vectors[:, :split], table(ids), vectors[:, split:], table(cue)], 1)
            wanted.append(int(backbone(inputs_embeds=embeds).logits[0, -1][[4, 3]].argmax()))
    assert predicted["test"] == wanted and 0 < sum(wanted) < len(wanted)


@pytest.mark.parametrize("position", ["prefix", "task", "instance"])
def test_tune_prompt_is_reproducible_and_reports_what_it_did(position):
    config = dp.PromptConfig(length=4, position=position)
    rows = [
        tuning.tune_prompt(tiny.t5(dtype=torch.float32), tokenizer(), task(), config, SETTINGS, seed)
        for seed in (1, 1, 2)
    ]
    for row in rows:
        del row["seconds"]
    assert rows[0] == rows[1] and rows[0]["losses"] != rows[2]["losses"]
    assert rows[0]["settings"]["steps"] == 3 and rows[0]["config"] == config.to_dict()
    assert set(rows[0]["scores"]) == {"validation", "test"}
    json.dumps(rows)
    if position == "prefix":
        assert "positions" not in rows[0]
    else:
        shares = rows[0]["positions"]["test"]
        assert len(shares) == 5 and sum(shares) == pytest.approx(1, abs=1e-3)


def test_no_steps_score_the_untrained_prompt():
    backbone = tiny.t5(dtype=torch.float32)
    row = tuning.tune_prompt(
        backbone, tokenizer(), task(), dp.PromptConfig(length=4), fitting.Settings(steps=0), seed=3
    )
    torch.manual_seed(3)
    untrained = dp.prompted(backbone, dp.PromptConfig(length=4)).eval()
    assert row["losses"] == [] and row["scores"]["test"]["accuracy"] == pytest.approx(by_hand(untrained))


def test_fine_tuning_trains_all_weights_and_scores_the_trained_model():
    backbone = tiny.t5(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.named_parameters()}
    settings = fitting.Settings(steps=3, batch_size=8, learning_rate=1e-2)
    row = tuning.fine_tune(backbone, tokenizer(), task(), settings)
    assert all(not torch.equal(before[name], tensor) for name, tensor in backbone.named_parameters())
    assert row["trained_parameters"] == sum(p.numel() for p in backbone.parameters())
    assert row["scores"]["test"]["accuracy"] == pytest.approx(by_hand(backbone.eval()))


def test_a_bag_of_words_finds_the_word_and_nothing_else():
    assert probes.bag_of_words(task())["scores"]["test"]["accuracy"] == 1.0
    order = [{"text": "a b" if i % 2 else "b a", "label": i % 2} for i in range(40)]
    parity = [
        {"text": " ".join("ab"[(i >> j) & 1] + str(j) for j in range(3)), "label": bin(i).count("1") % 2}
        for i in range(8)
    ] * 5
    scores = []
    for data in (order, parity):
        splits = {"train": data, "validation": data, "test": data}
        toy = Task("toy/b", ("x", "y"), ("no", "yes"), "{text}", splits, "accuracy", "made here")
        scores.append(probes.bag_of_words(toy)["scores"]["test"]["accuracy"])
    assert scores[0] == 1.0  # pairs of words are counted too
    assert scores[1] <= 0.75  # an exclusive or of three is not seen


def test_the_majority_is_a_constant_answer():
    data = task()
    labels = [example["label"] for example in data.examples("test")]
    share = max(labels.count(0), labels.count(1)) / len(labels)
    assert probes.majority(data, ("test",))["scores"]["test"]["accuracy"] == pytest.approx(share)


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_a_state_probe_reads_the_frozen_model(kind):
    """The same score as sklearn on states that are made one text at a time, without padding."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from transformers import DataCollatorWithPadding

    backbone, tok, data = getattr(tiny, kind)(dtype=torch.float32), tokenizer(), task()
    kept = {}

    def encode(split, model):
        return kept.setdefault(split, data.encode(tok, split, model))

    found = probes.state_probe(backbone, data, encode, DataCollatorWithPadding(tok))["scores"]

    @torch.no_grad()
    def states(split):
        rows = []
        for row in encode(split, backbone):
            ids = torch.tensor([row["input_ids"]])
            if kind == "t5":
                rows.append(backbone.encoder(ids).last_hidden_state[0].mean(0))
            else:
                rows.append(backbone.transformer(ids).last_hidden_state[0, -1])
        return torch.stack(rows).double().numpy()

    labels = {split: [example["label"] for example in data.examples(split)] for split in data.splits}
    train = states("train")
    scale = lambda x: (x - train.mean(0)) / train.std(0)  # noqa: E731
    right = {}
    for strength in (0.001, 0.01, 0.1):
        model = LogisticRegression(C=strength, max_iter=2000).fit(scale(train), labels["train"])
        right[strength] = {
            s: np.mean(model.predict(scale(states(s))) == labels[s]) for s in ("validation", "test")
        }
    best = max(right.values(), key=lambda scores: scores["validation"])
    assert {split: scores["accuracy"] for split, scores in found.items()} == pytest.approx(best)


def test_minilm_probe_reads_sentence_vectors(monkeypatch):
    """With a random small BERT in MiniLM's place: the same score as sklearn on vectors made one text at a time."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    ).eval()
    tok = tokenizer()
    monkeypatch.setattr(probes.shelf, "load", {"minilm-l6": (bert, tok)}.__getitem__)
    data, found = task(), probes.minilm_probe(task())["scores"]

    def vectors(split):
        rows = []
        for example in data.examples(split):
            with torch.no_grad():
                rows.append(bert(**tok(example["text"], return_tensors="pt")).last_hidden_state[0].mean(0))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()

    labels = {
        split: np.array([example["label"] for example in data.examples(split)]) for split in data.splits
    }
    scores = {}
    for strength in (1.0, 10.0, 100.0):
        model = LogisticRegression(C=strength, max_iter=2000).fit(vectors("train"), labels["train"])
        scores[strength] = [
            float((model.predict(vectors(split)) == labels[split]).mean()) for split in ("validation", "test")
        ]
    best = max(scores.values(), key=lambda pair: pair[0])
    assert [found["validation"]["accuracy"], found["test"]["accuracy"]] == pytest.approx(best)


# --- records ---


def test_interval_is_student_t():
    scipy_stats = pytest.importorskip("scipy.stats")
    values = [0.71, 0.74, 0.70, 0.78, 0.75]
    mean, half = records.interval(values)
    low, high = scipy_stats.t.interval(0.95, 4, loc=mean, scale=scipy_stats.sem(values))
    assert mean == pytest.approx(sum(values) / 5)
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-9)
    with pytest.raises(ValueError, match="has 1 entries, expected at least 2"):
        records.interval([0.5])


def test_record_carries_its_provenance(tmp_path):
    records.save(tmp_path / "x.json", [{"a": 1}], command="python -m example")
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["rows"] == [{"a": 1}] and found["provenance"]["command"] == "python -m example"
    assert (
        found["provenance"]["torch"] == torch.__version__ and found["provenance"]["dplearn"] == dp.__version__
    )
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_study_that_was_not_run_has_no_record():
    assert records.load("never-run") is None


def test_rows_are_grouped_in_order():
    rows = [{"m": "b", "s": 1}, {"m": "a", "s": 2}, {"m": "b", "s": 3}]
    assert records.by(rows, "m") == {("b",): [rows[0], rows[2]], ("a",): [rows[1]]}


def test_a_model_of_images_is_refused_on_texts():
    spec = {"kind": "prompt", "backbone": "vit-mini", "task": "world/color", "purpose": "report", "seed": 1}
    with pytest.raises(
        ValueError, match="backbone='vit-mini', expected a model that reads texts for .*'prompt'"
    ):
        execution.run_job(spec | {"splits": ["test"], "settings": {"steps": 0}, "prompt": {}})


def test_a_draw_of_so_many_of_each_label_and_in_all_is_refused_in_the_words_of_a_study():
    with pytest.raises(ValueError, match="'world/rte.*: shots=3 and total=4, expected one of the two"):
        execution.load_task("world/rte?shots=3&total=4")
