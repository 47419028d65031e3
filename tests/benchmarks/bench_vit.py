"""A training step on a frozen random ViT of the width of ViT-B, against visual prompt tuning written out by hand.

The reference is VPT (Jia et al. 2022): the prompt stands behind [CLS] and the position vectors, and leaves before the
head; VPT-deep puts fresh vectors into its rows at each layer. The head is frozen too: the prompt alone is trained.
"""

import warnings
from typing import NamedTuple

import torch
from bench_steps import ONE_PASS, frozen_with_gradient, make_step
from torch import nn

import dplearn as dp

LENGTH, CLASSES = 20, 100


class Shape(NamedTuple):
    """Images in a batch, their side and that of a patch in pixels, and the model."""

    batch: int
    side: int
    patch: int
    dim: int
    heads: int
    inner: int
    layers: int


FULL, SMALL = Shape(8, 224, 16, 768, 12, 3072, 3), Shape(2, 32, 8, 32, 2, 64, 3)


def make_vit(shape):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=shape.side, patch_size=shape.patch, hidden_size=shape.dim, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=shape.inner, num_labels=CLASSES,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def make_batch(shape):
    images = torch.randn(shape.batch, 3, shape.side, shape.side)
    return {"pixel_values": images, "labels": torch.randint(CLASSES, (shape.batch,))}


class HandWrittenVPT(nn.Module):
    """VPT-shallow for vectors (1, l, d), VPT-deep for (layers, l, d): concatenation and slices, no package."""

    def __init__(self, backbone, vectors):
        super().__init__()
        self.backbone, self.vectors = backbone.requires_grad_(False), nn.Parameter(vectors)

    def forward(self, pixel_values, labels):
        from transformers.modeling_outputs import ImageClassifierOutput

        base, length = self.backbone.base_model, self.vectors.shape[1]
        states = base.embeddings(pixel_values)
        for number, layer in enumerate(base.layers if hasattr(base, "layers") else base.encoder.layer):
            if number < len(self.vectors):
                fresh = self.vectors[number].expand(len(states), -1, -1)
                rest = states[:, 1 + length * (number > 0) :]
                states = torch.cat([states[:, :1], fresh, rest], 1)
            states = layer(states)
        rows = torch.cat([states[:, :1], states[:, 1 + length :]], 1)
        logits = self.backbone.classifier(base.layernorm(rows)[:, 0])
        loss = nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def ours(layers):
    """The options of each way; VPT-deep has a prompt for every layer."""
    return {
        "prefix": {},
        "pool": {"vector": "instance", "pool_size": 4},
        "before": {"position": "instance", "entry": "before-positions", **ONE_PASS},
        "after": {"position": "instance", **ONE_PASS},
        "deep": {"depth": layers},
    }


def prompted(backbone, **options):
    """A prompted model; that a position behind the position vectors has nothing to learn is known here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "position=.*has nothing to learn", UserWarning)
        return dp.prompted(backbone, dp.PromptConfig(length=LENGTH, **options))


def measure(report, quick, pairs):
    shape = SMALL if quick else FULL
    backbone, batch = make_vit(shape), make_batch(shape)
    models = {way: prompted(backbone, **options) for way, options in ours(shape.layers).items()}
    for name, layers in (("VPT-shallow", 1), ("VPT-deep", shape.layers)):
        models[name] = HandWrittenVPT(backbone, torch.randn(layers, LENGTH, shape.dim))
    steps = {way: make_step(model.train(), batch) for way, model in models.items()}
    backbone.eval()  # they share it: the same mode for all
    for way in ours(shape.layers):
        other = "VPT-deep" if way == "deep" else "VPT-shallow"
        report.ratio(f"{way}/{other}", steps[way], steps[other], pairs)
    report.add("frozen", frozen_with_gradient(backbone))
