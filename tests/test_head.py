"""Trained classification heads: each prompt has its own, and the backbone's never changes.

The reference is the backbone itself with its own head set free (``requires_grad``), and once visual prompt tuning
written out by hand.
"""

import copy
import logging
from functools import partial
from typing import NamedTuple

import pytest
import tiny
import torch
from naive_vit import CASES as VISION
from naive_vit import vpt_by_hand
from safetensors.torch import load_file, save_file
from stored import name_backbone
from torch.nn.functional import cross_entropy, linear
from torch.testing import assert_close
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DeiTForImageClassificationWithTeacher,
    DistilBertForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    RobertaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTForImageClassification,
    ViTModel,
    set_seed,
)

import dplearn as dp
from dplearn import card

LENGTH, LABELS = 3, torch.tensor([1, 4, 0])
EXACT = dict(rtol=0, atol=1e-12)
FIVE = dict(num_labels=5)


class Case(NamedTuple):
    """A kind of backbone, the modules of its head, and a batch."""

    make: partial
    head: tuple[str, ...]
    images: bool = False

    @property
    def batch(self):
        if self.images:
            return {"pixel_values": tiny.images()}
        ids, mask = tiny.batch([6, 3, 8], eos=False)
        return {"input_ids": ids, "attention_mask": mask}


CASES = {
    "vit": Case(partial(tiny.vit), ("classifier",), True),
    "deit": Case(partial(tiny.deit), ("classifier",), True),
    "deit-teacher": Case(
        partial(tiny.deit, DeiTForImageClassificationWithTeacher),
        ("cls_classifier", "distillation_classifier"),
        True,
    ),
    "dinov2": Case(partial(tiny.dinov2), ("classifier",), True),
    "bert": Case(partial(tiny.bert, BertForSequenceClassification, **FIVE), ("classifier",)),
    "roberta": Case(partial(tiny.roberta, RobertaForSequenceClassification, **FIVE), ("classifier",)),
    "distilbert": Case(
        partial(tiny.distilbert, DistilBertForSequenceClassification, **FIVE),
        ("pre_classifier", "classifier"),
    ),
    "gpt2": Case(partial(tiny.gpt2, GPT2ForSequenceClassification, **FIVE), ("score",)),
    "llama": Case(partial(tiny.llama, LlamaForSequenceClassification, **FIVE), ("score",)),
}


def make(backbone, head="trained", vectors=None, **options):
    """A prompted model in the backbone's dtype; the vectors depend on the shape alone."""
    config = dp.PromptConfig(
        **tiny.SAMPLED | {"length": LENGTH, "head": head, "controller_init": "zero"} | options
    )
    if vectors is None:
        vectors = torch.randn(*config.shape, tiny.WIDTH, generator=torch.Generator().manual_seed(7))
    return dp.prompted(backbone, config, vectors=vectors).to(backbone.dtype)


def free(model, names):
    """The parameters of a backbone's own head, by the names that a prompt's copy has, now with gradients."""
    named = {}
    for name in names:
        for key, parameter in getattr(model, name).requires_grad_(True).named_parameters():
            named[f"prompt.head.{name}.{key}"] = parameter
    return named


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(before, module):
    after = module.state_dict()
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)


# --- the same as a backbone whose own head is free ---


