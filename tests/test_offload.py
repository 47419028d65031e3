"""Backbones whose weights wait elsewhere (accelerate's CPU and disk offload) answer as those whose weights are there.

There is no GPU in a test: everything runs on the CPU, but weights show as tensors on the meta device until a module is
called, as with a GPU.
"""

import warnings
from functools import partial

import accelerate
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import BertForSequenceClassification, GPT2ForSequenceClassification

import dplearn as dp
from dplearn.backbones import heads
from dplearn.fingerprint import fingerprint
from dplearn.offload import device_of, resident_copy, values_of

EXACT = dict(rtol=0, atol=0)
MAKE = {
    "llama": partial(tiny.llama, tie_word_embeddings=False),
    "gpt2": tiny.gpt2,
    "t5": tiny.t5,
    "bart": tiny.bart,
    "bert": partial(tiny.bert, BertForSequenceClassification, num_labels=3),
    "vit": tiny.vit,
}


def on_cpu(model, folder):
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model, folder):
    accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))
    return model


def in_part(model, folder):
    """The second layers are on the disk, the rest stays, as a ``device_map`` spreads a large model."""
    layers = [f"{path}.1" for path, child in model.named_modules() if isinstance(child, torch.nn.ModuleList)]
    places = {"": "cpu"} | dict.fromkeys(
        [path for path in layers if ".layer.1" not in path or "encoder.layer" in path], "disk"
    )
    return accelerate.dispatch_model(
        model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True
    )


WAYS = {"cpu": on_cpu, "disk": on_disk, "in part": in_part}


def batch_of(name):
    ids, mask = tiny.batch([6, 3, 8], eos=name in ("t5", "bart"))
    if name == "vit":
        return dict(pixel_values=tiny.images())
    labels = dict(labels=torch.tensor([[5, 1], [6, 1], [7, 1]])) if name in ("t5", "bart") else {}
    return dict(input_ids=ids, attention_mask=mask, **labels)


def config_of(name, **options):
    usual = dict(length=3) if name == "vit" else dict(length=3, position="instance")
    if name in ("llama", "bert", "t5"):
        usual["summary"] = "encoder"
    return dp.PromptConfig(**usual | options)


