"""Heads that are in no checkpoint: told when a prompt is made on them, brought by the prompt, or noticed at loading.

The right value is the answer of the model that was saved; where that cannot be had, a warning or a refusal says so.
"""

import copy
import json
import warnings
from functools import partial

import pytest
import tiny
import torch
from stored import edit, name_backbone
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    RobertaForSequenceClassification,
    ViTForImageClassification,
)

import dplearn as dp
from dplearn.backbones import heads
from dplearn.fingerprint import fingerprint

NAMES = ["low", "middle", "high"]
EXACT = dict(rtol=0, atol=1e-12)
THREE = dict(
    num_labels=3, id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)}
)


def texts():
    ids, mask = tiny.batch([6, 3, 8], eos=False)
    return dict(input_ids=ids, attention_mask=mask)


def electra(kind=ElectraForSequenceClassification, seed=0, dtype=torch.float64, **options):
    """A random ELECTRA whose embeddings are narrower than its layers."""
    return tiny.finish(kind, ElectraConfig(**NARROW | options), seed, dtype)


def albert(kind=AlbertForSequenceClassification, seed=0, dtype=torch.float64, **options):
    """A random ALBERT, likewise; its pooler is a plain linear layer."""
    return tiny.finish(kind, AlbertConfig(**NARROW | options), seed, dtype)


NARROW = tiny.SMALL | tiny.LAYERS | dict(num_attention_heads=2, embedding_size=8)
NARROW |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

# name -> (model, its class with a head, fresh parameters when it is loaded from its base model)
KINDS = {
    "bert": (tiny.bert, BertForSequenceClassification, ["classifier.weight", "classifier.bias"]),
    "distilbert": (
        tiny.distilbert,
        DistilBertForSequenceClassification,
        ["pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"],
    ),
    "electra": (
        electra,
        ElectraForSequenceClassification,
        [f"classifier.{name}.{end}" for name in ("dense", "out_proj") for end in ("weight", "bias")],
    ),
    "gpt2": (tiny.gpt2, GPT2ForSequenceClassification, ["score.weight"]),
    "vit": (tiny.vit, ViTForImageClassification, ["classifier.weight", "classifier.bias"]),
}


def batch_of(name):
    return dict(pixel_values=tiny.images()) if name == "vit" else texts()


def base_of(name, folder):
    """A folder with the base model alone."""
    make, kind, _ = KINDS[name]
    make(kind).base_model.save_pretrained(folder)
    return kind, folder


def loaded(kind, folder, seed, **options):
    """A model from a folder, with what is missing there drawn from a seed."""
    torch.manual_seed(seed)
    return kind.from_pretrained(folder, dtype=torch.float64, **options).eval()


def silently(call, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(*arguments, **options)


def frozen(**options):
    return dp.PromptConfig(length=2, **options)


# --- when a prompt is made ---


@pytest.mark.parametrize("name", KINDS)
def test_a_frozen_head_that_was_in_no_checkpoint_is_told(name, tmp_path):
    kind, folder = base_of(name, tmp_path)
    fresh = KINDS[name][2]
    model = loaded(kind, folder, 1)
    assert heads.fresh_weights(model) == fresh
    words = rf"{fresh[0]}( \(and {len(fresh) - 1} more\))? was in no checkpoint .* head='trained'"
    with pytest.warns(UserWarning, match=words) as caught:
        prompted = dp.prompted(model, frozen())
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match=words):
        prompted.add_prompt("more", frozen())
    silently(dp.prompted, loaded(kind, folder, 1), frozen(head="trained"))
    model.save_pretrained(tmp_path / "whole")
    silently(dp.prompted, loaded(kind, tmp_path / "whole", 1), frozen())


def test_a_head_of_another_size_than_the_stored_one_is_fresh(tmp_path):
    tiny.bert(BertForSequenceClassification).save_pretrained(tmp_path)
    model = loaded(BertForSequenceClassification, tmp_path, 1, num_labels=7, ignore_mismatched_sizes=True)
    with pytest.warns(UserWarning, match=r"classifier.weight \(and 1 more\) was in no checkpoint"):
        dp.prompted(model, frozen())


