"""A training step of a text prompt on a frozen random CLIP, against CoOp and CoCoOp written out by hand.

The reference is CoOp (Zhou et al. 2022a): each step runs the images through their frozen tower, and all class names at
full length through the text tower, forward and backward. CoCoOp (Zhou et al. 2022b) gives each image a prompt of its
own and goes through the images one by one. The towers have the widths of CLIP ViT-B/32 and equally many layers, as
there, so that images and texts keep their shares of a step.
"""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from bench_steps import ONE_PASS, frozen_with_gradient, make_step
from goals import CLASSES, CLIP_SHORTCUTS
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import dplearn as dp
from dplearn.image_text import SHORTCUTS

LENGTH, POOL = 16, 4


class Shape(NamedTuple):
    """Images in a batch (for CoOp; for CoCoOp), their side and patch in pixels, and the two towers."""

    batch: int
    few: int
    side: int
    patch: int
    positions: int
    text: tuple[int, int, int]  # width, heads, inner width
    vision: tuple[int, int, int]
    layers: int  # of each tower
    joint: int  # width of the space that texts and images share


FULL = Shape(32, 4, 224, 32, 77, (512, 8, 2048), (768, 12, 3072), 4, 512)
SMALL = Shape(4, 2, 16, 8, 32, (32, 2, 64), (48, 2, 96), 2, 32)
VOCABULARY = 2048
STOP, START, END = VOCABULARY - 3, VOCABULARY - 2, VOCABULARY - 1


def make_clip(shape):
    from transformers import CLIPConfig, CLIPModel

    names = "hidden_size", "num_attention_heads", "intermediate_size"
    text, vision = (
        dict(zip(names, sizes)) | {"num_hidden_layers": shape.layers, "projection_dim": shape.joint}
        for sizes in (shape.text, shape.vision)
    )
    text |= {"vocab_size": VOCABULARY, "max_position_embeddings": shape.positions}
    text |= {"bos_token_id": START, "eos_token_id": END, "pad_token_id": END}
    vision |= {"image_size": shape.side, "patch_size": shape.patch}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape.joint)
    return CLIPModel(config).eval().requires_grad_(False)


def make_texts(count, columns):
    """Class names as CLIP's tokenizer pads them, (C, columns): start token, 1 to 4 words, full stop, end tokens."""
    ids = torch.full((count, columns), END)
    ids[:, 0] = START
    for number in range(count):
        words = 1 + number % 4
        ids[number, 1 : words + 1] = torch.randint(10, STOP, (words,))
        ids[number, words + 1] = STOP
    return ids


def make_images(shape, count, classes):
    images = torch.randn(count, 3, shape.side, shape.side)
    return {"pixel_values": images, "labels": torch.randint(classes, (count,))}


class HandWrittenCoOp(nn.Module):
    """A context of trained vectors in front of all class names, which always have as many columns as the tower."""

    def __init__(self, clip, vectors, ids):
        super().__init__()
        self.clip, self.vectors = clip, nn.Parameter(vectors)
        # Placeholders where the context stands; what is pushed out behind is padding.
        places = ids[:, :1].expand(-1, vectors.shape[-2])
        self.ids = torch.cat([ids[:, :1], places, ids[:, 1:]], 1)[:, : ids.shape[1]]

    @torch.no_grad()
    def image_features(self, pixel_values):
        """Unit vectors (N, p) of the frozen image tower."""
        pooled = self.clip.vision_model(pixel_values=pixel_values).pooler_output
        return normalize(self.clip.visual_projection(pooled), dim=-1)

    def texts(self, context):
        """Unit vectors (C, p) of the class names behind a context (l, d)."""

        def insert(module, arguments, words):
            rows = context.expand(len(words), -1, -1)
            return torch.cat([words[:, :1], rows, words[:, 1 + len(context) :]], 1)

        hook = self.clip.text_model.embeddings.token_embedding.register_forward_hook(insert)
        try:
            pooled = self.clip.text_model(input_ids=self.ids).pooler_output
        finally:
            hook.remove()
        return normalize(self.clip.text_projection(pooled), dim=-1)

    def forward(self, labels, pixel_values=None, image_embeds=None):
        images = self.image_features(pixel_values) if image_embeds is None else image_embeds
        logits = images @ self.texts(self.vectors).T * self.clip.logit_scale.exp()
        return SimpleNamespace(loss=cross_entropy(logits, labels), logits=logits)


