"""Adapters of the library PEFT in the backbone of a prompted model: frozen, switched, and trained beside the prompt."""

import copy
import warnings

import pytest
import tiny
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptEncoderConfig,
    get_peft_model,
    inject_adapter_in_model,
)

import dplearn as dp

BACKBONES = {"t5": (tiny.t5, ["q", "v"], {}), "llama": (tiny.llama, ["q_proj", "v_proj"], {"keep_last": 1})}
LENGTH = 3
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
LABELS = {"t5": torch.tensor([[4, 1], [5, 1]]), "llama": IDS.clone()}


def with_lora(backbone, targets, *names):
    """A backbone with LoRA adapters, "default" and those of ``names``, which differ."""
    adapted = get_peft_model(backbone, LoraConfig(target_modules=targets, r=2))
    for name in names:
        adapted.add_adapter(name, LoraConfig(target_modules=targets, r=2))
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero at the start: adapters would change nothing
            torch.nn.init.normal_(parameter.data, std=0.5)
    return adapted


def by_hand(kind, backbone, vectors, k):
    """Loss of the plain model on embeddings that were concatenated by hand, k vectors in front of the input."""
    embeds, labels = backbone.get_input_embeddings()(IDS), LABELS[kind]
    last = embeds.shape[1] - BACKBONES[kind][2].get("keep_last", 0)
    before, after = (part.expand(2, -1, -1) for part in (vectors[:k], vectors[k:]))
    rows = torch.cat([before, embeds[:, :last], after, embeds[:, last:]], 1)
    if kind == "t5":
        return backbone(inputs_embeds=rows, labels=labels).loss
    # The first token's prediction, from a vector in front of it, is no target of transformers without a prompt.
    nothing = [labels.new_full((2, len(part[0])), -100) for part in (before, after)]
    labels = torch.cat([nothing[0], torch.full_like(labels[:, :1], -100), labels[:, 1:last]], 1)
    labels = torch.cat([labels, nothing[1], LABELS[kind][:, last:]], 1)
    return backbone(inputs_embeds=rows, labels=labels).loss


@pytest.mark.parametrize("first", [True, False], ids=["before the prompt", "after the prompt"])
@pytest.mark.parametrize("k", [0, 1, LENGTH])
@pytest.mark.parametrize("kind", BACKBONES)
def test_lora_and_prompt_have_the_gradients_of_concatenation_by_hand(kind, k, first):
    make, targets, boundary = BACKBONES[kind]
    backbone, config = make(), dp.PromptConfig(length=LENGTH, position=k)
    if first:
        adapted = with_lora(backbone, targets)
        model = dp.prompted(adapted.get_base_model(), config)
        assert not any(p.requires_grad for p in adapted.parameters())
        adapted.set_adapter("default")  # trained again: a prompt freezes all that it finds
    else:
        model = dp.prompted(backbone, config)
        adapted = with_lora(model.backbone, targets)
    model.double()
    if kind == "llama":
        model.cache_inputs([{"input_ids": ids, **boundary} for ids in IDS], verbose=False) if k == 0 else None
    plain = copy.deepcopy(adapted.get_base_model())
    vectors = model.prompt.vectors.detach().clone().requires_grad_(True)
    expected, loss = (
        by_hand(kind, plain, vectors, k),
        model.train()(IDS, labels=LABELS[kind], **boundary).loss,
    )
    expected.backward(), loss.backward()
    assert torch.allclose(loss, expected, atol=1e-12)
    assert torch.allclose(model.prompt.vectors.grad, vectors.grad, atol=1e-12)
    theirs = {name: p.grad for name, p in plain.named_parameters() if "lora_" in name}
    ours = {name: p.grad for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys() and any(grad.abs().max() > 0 for grad in theirs.values())
    for name, grad in theirs.items():
        assert torch.allclose(ours[name], grad, atol=1e-12), name


def test_lora_in_front_of_an_images_prompt_has_a_gradient():
    model = dp.prompted(
        tiny.vit(), dp.PromptConfig(length=LENGTH, position="prefix", from_layer=2, head="trained")
    )
    adapted = with_lora(model.backbone, ["q_proj"])
    model.train()(pixel_values=tiny.images(2), labels=torch.tensor([0, 1])).loss.backward()
    grads = {name: p.grad for name, p in adapted.named_parameters() if "lora_" in name}
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads.values()), grads.keys()