@pytest.mark.parametrize("change", ["made", "copied", "resized", "resized head", "half"])
def test_nothing_is_told_where_nothing_is_known_or_nothing_is_fresh(change, tmp_path):
    model = tiny.gpt2(tie_word_embeddings=False)
    if change != "made":
        model.save_pretrained(tmp_path)
        model = loaded(GPT2LMHeadModel, tmp_path, 1)
    if change == "copied":
        tiny.gpt2().base_model.save_pretrained(tmp_path / "base")
        model = copy.deepcopy(loaded(GPT2ForSequenceClassification, tmp_path / "base", 1))
    if change.startswith("resized"):
        model.resize_token_embeddings(80, mean_resizing=False)
    if change == "half":
        model = model.bfloat16()
    silently(dp.prompted, model, frozen())


# --- when it is loaded ---


@pytest.mark.filterwarnings("ignore:.* was in no checkpoint")
@pytest.mark.parametrize("name", KINDS)
def test_another_frozen_head_is_noticed(name, tmp_path):
    kind, folder = base_of(name, tmp_path / "base")
    model = dp.prompted(loaded(kind, folder, 1), frozen())
    model.save_pretrained(tmp_path / "prompt")
    again = silently(dp.from_pretrained, tmp_path / "prompt", loaded(kind, folder, 1))
    assert_close(again(**batch_of(name)).logits, model(**batch_of(name)).logits, rtol=0, atol=1e-6)
    last = KINDS[name][2][-1] if name == "gpt2" else KINDS[name][2][-2]
    with pytest.warns(UserWarning, match=rf"another head than that of this .*{last}.* head='trained'"):
        again = dp.from_pretrained(tmp_path / "prompt", loaded(kind, folder, 2))
    assert (again(**batch_of(name)).logits - model(**batch_of(name)).logits).abs().max() > 1e-3
    whole = loaded(kind, folder, 1)
    with torch.no_grad():
        next(whole.base_model.parameters()).mul_(2)
    with pytest.warns(UserWarning, match="trained on other weights than those of this"):
        dp.from_pretrained(tmp_path / "prompt", whole)


@pytest.mark.filterwarnings("ignore:.* was in no checkpoint")
def test_every_tensor_of_a_head_counts(tmp_path):
    """Whichever of them differs; also where the model has many others."""
    model = electra(num_hidden_layers=6)
    recorded = fingerprint(model)
    behind = {name for name, _ in model.named_parameters() if not name.startswith("electra.")}
    assert len(behind) == 4 and behind <= set(recorded)
    dp.prompted(model, frozen()).save_pretrained(tmp_path)
    for name in KINDS["electra"][2]:
        other = electra(num_hidden_layers=6)
        with torch.no_grad():
            other.get_parameter(name).add_(0.1)
        with pytest.warns(UserWarning, match=f"another head than that of this .*: {name} had other values"):
            dp.from_pretrained(tmp_path, other)


def test_another_number_of_labels_is_refused(tmp_path):
    model = dp.prompted(tiny.bert(BertForSequenceClassification, num_labels=3), frozen())
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="with labels=3, this one has labels=2: .* needs the head that it was trained"
    ):
        dp.from_pretrained(tmp_path, tiny.bert(BertForSequenceClassification))
    other = dp.prompted(tiny.bert(BertForSequenceClassification), frozen())
    with pytest.raises(ValueError, match="with labels=3, this one has labels=2"):
        other.load_prompt("more", tmp_path)
    assert other.prompts == ("default",)
    edit(tmp_path, lambda document: document["backbone"].pop("labels"))  # an older checkpoint
    with pytest.warns(UserWarning, match="another head"):
        dp.from_pretrained(tmp_path, tiny.bert(BertForSequenceClassification))


