"""A linear probe: what is trained, and features that are computed once instead of the whole model in every step."""

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments, default_data_collator

import dplearn as dp


def rows_of(count=4):
    """Images with labels, as a task encodes them."""
    return [{"pixel_values": image, "labels": n % 2} for n, image in enumerate(tiny.images(count))]


@pytest.mark.parametrize("make", [tiny.vit, tiny.deit, tiny.dinov2])
def test_a_probe_on_kept_features_is_the_probe_on_images(make):
    """Logits, loss and the gradient of the head, and the body does not run again."""
    model, rows = dp.LinearProbe(make()).train(), rows_of()
    kept = model.cache_images(rows, batch_size=3)
    assert [sorted(row) for row in kept] == [["features", "labels"]] * 4
    runs = []
    model.backbone.base_model.embeddings.register_forward_pre_hook(lambda *values: runs.append(1))
    parameters = [p for p in model.parameters() if p.requires_grad]
    output = model(**default_data_collator(kept))
    found = torch.autograd.grad(output.loss, parameters)
    assert not runs
    full = model(**default_data_collator(rows))
    assert_close(output.logits, full.logits)
    assert runs
    assert_close(found, torch.autograd.grad(full.loss, parameters))
    assert all(gradient.abs().max() > 1e-6 for gradient in found)


def test_features_of_a_vit_are_its_normed_first_rows():
    model, pixels = dp.LinearProbe(tiny.vit()), tiny.images(3)
    with torch.no_grad():
        rows = model.backbone.base_model(pixel_values=pixels).last_hidden_state[:, 0]
    assert_close(model.features(pixels), rows[:, None])
    kept = model.cache_images({"pixel_values": image, "name": i} for i, image in enumerate(pixels))
    assert [row["name"] for row in kept] == [0, 1, 2]
    assert_close(torch.stack([row["features"] for row in kept]), rows[:, None])


def test_the_body_of_a_probe_is_frozen_and_in_evaluation_mode():
    base = tiny.vit(hidden_dropout_prob=0.5)
    base.classifier = nn.Sequential(nn.Dropout(0.5), base.classifier)
    model = dp.LinearProbe(base).train()
    assert model.training and base.classifier[0].training
    assert not any(module.training for module in base.base_model.modules())
    assert not model.eval().training and not base.classifier[0].training
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert (
        trained == {id(p) for p in base.classifier.parameters()} == {id(p) for p in model.head_parameters()}
    )


def test_the_trainer_takes_kept_features(tmp_path):
    """And ends with the weights that it ends with on images."""
    found = []
    for keeps in (True, False):
        probe = dp.LinearProbe(tiny.vit(dtype=torch.float32))
        rows = [{**row, "pixel_values": row["pixel_values"].float()} for row in rows_of(8)]
        options = {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "save_strategy": "no",
        }
        arguments = TrainingArguments(str(tmp_path), learning_rate=0.1, use_cpu=True, **options)
        Trainer(probe, arguments, train_dataset=probe.cache_images(rows) if keeps else rows).train()
        found.append([p.detach() for p in probe.head_parameters()])
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    start = dp.LinearProbe(tiny.vit(dtype=torch.float32)).head_parameters()
    assert all((a - b).abs().max() > 0.01 for a, b in zip(found[0], start))


def test_what_is_no_classifier_or_no_image_is_refused():
    with pytest.raises(ValueError, match="needs a classification head"):
        dp.LinearProbe(tiny.vit().base_model)
    model = dp.LinearProbe(tiny.vit())
    with pytest.raises(ValueError, match=r"examples has one with \['labels'\], expected 'pixel_values'"):
        model.cache_images([{"labels": 1}])
    with pytest.raises(ValueError, match="batch_size=0 is not valid, expected an integer of at least 1"):
        model.cache_images(rows_of(), batch_size=0)
