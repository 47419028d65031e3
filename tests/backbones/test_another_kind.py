"""Another kind of backbone is one file and one registration: a throw-away one that reads sound."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

import dplearn as dp
from dplearn import backbones
from dplearn.backbones.base import Backbone
from dplearn.backbones.reading import Reading
from dplearn.backbones.rows import take_rows
from dplearn.backbones.views import changed


class SoundConfig(PretrainedConfig):
    model_type = "throw-away-sound"

    def __init__(self, width=8, **options):
        super().__init__(**options)
        self.width = width


class Sound(PreTrainedModel):
    """Frames (B, T, 4) are projected, see each other by how near they stand, and are averaged."""

    config_class, main_input_name, base_model_prefix = SoundConfig, "input_features", ""

    def __init__(self, config):
        super().__init__(config)
        self.project = nn.Linear(4, config.width)
        self.layers = nn.ModuleList([Near(config.width)])
        self.head = nn.Linear(config.width, 2)
        self.post_init()

    def forward(self, input_features, labels=None):
        states = self.layers[0](self.project(input_features))
        logits = self.head(states.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class Near(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, states):
        steps = torch.arange(states.shape[1], dtype=states.dtype)
        weights = (-(steps[:, None] - steps).abs()).softmax(-1)
        return torch.tanh(self.linear(weights @ states))


class SoundBackbone(Backbone):
    """What a new kind of backbone says about itself: all of it."""

    kind, reads, input_name = "text", "sound", "input_features"

    @staticmethod
    def refusal(model):
        return None if model.config.model_type == "throw-away-sound" else "expected sound"

    width = property(lambda self: self.model.config.width)
    vocabulary = property(lambda self: 0)

    def initial_vectors(self, config, generator=None):
        return torch.zeros(*config.shape, self.width).normal_(generator=generator)

    def read(self, batch, boundary, config, size=None):
        with torch.no_grad():
            rows = self.model.project(batch["input_features"])
        mask = torch.ones(rows.shape[:2], dtype=torch.long)
        return Reading(rows, mask, mask, boundary.kept(mask), batch)

    def run(self, placed, reading, head=None):
        changes = {
            "project": lambda usual, frames: placed.embeds,
            "layers.0": lambda usual, states: take_rows(usual(states), reading.places(placed)),
        }
        with changed(self.model, changes) as model:
            return model(**reading.given)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(backbones, "ADAPTERS", (*backbones.ADAPTERS, SoundBackbone))


@pytest.mark.parametrize("k", range(4))
def test_it_takes_prompts_learns_and_is_saved(registered, tmp_path, k):
    torch.manual_seed(0)
    backbone, frames, labels = Sound(SoundConfig()), torch.randn(3, 5, 4), torch.tensor([0, 1, 1])
    model = dp.prompted(backbone, dp.PromptConfig(length=3, position=k))
    rows, vectors = backbone.project(frames), model.prompt.vectors.expand(3, -1, -1)
    states = backbone.layers[0](torch.cat([vectors[:, :k], rows, vectors[:, k:]], 1))[:, k : k + 5]
    expected = backbone.head(states.mean(1))
    output = model(input_features=frames, labels=labels)
    assert_close(output.logits, expected)
    found = torch.autograd.grad(output.loss, model.prompt.vectors)
    assert_close(
        found, torch.autograd.grad(nn.functional.cross_entropy(expected, labels), model.prompt.vectors)
    )
    model.save_pretrained(tmp_path)
    again = dp.from_pretrained(tmp_path, backbone)
    assert_close(again(input_features=frames).logits, output.logits, rtol=0, atol=0)
    learned = dp.prompted(backbone, dp.PromptConfig(length=3, position="instance", controller_init="uniform"))
    assert learned.train()(input_features=frames, labels=labels).loss.requires_grad
    assert learned.decide(input_features=frames)["position"].index.shape == (3,)