@pytest.mark.parametrize("options", [{}, {"position": "instance"}, {"vector": "task", "pool_size": 2}])
@pytest.mark.parametrize("name", CASES)
def test_training_equals_that_of_the_backbones_own_head(name, options):
    """Logits, gradients and three steps of SGD; the head's copy is trained and the backbone's weights are not."""
    case = CASES[name]
    if case.images and "position" in options:
        options = options | {"entry": "before-positions"}
    backbone = case.make()
    model, reference = make(backbone, **options), make(case.make(), "frozen", **options)
    with torch.no_grad():  # a head of its own is another one from the first step on
        for parameter in model.prompt.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    names = {key.removeprefix("prompt.head."): p for key, p in model.trainable_parameters().items()}
    own = free(reference.backbone, case.head)
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(names[key.removeprefix("prompt.head.")])
    before, expected = state_of(backbone), {**reference.trainable_parameters(), **own}
    assert set(model.trainable_parameters()) == set(expected) and len(own) >= len(case.head)
    runs = []
    for each, parameters in ((model, model.trainable_parameters()), (reference, expected)):
        optimizer, seen = torch.optim.SGD(parameters.values(), lr=0.1), []
        for _ in range(3):
            torch.manual_seed(5)  # the noise of learned decisions
            logits = each.train()(**case.batch).logits
            optimizer.zero_grad()
            cross_entropy(logits, LABELS).backward()
            seen.append((logits.detach(), {key: p.grad.clone() for key, p in parameters.items()}))
            optimizer.step()
        runs.append(seen)
    for (found, gradients), (logits, wanted) in zip(*runs, strict=True):
        assert_close(found, logits, **EXACT)
        for key, gradient in wanted.items():
            assert_close(gradients[key], gradient, **EXACT)
            assert gradient.abs().max() > 1e-6
    assert (runs[0][0][0] - runs[0][2][0]).abs().max() > 1e-3
    assert_same(before, backbone)
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", ["vit", "deit", "deit-teacher", "dinov2"])
def test_visual_prompt_tuning_with_a_trained_head_by_hand(name, depth):
    case, by_hand = CASES[name], VISION[name]
    model, backbone = make(case.make(), depth=depth), case.make().requires_grad_(False)
    own = free(backbone, case.head)
    vectors = model.prompt.vectors.detach().clone().requires_grad_()
    logits = vpt_by_hand(by_hand, backbone, tiny.images(), vectors if depth > 1 else vectors[None])["logits"]
    cross_entropy(logits, LABELS).backward()
    found = model(**case.batch).logits
    assert_close(found, logits, **EXACT)
    cross_entropy(found, LABELS).backward()
    for key, parameter in model.trainable_parameters().items():
        assert_close(parameter.grad, own[key].grad if key in own else vectors.grad, **EXACT)


@pytest.mark.parametrize("name", ["vit", "dinov2", "bert", "roberta", "distilbert", "gpt2", "llama"])
def test_the_models_own_loss_is_that_of_the_trained_head(name):
    case = CASES[name]
    model = make(case.make())
    with torch.no_grad():
        for parameter in model.prompt.head.parameters():
            parameter.add_(torch.randn_like(parameter))
    output = model(**case.batch, labels=LABELS)
    assert_close(output.loss, cross_entropy(output.logits, LABELS), **EXACT)
    assert (output.logits - make(case.make(), "frozen")(**case.batch).logits).abs().max() > 0.1


def test_labels_of_tokens():
    ids, mask = tiny.batch([6, 3, 8], eos=False)
    kind = partial(tiny.bert, BertForTokenClassification, num_labels=4)
    model, reference = make(kind(), position=1), make(kind(), "frozen", position=1)
    own = free(reference.backbone, ("classifier",))
    labels = torch.where(mask == 1, ids % 4, -100)
    for each in (model, reference):
        each(ids, mask, labels=labels).loss.backward()
    assert_close(model.prompt.vectors.grad, reference.prompt.vectors.grad, **EXACT)
    for key, parameter in own.items():
        assert_close(model.trainable_parameters()[key].grad, parameter.grad, **EXACT)


def test_the_head_learns_from_every_split_that_is_tried():
    """Enumerated splits: the head's gradient is the expectation over them."""
    case, options = CASES["vit"], {"entry": "before-positions"}
    model = make(case.make(), position="task", estimator="exact", **options)
    with torch.no_grad():
        model.prompt.position.controller.logits.normal_()
    model.train()(**case.batch, labels=LABELS).loss.backward()
    shares = model.prompt.position.controller.logits[0].softmax(0).detach()
    expected = 0
    for k, share in enumerate(shares):
        fixed = make(case.make(), position=k, **options)
        fixed(**case.batch, labels=LABELS).loss.backward()
        expected = expected + share * fixed.prompt.head.classifier.weight.grad
    assert_close(model.prompt.head.classifier.weight.grad, expected, **EXACT)


# --- modes, dtypes, tools ---