@pytest.mark.parametrize("position", ["prefix", "postfix", 1])
@pytest.mark.parametrize("kind", BACKBONES)
def test_switching_adapters_is_seen_where_something_is_kept(kind, position):
    make, targets, boundary = BACKBONES[kind]
    adapted = with_lora(make(), targets, "other")
    model = (
        dp.prompted(adapted.get_base_model(), dp.PromptConfig(length=LENGTH, position=position))
        .double()
        .eval()
    )
    if kind == "llama" and position == "postfix":
        model.cache_inputs([{"input_ids": ids, **boundary} for ids in IDS], verbose=False)

    def answers():
        with torch.no_grad():
            usual = model(IDS, labels=LABELS[kind], **boundary).loss
            model.shortcuts = ()
            full = model(IDS, labels=LABELS[kind], **boundary).loss
            model.shortcuts = ("inputs", "prefix", "front")
        assert torch.allclose(usual, full, atol=1e-12)
        return float(full)

    found = [answers()]
    with adapted.disable_adapter():
        found.append(answers())
    adapted.set_adapter("other")
    found.append(answers())
    assert len(set(found)) == 3
    adapted.set_adapter("default")
    assert answers() == pytest.approx(found[0], abs=1e-12)


@pytest.mark.parametrize("towers", ["text", "vision"])
def test_switching_adapters_is_seen_by_the_features_of_classes(towers):
    backbone = tiny.clip()
    adapted = with_lora(backbone, ["q_proj"])
    config = dp.PromptConfig(length=2, towers=towers, position="prefix")
    model = dp.prompted(adapted.get_base_model(), config).eval()
    pixels = tiny.images(2)
    model.set_classes(*tiny.texts([[5, 6], [7, 8]]))
    with torch.no_grad():
        on = model(pixel_values=pixels).logits
        with adapted.disable_adapter():
            off = model(pixel_values=pixels).logits
            model.shortcuts = ()
            expected = model(pixel_values=pixels).logits
    assert torch.allclose(off, expected) and not torch.allclose(on, off)


WAYS = {
    "LoRA": (get_peft_model, LoraConfig(target_modules=["q"])),
    "LoRA of a task": (get_peft_model, LoraConfig(target_modules=["q"], task_type="SEQ_2_SEQ_LM")),
    "IA3": (get_peft_model, IA3Config(target_modules=["k"], feedforward_modules=[])),
    "a prompt": (get_peft_model, PromptEncoderConfig(num_virtual_tokens=2, task_type="SEQ_2_SEQ_LM")),
    "injection": (
        lambda model, config: inject_adapter_in_model(config, model),
        LoraConfig(target_modules=["q"]),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_peft_around_a_prompted_model_is_refused_before_anything_is_changed(way):
    put, config = WAYS[way]
    model = dp.prompted(tiny.t5(), dp.PromptConfig(length=LENGTH))
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(
        TypeError, match=r"is a PromptedT5For.*: expected its backbone. get_peft_model\(model.backb"
    ):
        put(model, config)
    assert [name for name, _ in model.named_parameters()] == names and model.prompt.vectors.requires_grad
    assert not hasattr(model, "peft_config")  # to others it is an attribute that is not there


def test_both_parts_are_saved_and_loaded_and_counted(tmp_path, capsys):
    model = dp.prompted(tiny.t5(), dp.PromptConfig(length=LENGTH, position=1))
    adapted = with_lora(model.backbone, ["q", "v"])
    model.print_trainable_parameters()
    lora = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert f"|| backbone: trained, {lora:,}" in capsys.readouterr().out
    model.save_pretrained(tmp_path / "prompt")
    adapted.save_pretrained(tmp_path / "lora")
    base = PeftModel.from_pretrained(tiny.t5(), tmp_path / "lora").get_base_model()
    again = dp.from_pretrained(tmp_path / "prompt", base)
    with torch.no_grad():
        expected = model.eval()(IDS, labels=LABELS["t5"]).logits
        assert torch.equal(again.eval()(IDS, labels=LABELS["t5"]).logits, expected)


def test_a_prompt_without_its_adapters_is_told_of(tmp_path):
    """And one that knew none, on a backbone that has some; switched off, they are still there."""
    both = dp.prompted(tiny.t5(), dp.PromptConfig(length=LENGTH))
    both.save_pretrained(tmp_path / "alone")
    with_lora(both.backbone, ["q", "v"])
    both.save_pretrained(tmp_path / "beside")
    layers = sum(name.endswith(("q", "v")) for name, _ in tiny.t5().named_modules())
    with pytest.warns(
        UserWarning, match=f"adapters of PEFT in {layers} layers, this one has them in 0: expected"
    ):
        dp.from_pretrained(tmp_path / "beside", tiny.t5())
    adapted = with_lora(tiny.t5(), ["q", "v"])
    with pytest.warns(
        UserWarning, match=f"adapters of PEFT in 0 layers, this one has them in {layers}: expected"
    ):
        dp.from_pretrained(tmp_path / "alone", adapted.get_base_model())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dp.from_pretrained(tmp_path / "beside", adapted.get_base_model())
        dp.from_pretrained(tmp_path / "alone", tiny.t5())