def test_models_without_a_head_for_labels_have_no_number_of_them(tmp_path):
    for make in (tiny.t5, tiny.gpt2, tiny.bert, partial(tiny.bert, BertForMaskedLM)):
        dp.prompted(make(), frozen()).save_pretrained(tmp_path)
        found = json.loads((tmp_path / "prompt_config.json").read_text())["backbone"]
        assert not {"labels", "label_names"} & set(found)
    dp.prompted(tiny.bert(BertForQuestionAnswering), frozen()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "prompt_config.json").read_text())["backbone"]["labels"] == 2


def test_other_names_of_labels_are_noticed(tmp_path):
    def make(names=None):
        named = {} if names is None else dict(id2label=dict(enumerate(names)))
        return tiny.bert(BertForSequenceClassification, **{"num_labels": 3} | named)

    dp.prompted(make(NAMES), frozen()).save_pretrained(tmp_path)
    silently(dp.from_pretrained, tmp_path, make(NAMES))
    for names, found in ((NAMES[::-1], r"\['high', 'middle', 'low'\]"), (None, "'LABEL_0, LABEL_1, ...'")):
        backbone = make(names)
        before = dict(backbone.config.id2label)
        with pytest.warns(
            UserWarning, match=rf"\['low', 'middle', 'high'\], this BertFor.* names them {found}"
        ):
            dp.from_pretrained(tmp_path, backbone)
        assert backbone.config.id2label == before
    dp.prompted(make(), frozen()).save_pretrained(tmp_path)  # nothing to compare
    silently(dp.from_pretrained, tmp_path, make(NAMES))


# --- a trained head ---


def moved(model):
    """A trained head that is far from its first values."""
    with torch.no_grad():
        for parameter in model.prompt.head.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("by", ["name", "backbone", "prompt"])
@pytest.mark.parametrize("stored", ["base", "three other labels"])
def test_names_of_labels_come_back_with_a_trained_head(by, stored, tmp_path):
    source = tiny.bert(BertForSequenceClassification, id2label={0: "a", 1: "b", 2: "c"}, dtype=torch.float32)
    (source.base_model if stored == "base" else source).save_pretrained(tmp_path / "base")
    backbone = BertForSequenceClassification.from_pretrained(tmp_path / "base", **THREE)
    model = moved(dp.prompted(backbone, frozen(head="trained")))
    model.save_pretrained(tmp_path / "prompt")
    name_backbone(tmp_path / "prompt", tmp_path / "base")
    if by == "name":
        again = silently(dp.from_pretrained, tmp_path / "prompt")
    else:
        bare = BertForSequenceClassification.from_pretrained(tmp_path / "base")
        if bare.config.num_labels != 3 or stored == "base":
            bare = BertForSequenceClassification.from_pretrained(
                tmp_path / "base", num_labels=3, id2label={i: f"LABEL_{i}" for i in range(3)}
            )
        else:
            heads.set_label_names(bare, [f"LABEL_{i}" for i in range(3)])
        if by == "backbone":
            again = silently(dp.from_pretrained, tmp_path / "prompt", bare)
        else:
            again = dp.prompted(bare, frozen(head="trained"))
            silently(again.load_prompt, "more", tmp_path / "prompt")
            again.use_prompt("more")
    assert again.config.id2label == dict(enumerate(NAMES))
    assert again.config.label2id == {name: number for number, name in enumerate(NAMES)}
    assert again.config.num_labels == 3
    assert torch.equal(again(**texts()).logits, model(**texts()).logits)


def test_names_of_labels_of_the_zoo_come_back(tmp_path):
    torch.manual_seed(1)
    backbone, _ = dp.zoo.load("vit-mini", num_labels=3)
    heads.set_label_names(backbone, NAMES)
    moved(dp.prompted(backbone, frozen(head="trained"))).save_pretrained(tmp_path)
    assert dp.from_pretrained(tmp_path).config.id2label == dict(enumerate(NAMES))