def test_dropout_inside_of_a_trained_head_follows_the_prompt():
    """RoBERTa's head holds dropout; the backbone's own, in front of BERT's head, is the backbone's."""
    case = CASES["roberta"]
    model = make(case.make(classifier_dropout=0.5)).train()
    one, other = (model(**case.batch).logits for _ in range(2))
    assert (one - other).abs().max() > 0.01
    assert model.prompt.head.training and not model.backbone.classifier.training
    model.eval()
    assert torch.equal(model(**case.batch).logits, model(**case.batch).logits)
    case = CASES["bert"]
    model = make(case.make(classifier_dropout=0.5)).train()
    assert torch.equal(model(**case.batch).logits, model(**case.batch).logits)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_head_is_trained_in_float32_on_a_backbone_in_bfloat16(name):
    case = CASES[name]
    backbone = case.make(dtype=torch.bfloat16)
    batch = {key: v.bfloat16() if v.is_floating_point() else v for key, v in case.batch.items()}
    model = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, head="trained"))
    features = copy.deepcopy(backbone)
    features.classifier = torch.nn.Identity()  # what stands in front of the head
    features = dp.prompted(features, dp.PromptConfig(length=LENGTH), vectors=model.prompt.vectors.detach())
    found, head = model(**batch).logits, model.prompt.head.classifier
    assert found.dtype == head.weight.dtype == torch.float32 and backbone.dtype == torch.bfloat16
    assert torch.equal(found, linear(features(**batch).logits.float(), head.weight, head.bias))
    cross_entropy(found, LABELS).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in model.prompt.parameters())
    model.bfloat16()
    assert model(**batch).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["vit", "deit-teacher", "bert"])
def test_the_model_compiles_to_one_graph(name):
    case = CASES[name]
    model = make(case.make(), depth=2 if case.images else 1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for each in (model, compiled):
        model.zero_grad()
        logits = each(**case.batch).logits
        cross_entropy(logits, LABELS).backward()
        found.append([logits, *(p.grad.clone() for p in model.prompt.parameters())])
    for one, other in zip(*found, strict=True):
        assert_close(one, other, **EXACT)


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_gradient_checkpointing_changes_nothing(name):
    case, found = CASES[name], []
    for checkpointing in (False, True):
        model = make(case.make()).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        cross_entropy(model(**case.batch).logits, LABELS).backward()
        found.append([parameter.grad for parameter in model.prompt.parameters()])
    for one, other in zip(*found, strict=True):
        assert_close(one, other, **EXACT)


# --- several prompts on one backbone ---


def test_each_prompt_has_its_own_head():
    case = CASES["vit"]
    backbone = case.make()
    before, batch = state_of(backbone), case.batch | {"labels": LABELS}
    model = make(backbone)
    for name, head in (("other", "trained"), ("frozen", "frozen")):
        config = dp.PromptConfig(length=2, head=head)
        vectors = torch.randn(2, tiny.WIDTH, generator=torch.Generator().manual_seed(8))
        model.add_prompt(name, config, vectors)
    model.double()
    answers = {}
    for name in ("other", "frozen"):
        model.use_prompt(name)
        answers[name] = model(**batch).logits
    # A head that is not trained yet is the backbone's.
    assert torch.equal(answers["other"], answers["frozen"])
    model.use_prompt("default")
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.5)
    model.train()(**batch).loss.backward()
    optimizer.step()
    assert not torch.equal(model.prompt.head.classifier.weight, backbone.classifier.weight)
    assert "prompt.head.classifier.weight" in model.state_dict()
    for name in ("other", "frozen"):
        model.use_prompt(name)
        assert torch.equal(model(**batch).logits, answers[name])
    assert not [name for name in model.state_dict() if "head" in name] and "head" not in model.prompt.attached
    assert_same(before, backbone)
    assert model.unload() is backbone and "forward" not in vars(backbone.classifier)
    # A backbone that is frozen already gives heads that are trained.
    again = make(backbone.requires_grad_(False))
    assert all(parameter.requires_grad for parameter in again.prompt.parameters())


# --- checkpoints ---


