"""A prompted model looks to libraries as its backbone does: class, signature, names; and what it cannot do it says.

Signatures and names are compared with the backbone's class, behaviour with the plain model or with a run by hand.
"""

import inspect
import pickle
import warnings
from functools import partial

import pytest
import spliced
import tiny
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    GenerationConfig,
    GPT2ForSequenceClassification,
    pipeline,
)

import dplearn as dp
from dplearn import conventions

OURS = ["summary", "task_ids", "keep_last", "context_length", "decisions"]
MAKERS = {
    "t5": tiny.t5,
    "bart": tiny.bart,
    "gpt2": tiny.gpt2,
    "llama": tiny.llama,
    "gpt2-classifier": lambda: tiny.gpt2(GPT2ForSequenceClassification),
    "bert": tiny.bert,
    "bert-classifier": lambda: tiny.bert(BertForSequenceClassification),
    "bert-qa": lambda: tiny.bert(BertForQuestionAnswering),
    "vit": tiny.vit,
}
ROW = [5, 9, 6, 20, 33]
IDS = torch.tensor([ROW])


def model_of(kind, position="prefix", **options):
    torch.manual_seed(0)
    return dp.prompted(MAKERS[kind](), dp.PromptConfig(length=3, position=position, **options)).eval()


# ---- class, signature, names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_the_class_is_made_for_the_backbones_class(kind):
    model, other = model_of(kind), model_of(kind)
    name = type(model.backbone).__name__
    assert type(model).__name__ == f"Prompted{name}" and model._get_name() == name
    assert isinstance(model, dp.PromptedModel) and type(model) is type(other)
    assert type(model) is not type(model_of("t5" if kind != "t5" else "gpt2"))


@pytest.mark.parametrize("kind", MAKERS)
def test_the_signature_is_the_backbones_and_ours(kind):
    """Ids and mask first, then the backbone's own names in its order, then ours; all may be left out."""
    model = model_of(kind)
    theirs = inspect.signature(type(model.backbone).forward).parameters
    names = [name for name, p in theirs.items() if p.kind is not p.VAR_KEYWORD and name != "self"]
    first = [name for name in ("input_ids", "attention_mask") if name in names]
    rest = [name for name in names if name not in first]
    variable = [name for name, p in theirs.items() if p.kind is p.VAR_KEYWORD]
    for found in (inspect.signature(type(model).forward), inspect.signature(model.forward)):
        listed = [name for name in found.parameters if name != "self"]
        assert listed == [*first, *rest, *OURS, *variable]
        for name in set(listed) - set(variable):
            assert found.parameters[name].default is None


ASKED = [
    "prepare_decoder_input_ids_from_labels",
    "generation_config",
    "can_generate",
    "loss_type",
    "get_input_embeddings",
]


@pytest.mark.parametrize("kind", MAKERS)
def test_it_has_what_the_backbone_has_and_only_that(kind):
    model = model_of(kind)
    for name in ASKED:
        assert hasattr(model, name) == hasattr(model.backbone, name), name
    if kind in ("t5", "bart"):
        labels = torch.tensor([[4, 5, -100]])
        found, wanted = (
            m.prepare_decoder_input_ids_from_labels(labels=labels) for m in (model, model.backbone)
        )
        assert torch.equal(found, wanted)
    else:
        assert not hasattr(model, "prepare_decoder_input_ids_from_labels")
    assert model.can_generate() == model.backbone.can_generate()
    assert model.loss_type == model.backbone.loss_type
    assert model.get_input_embeddings() is model.backbone.get_input_embeddings()
    with pytest.raises(
        AttributeError, match=f"'{type(model).__name__}' object has no attribute 'no_such_name'"
    ):
        model.no_such_name  # noqa: B018


def test_the_generation_config_is_the_backbones_to_get_and_to_set():
    model = model_of("gpt2")
    assert model.generation_config is model.backbone.generation_config
    model.generation_config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=tiny.PAD)
    assert model.backbone.generation_config.max_new_tokens == 2
    assert model.generate(IDS).shape == (1, 2)


