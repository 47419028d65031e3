"""The backbone that a checkpoint names: found without running code of its own, and noticed where it is another one."""

import json
import warnings

import pytest
import tiny
import torch
from stored import edit, name_backbone
from transformers import BertForSequenceClassification, BertModel, T5ForConditionalGeneration

import dplearn as dp
from dplearn import zoo
from dplearn.fingerprint import fingerprint, matches, quantization, warn_of_changes


@pytest.fixture
def no_questions(monkeypatch):
    """transformers asks at the terminal whether to run code: here a question is an error."""

    def asks(*words):
        raise AssertionError(f"a question: {words}")

    monkeypatch.setattr("builtins.input", asks)


CODE = "raise SystemExit('code of a checkpoint was run')\n"


def with_own_code(folder, model_type):
    """A folder whose config names code of its own for the configuration and for every kind of model."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"model_type": model_type}
    kinds = ("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification")
    config["auto_map"] = dict.fromkeys(kinds, "own_code.Own")
    path.write_text(json.dumps(config))
    (folder / "own_code.py").write_text(CODE)


@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_a_kind_of_its_own_is_refused_and_its_code_is_not_run(head, tmp_path, no_questions):
    backbone = tiny.bert(BertForSequenceClassification, dtype=torch.float32)
    backbone.save_pretrained(tmp_path / "backbone")
    dp.prompted(backbone, dp.PromptConfig(length=2, head=head)).save_pretrained(tmp_path / "prompt")
    name_backbone(tmp_path / "prompt", tmp_path / "backbone")
    with_own_code(tmp_path / "backbone", "kind-of-its-own")
    with pytest.raises(
        ValueError, match=r"model_type='kind-of-its-own' and code of its own \(auto_map\): .* never run"
    ):
        dp.from_pretrained(tmp_path / "prompt")


@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_a_known_kind_is_loaded_with_the_code_of_transformers(head, tmp_path, no_questions):
    backbone = tiny.bert(BertForSequenceClassification, dtype=torch.float32)
    backbone.save_pretrained(tmp_path / "backbone")
    backbone = BertForSequenceClassification.from_pretrained(tmp_path / "backbone")
    model = dp.prompted(backbone, dp.PromptConfig(length=2, head=head))
    model.save_pretrained(tmp_path / "prompt")
    name_backbone(tmp_path / "prompt", tmp_path / "backbone")
    with_own_code(tmp_path / "backbone", "bert")
    ids, mask = tiny.batch([5, 3])
    again = dp.from_pretrained(tmp_path / "prompt")
    assert torch.equal(again(ids, mask).logits, model(ids, mask).logits)


@pytest.mark.parametrize("name", [3, ["a"], {"a": 1}, True])
def test_a_name_that_is_no_text_is_refused(name, tmp_path):
    dp.prompted(tiny.t5(dtype=torch.float32), dp.PromptConfig(length=2)).save_pretrained(tmp_path)
    edit(tmp_path, lambda document: document["backbone"].update(name_or_path=name))
    with pytest.raises(ValueError, match="cannot be loaded by name: expected from_pretrained"):
        dp.from_pretrained(tmp_path)


# --- fingerprints ---

MODELS = {
    "t5": tiny.t5, "flan-t5": tiny.flan_t5, "bart": tiny.bart, "gpt2": tiny.gpt2, "llama": tiny.llama, "bert": tiny.bert,
    "vit": tiny.vit, "dinov2": tiny.dinov2, "clip": tiny.clip, "siglip": tiny.siglip,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_its_own_fingerprint_in_every_dtype_and_no_other_ones(name):
    recorded = json.loads(json.dumps(fingerprint(MODELS[name]())))
    assert len(recorded) >= 8
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        model = MODELS[name]().to(dtype)
        assert matches(recorded, model) and matches(fingerprint(model), MODELS[name]())
    assert not matches(recorded, MODELS[name](seed=1))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_was_trained_a_little_has_another_fingerprint(name):
    """One small step on all weights, as fine-tuning takes it: seen in float32, and below the rounding of bfloat16."""
    model = MODELS[name](dtype=torch.float32) if name != "flan-t5" else tiny.flan_t5().float()
    recorded = fingerprint(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-4)
    assert not matches(recorded, model) and matches(recorded, model.bfloat16())


def test_the_values_are_those_at_the_recorded_places():
    model = tiny.gpt2()
    for name, sample in fingerprint(model).items():
        tensor = model.get_parameter(name)
        assert len(sample["index"]) > 1
        for index, value in zip(sample["index"], sample["values"], strict=True):
            place = torch.unravel_index(torch.tensor(index), tensor.shape)
            assert value == pytest.approx(tensor[place].item(), rel=1e-8)


@pytest.mark.parametrize("name", ["t5", "gpt2", "llama", "bart", "bert"])
def test_a_grown_vocabulary_is_no_change_and_a_shrunk_one_is(name):
    model = MODELS[name]()
    recorded = fingerprint(model)
    model.resize_token_embeddings(90, mean_resizing=False)
    assert matches(recorded, model)
    model.resize_token_embeddings(20, mean_resizing=False)
    assert not matches(recorded, model)


@pytest.mark.parametrize(
    "damage",
    [
        {"index": None},
        {"index": [10**9] * 4},
        {"values": ["a"] * 4},
        {"values": [1.0]},
        {"dtype": "nn"},
        {"dtype": 3},
    ],
)
def test_a_damaged_record_matches_nothing(damage):
    recorded = fingerprint(tiny.gpt2())
    assert not matches({name: sample | damage for name, sample in recorded.items()}, tiny.gpt2())
    assert not matches(dict.fromkeys(recorded), tiny.gpt2())


def test_a_fresh_head_is_a_change_unless_the_prompt_brings_its_own():
    one, other = (tiny.bert(BertForSequenceClassification) for _ in range(2))
    torch.nn.init.normal_(other.classifier.weight)
    assert matches(fingerprint(one), one) and not matches(fingerprint(one), other)
    assert matches(fingerprint(one, ["classifier"]), other)
    assert not matches(fingerprint(one, ["classifier"]), tiny.bert(BertForSequenceClassification, seed=1))
    assert fingerprint(tiny.bert(BertModel), ["classifier"]) == fingerprint(tiny.bert(BertModel))


class Quantised(torch.nn.Linear):
    """A layer whose weights are integers: bytes as in bitsandbytes, or words into which several are packed."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.weight = torch.nn.Parameter(
            layer.weight.detach().mul(8).round().to(torch.int32 if layer.in_features == 32 else torch.int8),
            requires_grad=False,
        )