POOLED = {
    "bert": (tiny.bert, BertForSequenceClassification, BertForMaskedLM, "bert.pooler"),
    "albert": (albert, AlbertForSequenceClassification, None, "albert.pooler"),
}


def without_pooler(name, folder):
    """A base checkpoint that holds no pooler, as that of a masked language model."""
    make, kind, bare, _ = POOLED[name]
    model = make(kind, num_labels=3)
    model.base_model.pooler = None
    model.base_model.save_pretrained(folder)
    return kind


@pytest.mark.parametrize("by", ["name", "backbone"])
@pytest.mark.parametrize("name", POOLED)
def test_a_pooler_that_was_in_no_checkpoint_is_a_part_of_the_trained_head(name, by, tmp_path):
    """Its answers come back, whatever pooler the backbone draws when it is loaded again."""
    kind, path = without_pooler(name, tmp_path / "base"), POOLED[name][3]
    backbone = loaded(kind, tmp_path / "base", 1, **THREE)
    model = silently(dp.prompted, backbone, frozen(head="trained"))
    assert heads.paths_of(model.prompt.head) == (path, "classifier")
    assert f"a copy of the backbone's {path}, classifier" in str(model.summary())
    assert any(f"prompt.head.{path.replace('.', '-')}" in key for key in model.trainable_parameters())
    moved(model).save_pretrained(tmp_path / "prompt")
    if by == "name":
        name_backbone(tmp_path / "prompt", tmp_path / "base")
        torch.manual_seed(2)
        again = silently(dp.from_pretrained, tmp_path / "prompt")
        expected = dict(rtol=1e-4, atol=1e-4)  # loaded in the stored dtype
    else:
        again = silently(
            dp.from_pretrained, tmp_path / "prompt", loaded(kind, tmp_path / "base", 2, num_labels=3)
        )
        expected = EXACT
    pooler = next(again.backbone.get_submodule(path).parameters())
    assert (pooler - next(backbone.get_submodule(path).parameters())).abs().max() > 0.01
    assert_close(again(**texts()).logits.double(), model(**texts()).logits.double(), **expected)
    # A third one: what it saves says the same of its backbone, though that has a pooler of its own now.
    again.backbone.save_pretrained(tmp_path / "whole")
    whole = dp.from_pretrained(tmp_path / "prompt", loaded(kind, tmp_path / "whole", 3))
    whole.save_pretrained(tmp_path / "second")
    third = silently(
        dp.from_pretrained, tmp_path / "second", loaded(kind, tmp_path / "base", 4, num_labels=3)
    )
    assert_close(third(**texts()).logits.double(), model(**texts()).logits.double(), **expected)


@pytest.mark.parametrize("name", POOLED)
def test_a_fresh_pooler_is_trained_as_the_models_own(name, tmp_path):
    """Logits and gradients equal those of a model whose own pooler and classifier are free."""
    kind, path = without_pooler(name, tmp_path / "base"), POOLED[name][3]
    labels = torch.tensor([1, 2, 0])
    vectors = torch.randn(2, 8 if name == "albert" else tiny.WIDTH, dtype=torch.float64)
    model = dp.prompted(
        loaded(kind, tmp_path / "base", 1, num_labels=3), frozen(head="trained"), vectors=vectors
    )
    with pytest.warns(UserWarning, match=f"{path}.* was in no checkpoint"):
        reference = dp.prompted(loaded(kind, tmp_path / "base", 1, num_labels=3), frozen(), vectors=vectors)
    own = {}
    for module in (path, "classifier"):
        for key, parameter in (
            reference.backbone.get_submodule(module).requires_grad_(True).named_parameters()
        ):
            own[f"prompt.head.{module.replace('.', '-')}.{key}"] = parameter
    found, expected = (each(**texts()).logits for each in (model, reference))
    assert_close(found, expected, **EXACT)
    cross_entropy(found, labels).backward()
    cross_entropy(expected, labels).backward()
    assert set(model.trainable_parameters()) == {"prompt.vectors", *own}
    for key, parameter in own.items():
        assert_close(model.trainable_parameters()[key].grad, parameter.grad, **EXACT)
        assert parameter.grad.abs().max() > 1e-8
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_a_pooler_that_was_loaded_is_not_copied_and_another_one_is_noticed(tmp_path):
    source = tiny.bert(BertForSequenceClassification, num_labels=3)
    source.base_model.save_pretrained(tmp_path / "base")
    source.base_model.pooler = None
    source.base_model.save_pretrained(tmp_path / "bare")
    model = dp.prompted(
        loaded(BertForSequenceClassification, tmp_path / "base", 1, num_labels=3), frozen(head="trained")
    )
    assert heads.paths_of(model.prompt.head) == ("classifier",)
    moved(model).save_pretrained(tmp_path / "prompt")
    again = silently(
        dp.from_pretrained,
        tmp_path / "prompt",
        loaded(BertForSequenceClassification, tmp_path / "base", 2, num_labels=3),
    )
    assert_close(again(**texts()).logits, model(**texts()).logits, **EXACT)
    with pytest.warns(
        UserWarning, match=r"another head than that of this .*: bert.pooler.dense.weight had other values"
    ):
        dp.from_pretrained(
            tmp_path / "prompt", loaded(BertForSequenceClassification, tmp_path / "bare", 2, num_labels=3)
        )