def pair(name, way, folder, **options):
    """The same prompt on a model whose weights are there and on one whose weights wait elsewhere."""
    config = config_of(name, **options)
    plain = dp.prompted(MAKE[name](), config, generator=torch.Generator().manual_seed(3))
    away = WAYS[way](MAKE[name](), folder)
    assert any(parameter.is_meta for parameter in away.parameters())
    other = dp.prompted(away, config, generator=torch.Generator().manual_seed(3))
    assert torch.equal(plain.prompt.vectors, other.prompt.vectors)
    plain.prompt.double()
    other.prompt.double()
    with torch.no_grad():
        for parameter, same in zip(plain.prompt.parameters(), other.prompt.parameters(), strict=True):
            same.copy_(parameter.normal_())
    return plain, other


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MAKE)
def test_answers_and_gradients_are_those_of_the_model_with_its_weights(name, way, tmp_path):
    plain, away = pair(name, way, tmp_path)
    assert away.prompt.vectors.device == away.device == torch.device("cpu")
    outputs = [model(**batch_of(name)).logits for model in (plain, away)]
    assert_close(*outputs, **EXACT)
    for output in outputs:
        output.square().sum().backward()
    for expected, found in zip(plain.prompt.parameters(), away.prompt.parameters(), strict=True):
        assert (expected.grad is None) == (found.grad is None)
        if expected.grad is not None:
            assert_close(found.grad, expected.grad, **EXACT)
    assert plain.prompt.vectors.grad.abs().max() > 1e-6
    assert any(parameter.is_meta for parameter in away.backbone.parameters())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_generated_tokens_are_those_of_the_model_with_its_weights(name, way, tmp_path):
    plain, away = pair(name, way, tmp_path)
    ids, mask = (batch_of(name)[key] for key in ("input_ids", "attention_mask"))
    options = dict(max_new_tokens=5, do_sample=False)
    expected = plain.generate(ids, mask, **options)
    assert (
        torch.equal(away.generate(ids, mask, **options), expected)
        and len(set(expected.flatten().tolist())) > 1
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_checkpoints_go_both_ways(name, way, tmp_path):
    """The backbone is recognised by its values on either side, and another one is noticed."""
    plain, away = pair(name, way, tmp_path / "weights")
    assert fingerprint(away.backbone) and set(fingerprint(away.backbone)) == set(fingerprint(plain.backbone))
    for model, folder in ((plain, "plain"), (away, "away")):
        model.save_pretrained(tmp_path / folder)
    batch, expected = batch_of(name), plain(**batch_of(name)).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = dp.from_pretrained(tmp_path / "away", MAKE[name]())
        there = dp.from_pretrained(tmp_path / "plain", WAYS[way](MAKE[name](), tmp_path / "more"))
    assert_close(again(**batch).logits, expected, **EXACT)
    assert_close(there(**batch).logits, expected, **EXACT)
    with pytest.warns(UserWarning, match="on other weights than those"):
        dp.from_pretrained(tmp_path / "plain", WAYS[way](MAKE[name](seed=1), tmp_path / "other"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_a_trained_head_is_a_copy_that_stays(name, way, tmp_path):
    """Its weights are the prompt's own: training it changes nothing in the store of weights."""
    kinds = MAKE | {"gpt2": partial(tiny.gpt2, GPT2ForSequenceClassification, num_labels=3)}
    config = dp.PromptConfig(length=2, head="trained")
    models = []
    for backbone in (kinds[name](), WAYS[way](kinds[name](), tmp_path / "weights")):
        models.append(dp.prompted(backbone, config, generator=torch.Generator().manual_seed(3)))
    plain, away = models
    batch, labels = batch_of(name), torch.tensor([1, 2, 0])
    (head,) = heads.head_of(away.backbone)
    before = values_of(away.backbone, f"{head}.weight").clone()
    assert not any(parameter.is_meta for parameter in away.prompt.parameters())
    for model in models:
        optimizer = torch.optim.SGD(model.prompt.parameters(), lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(**batch).logits, labels).backward()
            optimizer.step()
    for (key, expected), found in zip(plain.prompt.named_parameters(), away.prompt.parameters(), strict=True):
        assert_close(found, expected, **EXACT, msg=lambda text, key=key: f"{key}: {text}")
    assert torch.equal(values_of(away.backbone, f"{head}.weight"), before)
    assert (away.prompt.head[head].weight - before).abs().max() > 1e-4
    away.save_pretrained(tmp_path / "prompt")
    (file,) = (tmp_path / "prompt").glob("*.safetensors")
    assert torch.equal(load_file(file)[f"head.{head}.weight"], plain.prompt.head[head].weight)


def test_a_device_is_that_of_the_hook():
    model = tiny.gpt2()
    assert device_of(model) == torch.device("cpu")
    model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.device.type == "meta" and device_of(model) == torch.device("cpu")
    for module in model.modules():  # as on a machine with a GPU
        for hook in [h for h in [getattr(module, "_hf_hook", None)] if h is not None]:
            for each in getattr(hook, "hooks", [hook]):
                if each.execution_device is not None:
                    each.execution_device = "cuda:1"
    assert device_of(model) == torch.device("cuda:1")
    assert device_of(torch.nn.Module.to(tiny.gpt2(), "meta")) == torch.device("cpu")


def test_a_head_without_values_is_refused():
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 3)
    with pytest.raises(
        ValueError, match="weight of a Linear is on the meta device without values, expected a loaded"
    ):
        resident_copy(layer)
    assert values_of(torch.nn.Sequential(layer), "0.bias") is None


@pytest.mark.parametrize("way", WAYS)
def test_an_image_text_model_is_refused(way, tmp_path):
    with pytest.raises(
        TypeError, match="CLIPModel has weights that wait elsewhere .* expected all of them on a device"
    ):
        dp.prompted(WAYS[way](tiny.clip(), tmp_path), dp.PromptConfig(length=2))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (tiny.gpt2, dict(position="task", estimator="position-space"), "estimator='position-space' cannot be used: GPT2LM"),
        (tiny.vit, dict(position="task", entry="before-positions"), "entry='before-positions' cannot be used: ViTFor"),
        (tiny.vit, dict(position="task", entry="position-coded"), "entry='position-coded' cannot be used: ViTFor"),
    ],
)  # fmt: skip
def test_tables_of_positions_that_wait_elsewhere_are_refused(make, options, message, tmp_path):
    with pytest.raises(ValueError, match=f"{message}.* has weights that wait elsewhere"):
        dp.prompted(on_cpu(make(), tmp_path), dp.PromptConfig(length=2, **options))


@pytest.mark.parametrize("estimator", ["exact", "score-function"])
def test_other_estimators_take_them(estimator, tmp_path):
    config, found = dp.PromptConfig(length=2, position="task", estimator=estimator), []
    for backbone in (tiny.t5(), on_cpu(tiny.t5(), tmp_path)):
        torch.manual_seed(3)
        model = dp.prompted(backbone, config).train()
        model.prompt.double()
        loss = model(**batch_of("t5")).loss
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.prompt.parameters())])
    for expected, other in zip(*found, strict=True):
        assert_close(other, expected, **EXACT)
    assert all(gradient.abs().max() > 0 for gradient in found[0])