def quantise(model):
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear and child is not model.get_output_embeddings():
                setattr(module, name, Quantised(child))
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    return model


def test_quantised_weights_are_left_out_on_both_sides():
    plain, quantised, other = tiny.llama(), quantise(tiny.llama()), quantise(tiny.llama(seed=1))
    recorded = fingerprint(quantised)
    assert all(quantised.get_parameter(name).is_floating_point() for name in recorded) and recorded
    assert matches(recorded, plain) and matches(fingerprint(plain), quantised)
    assert not matches(fingerprint(plain), other) and not matches(recorded, other)


def test_a_model_without_numbers_has_no_fingerprint_and_matches_nothing_recorded():
    with torch.device("meta"):
        model = T5ForConditionalGeneration(tiny.t5().config)
    assert fingerprint(model) == {} and matches({}, tiny.t5()) and matches(fingerprint(tiny.t5()), model)


def test_the_reading_is_fast_and_small():
    model = zoo.load("t5-mini")[0]
    assert len(json.dumps(fingerprint(model))) < 3000
    assert matches(fingerprint(model), zoo.load("t5-mini", dtype=torch.float16)[0])
    assert not matches(fingerprint(model), zoo.random_control("t5-mini", 0))


def described(model):
    return {"fingerprint": fingerprint(model), "quantization": quantization(model)}


def test_another_backbone_of_the_same_shape_is_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_changes("here", described(tiny.t5()), tiny.t5())
        warn_of_changes("here", {}, tiny.t5(seed=1))  # recorded by a version without fingerprints
    with pytest.warns(UserWarning, match="in 'here' was trained on other weights than those of this T5For"):
        warn_of_changes("here", described(tiny.t5()), tiny.t5(seed=1))


def test_quantised_then_and_not_now_is_a_warning_and_the_reverse_too():
    plain, quantised = tiny.llama(), quantise(tiny.llama())
    assert (quantization(plain), quantization(quantised)) == (None, "bitsandbytes")
    with pytest.warns(UserWarning, match="quantization='bitsandbytes', this one has quantization=None"):
        warn_of_changes("here", described(quantised), plain)
    with pytest.warns(UserWarning, match="quantization=None, this one has quantization='bitsandbytes'"):
        warn_of_changes("here", described(plain), quantised)