def test_roberta_has_no_pooler_to_copy(tmp_path):
    tiny.roberta(RobertaForSequenceClassification).base_model.save_pretrained(tmp_path)
    model = loaded(RobertaForSequenceClassification, tmp_path, 1)
    assert heads.pooler_of(model) is None
    assert heads.paths_of(dp.prompted(model, frozen(head="trained")).prompt.head) == ("classifier",)


# --- embeddings that are narrower than the layers ---


@pytest.mark.parametrize("make", [electra, albert])
def test_an_encoder_summary_has_the_width_of_the_layers(make):
    """Decisions from the encoder's states by hand: the mean over real tokens, standardised, and one linear layer."""
    backbone = make(num_labels=3)
    config = dp.PromptConfig(length=3, position="instance", summary="encoder")
    model = dp.prompted(backbone, config).double().eval()
    batch, linear = texts(), model.prompt.position.controller.linear
    states = backbone.base_model(**batch).last_hidden_state.detach()
    weights = batch["attention_mask"].double()
    mean = (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    assert states.shape[2] == tiny.WIDTH and model.prompt.width == 8
    assert_close(model.summarize(**batch), mean, **EXACT)
    normal = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    with torch.no_grad():  # each input finds itself
        linear.weight.copy_(torch.cat([normal[[2, 0, 1]], torch.zeros(1, tiny.WIDTH)]))
        linear.bias.zero_()
    decided = model.decide(**batch)["position"]
    assert_close(decided.logits, normal @ linear.weight.detach().T, rtol=0, atol=1e-9)
    found, splits = model(**batch).logits, decided.index
    assert splits.tolist() == [1, 2, 0]
    vectors = model.prompt.vectors.detach()
    for row, split in enumerate(splits.tolist()):
        fixed = dp.prompted(
            make(num_labels=3), dp.PromptConfig(length=3, position=split), vectors=vectors
        ).double()
        one = {name: value[row : row + 1] for name, value in batch.items()}
        assert_close(found[row], fixed(**one).logits[0], rtol=0, atol=1e-9)
        # The same by hand: the word rows with the vectors around them, without padding.
        real = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        words = backbone.get_input_embeddings()(real)
        rows = torch.cat([vectors[:split], words, vectors[split:]])[None]
        hidden = backbone.base_model(inputs_embeds=rows).last_hidden_state[:, split]
        if make is electra:
            expected = backbone.classifier(hidden[:, None])
        else:
            base = backbone.base_model
            expected = backbone.classifier(base.pooler_activation(base.pooler(hidden)))
        assert_close(found[row], expected[0], rtol=0, atol=1e-9)