def trained(backbone, **options):
    """A model whose head has moved away from the backbone's."""
    model = make(backbone, **options)
    with torch.no_grad():
        for parameter in model.prompt.head.parameters():
            parameter.add_(1 + torch.rand_like(parameter))
    return model


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_holds_the_head_and_not_the_backbone(name, tmp_path):
    case = CASES[name]
    model = trained(case.make(), position=1)
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert {f"prompt.{key}" for key in load_file(file)} == set(model.trainable_parameters())
    again = dp.from_pretrained(tmp_path, case.make())
    assert torch.equal(model(**case.batch).logits, again(**case.batch).logits)
    assert all(parameter.requires_grad for parameter in again.prompt.head.parameters())
    other = make(case.make(), "frozen")
    other.load_prompt("loaded", tmp_path)
    other.use_prompt("loaded")
    assert torch.equal(model(**case.batch).logits, other(**case.batch).logits)
    again.load_state_dict(make(case.make(), position=1).state_dict())
    assert_close(again(**case.batch).logits, make(case.make(), "frozen", position=1)(**case.batch).logits)


class Reports(logging.Handler):
    """What transformers says about loading."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def reports():
    handler, logger = Reports(), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


@pytest.mark.parametrize("source", ["classifier", "base"])
@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_backbone_is_loaded_by_name_with_the_recorded_number_of_labels(name, source, tmp_path, reports):
    """Its folder has another head, or none; the prompt brings its own."""
    case = CASES[name]
    stored = case.make(dtype=torch.float32)
    (stored if source == "classifier" else stored.base_model).save_pretrained(tmp_path / "backbone")
    backbone = type(stored).from_pretrained(tmp_path / "backbone", num_labels=7, ignore_mismatched_sizes=True)
    assert any("LOAD REPORT" in line and "classifier.weight" in line for line in reports)
    model = trained(backbone)
    assert model.prompt.head.classifier.weight.shape == (7, tiny.WIDTH)
    model.save_pretrained(tmp_path / "prompt")
    name_backbone(tmp_path / "prompt", tmp_path / "backbone")
    del reports[:]
    again = dp.from_pretrained(tmp_path / "prompt")
    assert reports == [] and again.backbone.config.num_labels == 7
    batch = {key: v.float() if v.is_floating_point() else v for key, v in case.batch.items()}
    assert torch.equal(model(**batch).logits, again(**batch).logits)


def test_what_else_is_wrong_with_a_backbone_is_still_reported(tmp_path, reports):
    stored = tiny.vit(dtype=torch.float32)
    stored.save_pretrained(tmp_path / "backbone")
    backbone = ViTForImageClassification.from_pretrained(
        tmp_path / "backbone", num_labels=7, ignore_mismatched_sizes=True
    )
    trained(backbone).save_pretrained(tmp_path / "prompt")
    name_backbone(tmp_path / "prompt", tmp_path / "backbone")
    file = tmp_path / "backbone" / "model.safetensors"
    tensors = load_file(file)
    del tensors["vit.layernorm.weight"]
    save_file(tensors, file, {"format": "pt"})
    del reports[:]
    dp.from_pretrained(tmp_path / "prompt")
    assert len(reports) == 1 and "vit.layernorm.weight" in reports[0]


def test_a_backbone_with_another_number_of_labels_is_refused(tmp_path):
    trained(tiny.vit()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a backbone with labels=5, this one has labels=6"):
        dp.from_pretrained(tmp_path, tiny.vit(num_labels=6))
    make(tiny.vit(), "frozen").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="labels=5, this one has labels=6: .* head='frozen' needs the head that it"
    ):
        dp.from_pretrained(tmp_path, tiny.vit(num_labels=6))


def test_the_zoo_gives_a_fresh_head_for_other_labels(tmp_path, reports):
    torch.manual_seed(3)
    backbone, _ = dp.zoo.load("vit-mini", num_labels=10)
    whole, _ = dp.zoo.load("vit-mini")
    assert backbone.config.num_labels == 10 and backbone.classifier.out_features == 10
    assert reports == [] and not backbone.training and backbone.name_or_path == "vit-mini"
    assert_same(state_of(whole.base_model), backbone.base_model)
    torch.manual_seed(3)
    assert_same(state_of(backbone), dp.zoo.load("vit-mini", num_labels=10)[0])
    own = dp.zoo.load("vit-mini", num_labels=whole.config.num_labels)[0]
    assert_same(state_of(whole), own)
    assert own.config.id2label == whole.config.id2label
    model = dp.prompted(backbone, dp.PromptConfig(length=4, head="trained"))
    with torch.no_grad():
        model.prompt.head.classifier.bias.add_(1)
    model.save_pretrained(tmp_path)
    side = backbone.config.image_size
    pixels = tiny.images(2, side=side, dtype=torch.float32)
    again = dp.from_pretrained(tmp_path)
    assert torch.equal(again(pixel_values=pixels).logits, model(pixel_values=pixels).logits)
    assert again(pixel_values=pixels).logits.shape == (2, 10) and reports == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dp.zoo.load("t5-mini", num_labels=3), "num_labels=3: expected None, t5-mini has no classif"),
        (lambda: dp.zoo.load("clip-mini", num_labels=3), "expected None, clip-mini has no classification head"),
        (lambda: dp.zoo.load("vit-mini", num_labels=1), "num_labels=1: expected an integer of at least 2"),
        (lambda: dp.zoo.load("vit-mini", num_labels=True), "num_labels=True: expected an integer"),
        (lambda: make(tiny.vit(ViTModel)), "head='trained' needs a classification head, ViTModel has none"),
        (lambda: make(tiny.bert(BertModel)), "head='trained' needs a classification head, BertModel has none"),
        (lambda: make(tiny.vit(num_labels=0)), "ViTForImageClassification has none: expected head='frozen'"),
        (lambda: make(tiny.t5()), "head='trained' needs .*, T5ForConditionalGeneration has a language-model"),
        (lambda: make(tiny.bart()), "head='trained' needs .*, BartForConditionalGeneration has a language-model"),
        (lambda: make(tiny.gpt2()), "head='trained' needs .*, GPT2LMHeadModel has a language-model head"),
        (lambda: make(tiny.llama()), "head='trained' needs .*, LlamaForCausalLM has a language-model head"),
        (lambda: make(tiny.bert(BertForMaskedLM)), "BertForMaskedLM has a language-model head"),
        (lambda: make(tiny.bert(BertForPreTraining)), "BertForPreTraining has a language-model head"),
        (lambda: dp.PromptConfig(head="linear"), "head='linear' is unknown, expected 'frozen', 'trained'"),
        (lambda: dp.PromptConfig(head=True), "head=True is unknown, expected 'frozen', 'trained'"),
    ],
)  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_refusal_leaves_the_backbone_alone():
    backbone = tiny.vit(ViTModel)
    with pytest.raises(ValueError, match="needs a classification head, ViTModel has none"):
        make(backbone)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_peft_has_no_trained_heads(tmp_path):
    with pytest.raises(ValueError, match="head='trained' cannot be exported to PEFT, expected 'frozen'"):
        dp.export_peft(make(CASES["gpt2"].make()), tmp_path)
    assert not list(tmp_path.iterdir())


# --- in words, in groups ---


def test_the_head_is_counted_and_named(capsys, tmp_path):
    model = make(tiny.vit(), position=1)
    model.print_trainable_parameters()
    head, vectors = 5 * tiny.WIDTH + 5, LENGTH * tiny.WIDTH
    frozen = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert card.count(model.prompt, model.backbone) == (head + vectors, 0, frozen, head)
    text = capsys.readouterr().out
    assert text.startswith(
        f"trainable params: {head + vectors} || all params: {head + vectors + frozen:,} ||"
    )
    assert text.endswith(f" || head: trained, {head}\n")
    summary = str(model.summary()).splitlines()
    (row,) = [line for line in summary if line.startswith("head ")]
    assert row.split() == ["head", "trained", str(head), *"a copy of the backbone's classifier".split()]
    assert f"trained     {head + vectors} parameters" in summary
    model.save_pretrained(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert f"checkpoint  {size:,} bytes" in summary
    assert f"- Head: trained, {head} parameters.\n" in (tmp_path / "README.md").read_text()
    frozen = make(tiny.vit(), "frozen")
    frozen.save_pretrained(tmp_path)
    frozen.print_trainable_parameters()
    words = [str(frozen.summary()), (tmp_path / "README.md").read_text(), capsys.readouterr().out]
    assert not any("head" in text.lower() for text in words)


def test_parameter_groups_have_one_for_the_head():
    model = make(tiny.vit(), position="task", entry="before-positions")
    for rate, expected in ((0.5, 0.5), (None, 0.01)):
        groups = dp.parameter_groups(model, 0.3, 0.01, rate)
        assert [group["lr"] for group in groups] == [0.3, 0.01, expected]
        assert [len(group["params"]) for group in groups] == [1, 1, 2]
        assert groups[2]["params"][0] is model.prompt.head.classifier.weight
    groups = dp.parameter_groups(make(tiny.vit()), 0.3, 0.01)
    assert [group["lr"] for group in groups] == [0.3, 0.01] and len(groups[1]["params"]) == 2


def test_a_head_does_not_get_the_rate_zero_of_decisions_that_stay():
    """A control whose decisions are not learned: its head would not have learned either, and nothing would have said so."""
    model = make(tiny.vit())
    with pytest.raises(ValueError, match="controller_lr=0 .*trained head.*head_lr"):
        dp.parameter_groups(model, 0.3, 0.0)
    assert [group["lr"] for group in dp.parameter_groups(model, 0.3, 0.0, 0.01)] == [0.3, 0.01]
    assert dp.parameter_groups(make(tiny.vit(), head="frozen"), 0.3, 0.0)[0]["lr"] == 0.3


# --- the Trainer ---


class Pictures(torch.utils.data.Dataset):
    """Images whose brightness in one place tells the class."""

    def __init__(self, count=32, seed=3):
        self.pixels = tiny.images(count, seed, dtype=torch.float32)
        self.labels = (self.pixels[:, 0, 0, 0] > 0).long() * 3

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def trainer_of(model, folder, **options):
    settings = dict(
        max_steps=8, per_device_train_batch_size=8, learning_rate=0.05, report_to="none", disable_tqdm=True,
        logging_steps=1, save_strategy="steps", save_steps=4, dataloader_pin_memory=False,
    )  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **settings | options)
    return Trainer(model, arguments, train_dataset=Pictures(), eval_dataset=Pictures(16, 4))


def fresh():
    set_seed(0)
    return make(tiny.vit(dtype=torch.float32))


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_trainer_stops_and_goes_on_exactly(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 4

    whole = trainer_of(fresh(), tmp_path / "whole")
    before = state_of(whole.model.backbone)
    whole.train()
    assert_same(before, whole.model.backbone)
    parts = trainer_of(fresh(), tmp_path / "parts")
    parts.add_callback(Stop())
    parts.train()
    folder = tmp_path / "parts" / "checkpoint-4"
    assert set(load_file(folder / "model.safetensors")) == {
        *whole.model.trainable_parameters(),
        "_extra_state",
    }
    resumed = trainer_of(fresh(), tmp_path / "parts")
    resumed.train(resume_from_checkpoint=str(folder))
    assert losses(resumed) == losses(whole) and losses(whole)[-1] < losses(whole)[0]
    for name, parameter in whole.model.trainable_parameters().items():
        assert torch.equal(parameter, resumed.model.trainable_parameters()[name])
        assert not torch.equal(parameter, fresh().trainable_parameters()[name])


def test_the_trainer_loads_the_best_head(tmp_path):
    model = fresh()
    trainer = trainer_of(
        model, tmp_path, learning_rate=3.0, lr_scheduler_type="constant_with_warmup", warmup_steps=8, save_steps=1,
        max_steps=6, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    scores = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = min(scores, key=scores.get)
    stored = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert best < 6 and set(stored) == {*model.trainable_parameters(), "_extra_state"}
    assert all(torch.equal(stored[name], p) for name, p in model.trainable_parameters().items())