class HandWrittenCoCoOp(HandWrittenCoOp):
    """Each image mixes the contexts of a pool (K, l, d), and has all class names run behind its own mixture."""

    def __init__(self, clip, vectors, ids):
        super().__init__(clip, vectors, ids)
        self.linear = nn.Linear(clip.visual_projection.out_features, len(vectors))

    def forward(self, labels, pixel_values):
        images, logits = self.image_features(pixel_values), []
        for image, weights in zip(images, self.linear(images).softmax(-1)):
            context = (weights[:, None, None] * self.vectors).sum(0)
            logits.append(image @ self.texts(context).T * self.clip.logit_scale.exp())
        logits = torch.stack(logits)
        return SimpleNamespace(loss=cross_entropy(logits, labels), logits=logits)


def prompted(clip, ids, shortcuts, **options):
    """A prompted model with classes and some shortcuts, in training."""
    model = dp.prompted(clip, dp.PromptConfig(length=LENGTH, **options))
    model.set_classes(ids)
    model.shortcuts = shortcuts
    return model.train()


def cached(model, batch):
    """The batch with the features of its images in the place of the pixels."""
    return {"image_embeds": model.image_features(batch["pixel_values"]), "labels": batch["labels"]}


@torch.no_grad()
def difference(model, batch):
    """Largest difference of the logits in evaluation with all shortcuts and cached images to those with none,
    relative to the largest logit."""
    names, training = model.shortcuts, model.training
    model.eval()
    model.shortcuts = ()
    plain = model(**batch).logits
    model.shortcuts = SHORTCUTS
    fast = model(**cached(model, batch)).logits
    model.shortcuts = names
    model.train(training)
    return float((fast - plain).abs().max() / plain.abs().max())


def report_classes(report, clip, shape, count, pairs):
    """Prompts that all images share."""
    ids = make_texts(count, shape.positions)
    batch = make_images(shape, shape.batch, count)
    coop = HandWrittenCoOp(clip, torch.randn(LENGTH, shape.text[0]) * 0.02, ids)
    ways = {way: ({}, *choice) for way, (choice, _) in CLIP_SHORTCUTS.items()}
    fast = (SHORTCUTS, True)
    learned = {"task": {"position": "task", **ONE_PASS}, "class": {"position": "instance", **ONE_PASS}}
    ways |= {way: (options, *fast) for way, options in learned.items()}
    steps = {"CoOp": make_step(coop, batch), "texts alone": make_step(coop, cached(coop, batch))}
    for way, (options, shortcuts, keeps_images) in ways.items():
        model = prompted(clip, ids, shortcuts, **options)
        steps[way] = make_step(model, cached(model, batch) if keeps_images else batch)
    report.ratio(
        f"images alone/CoOp {count}", lambda: coop.image_features(batch["pixel_values"]), steps["CoOp"], pairs
    )
    for way in ("texts alone", *ways):
        report.ratio(f"{way}/CoOp {count}", steps[way], steps["CoOp"], pairs)
    for way in ("task", "class"):
        report.ratio(f"{way}/cached truncated {count}", steps[way], steps["cached truncated"], pairs)
    report.add(f"difference {count}", difference(prompted(clip, ids, ()), batch))


def report_images(report, clip, shape, pairs):
    """A prompt for each image, from a pool."""
    count = CLASSES[0]
    ids, batch = make_texts(count, shape.positions), make_images(shape, shape.few, count)
    options = {"vector": "instance", "summary": "image", "pool_size": POOL}
    loop = make_step(HandWrittenCoCoOp(clip, torch.randn(POOL, LENGTH, shape.text[0]) * 0.02, ids), batch)
    plain, fast = (prompted(clip, ids, names, **options) for names in ((), SHORTCUTS))
    report.ratio("image plain/CoCoOp", make_step(plain, batch), loop, pairs)
    report.ratio("image/CoCoOp", make_step(fast, batch), loop, pairs)
    report.add("difference image", difference(fast, batch))


def measure(report, quick, pairs):
    shape = SMALL if quick else FULL
    clip = make_clip(shape)
    for count in CLASSES:
        report_classes(report, clip, shape, count, pairs)
    report_images(report, clip, shape, pairs)
    report.add("frozen", frozen_with_gradient(clip))