def test_a_model_that_is_pickled_keeps_its_class_and_answers():
    model = model_of("llama", "postfix")
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=0)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "bert", "bert-qa", "gpt2", "llama", "vit"])
def test_a_name_that_the_backbone_does_not_take_is_a_type_error(kind):
    """Where the backbone's own forward takes any name, it says what it makes of this one."""
    model = model_of(kind)
    variable = any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(type(model.backbone).forward).parameters.values()
    )
    given = {"pixel_values": tiny.images(1)} if kind == "vit" else {"input_ids": IDS}
    if variable:
        given["pixel_values" if kind != "vit" else "input_ids"] = IDS
    else:
        given["no_such_name"] = 1
    with pytest.raises((TypeError, ValueError), match="no_such_name|pixel_values|input_ids"):
        model(**given)


def test_a_slip_in_a_name_is_an_error_where_the_backbone_takes_any_name():
    """It would be passed on, and nothing would come of it: a prompt in another place, a loss that is None."""
    decoder, classifier = model_of("gpt2", "instance"), model_of("bert-classifier")
    for model in (decoder, classifier):
        assert model.known_names is None
    for call in (decoder, decoder.decide, decoder.insert_prompt, decoder.summarize):
        with pytest.raises(
            TypeError, match="context_lenght is not an argument of .*: expected context_length"
        ):
            call(IDS, context_lenght=2)
    with pytest.raises(TypeError, match="lables is not an argument of BertForSeq.*: expected labels"):
        classifier(IDS, lables=torch.tensor([1]))
    # What the Trainer and callers of transformers pass by names of their own goes through.
    found = decoder(IDS, keep_last=1, num_items_in_batch=3, output_hidden_states=True)
    assert_close(found.logits, decoder(IDS, keep_last=1).logits, rtol=0, atol=0)
    assert found.hidden_states is not None


@pytest.mark.parametrize("kind", ["t5", "gpt2", "bert", "vit"])
def test_a_batch_as_one_argument_is_told_to_be_unpacked(kind):
    model = model_of(kind)
    batch = (
        {"pixel_values": tiny.images(1)}
        if kind == "vit"
        else {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    )
    for name in ("forward", "decide", "insert_prompt", "summarize"):
        with pytest.raises(TypeError, match=r"\*\*batch"):
            (model if name == "forward" else getattr(model, name))(batch)


def test_a_dict_as_config_is_told_to_be_unpacked():
    with pytest.raises(TypeError, match=r"PromptConfig\(\*\*"):
        dp.prompted(tiny.t5(), {"length": 3})
    with pytest.raises(TypeError, match=r"PromptConfig\(\*\*"):
        model_of("t5").add_prompt("other", {"length": 3})


def test_a_refusal_gives_one_reason_of_the_nearest_kind():
    from transformers import CLIPTextModel, WhisperConfig, WhisperForConditionalGeneration

    with pytest.raises(TypeError) as text:
        dp.prompted(CLIPTextModel(tiny.clip().config.text_config))
    sizes = dict(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2
    )
    whisper = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, **sizes
        )
    )
    with pytest.raises(TypeError) as sound:
        dp.prompted(whisper)
    for error in (text, sound):
        message = str(error.value)
        assert "cannot take a prompt" in message and len(message) < 300 and message.count(";") <= 1


def test_a_replica_of_data_parallel_is_refused_with_advice():
    """A replica points at the original backbone, so its answers would not be its own."""
    model = model_of("gpt2")
    replica = model._replicate_for_data_parallel()
    for call in (replica, replica.generate):
        with pytest.raises(RuntimeError, match="torchrun"):
            call(IDS)
    assert model(IDS).logits.isfinite().all()  # the model itself goes on


def test_a_text_generation_pipeline_says_what_to_do_instead():
    """It cuts the input off the output, which has new tokens alone."""
    model, tokenizer = model_of("gpt2"), spliced.tokenizer()
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    with pytest.raises(RuntimeError, match=r"a pipeline cuts the input off .* call model\.generate\("):
        ask("w5 w9 w6", max_new_tokens=3, do_sample=False)


# ---- saving and loading ----------------------------------------------------------------------------------------------


def test_save_pretrained_takes_what_accelerate_and_the_trainer_give(tmp_path):
    model = model_of("gpt2", "instance")
    whole = dict(
        safe_serialization=True, max_shard_size="5GB", push_to_hub=False, token=None, save_peft_format=True
    )
    model.save_pretrained(tmp_path / "no", is_main_process=False, **whole)
    assert not (tmp_path / "no").exists()
    # What an accelerator gathers: parameters and statistics.
    state = {name: value + 1 for name, value in model.state_dict().items() if name != "_extra_state"}
    model.save_pretrained(tmp_path / "yes", is_main_process=True, state_dict=state, **whole)
    again = dp.from_pretrained(tmp_path / "yes", tiny.gpt2())
    found = again.state_dict()
    for name, value in state.items():
        assert torch.equal(found[name], value), name
    (tensors,) = (tmp_path / "yes").glob("*.safetensors")
    assert {f"prompt.{name}" for name in load_file(tensors)} == set(state)


class Parent(torch.nn.Module):
    """A user's module that has a ``backbone`` of its own beside a prompted model."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Linear(3, 3)
        self.model = model_of("gpt2")


def test_missing_keys_of_a_parents_own_backbone_are_missing():
    parent = Parent()
    state = parent.state_dict()
    settings = "model._extra_state"  # of the prompt, which a state may lack
    assert set(state) == {"backbone.weight", "backbone.bias", "model.prompt.vectors", settings}
    parent.load_state_dict(state, strict=True)
    del state[settings]
    parent.load_state_dict(state, strict=True)
    for lost in state:
        rest = {name: value for name, value in state.items() if name != lost}
        with pytest.raises(RuntimeError, match=lost.replace(".", r"\.")):
            parent.load_state_dict(rest, strict=True)
        assert parent.load_state_dict(rest, strict=False).missing_keys == [lost]
    with pytest.raises(RuntimeError, match="more"):
        parent.load_state_dict(state | {"model.more": torch.zeros(1)}, strict=True)


# ---- decisions in evaluation mode ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "bert-classifier"])
def test_a_loop_that_forgets_train_is_told_once(kind):
    model = model_of(kind, "instance")
    labels = torch.tensor([[4, 8]]) if kind == "t5" else torch.tensor([1])
    with pytest.warns(UserWarning, match=r"train\(\)"):
        model(IDS, labels=labels).loss.backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(IDS, labels=labels).loss.backward()  # said once for each model
        fixed = model_of(kind)
        fixed(IDS, labels=labels).loss.backward()  # nothing is decided
        other = model_of(kind, "instance").train()
        other(IDS, labels=labels).loss.backward()
        with torch.no_grad():
            model_of(kind, "instance")(IDS, labels=labels)  # evaluation


# ---- modes -----------------------------------------------------------------------------------------------------------


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("kind", ["t5", "gpt2", "bert", "vit"])
@pytest.mark.parametrize("options", [{}, {"backbone_dropout": True}])
def test_generate_decide_and_summarize_change_no_mode(kind, options):
    """Not even for a moment: a hook inside of the prompt sees the mode that the user set."""
    decided = {"vector": "instance"} if kind == "vit" else {"position": "instance", "summary": "encoder"}
    model = model_of(kind, **decided, **options)
    batch = {"pixel_values": tiny.images(1)} if kind == "vit" else {"input_ids": IDS}
    calls = [model.decide, model.summarize, model.insert_prompt]
    calls += [lambda **b: model.generate(**b, max_new_tokens=2, do_sample=False, pad_token_id=0)] * (
        kind in ("t5", "gpt2")
    )
    for training in (True, False):
        model.train(training)
        before, seen = modes(model), []
        note = partial(lambda seen, module, _: seen.append(module.training), seen)
        handles = [module.register_forward_pre_hook(note) for module in model.prompt.modules()]
        for call in calls:
            with torch.no_grad():
                call(**batch)
            assert modes(model) == before
        assert set(seen) == {training}
        for handle in handles:
            handle.remove()


def test_a_short_list_of_warnings_a_user_meets_is_no_false_alarm(said):
    """transformers warns of padding that it cannot see; a prompted model always passes the mask."""
    model = model_of("gpt2-classifier")
    model.backbone.config.pad_token_id = tiny.PAD
    ids, mask = spliced.padded([ROW, ROW[:2]])
    found = model(ids, mask).logits
    assert "padding" not in str(said)
    for number, length in enumerate(mask.sum(1)):
        assert_close(found[number], model(ids[number : number + 1, :length]).logits[0], rtol=0, atol=1e-10)
    model.backbone(inputs_embeds=model.backbone.get_input_embeddings()(ids))
    assert "will not detect padding" in str(said)  # the control: there it is said, and would have been heard


def test_the_class_of_an_output_is_marked_as_the_compiler_marks_what_is_constant():
    """The mark is set by hand, since the compiler's own function imports the compiler."""
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(marked) and vars(marked).items() <= vars(conventions._extended_type).items()
