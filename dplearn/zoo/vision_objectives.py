"""What vit-mini and clip-mini learn: the first word of an icon's name, and which caption belongs to which icon."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .augmentation import augment
from .caption_tokenizer import TEMPLATES, build_tokenizer, tokenize
from .icons import KNOWN_WORDS, Icon
from .vision_models import fresh_clip, fresh_vit, image_processor
from .vision_recipes import Recipe, generator_of, rows_of

LEAST = 6  # icons that a class of vit-mini has in training
SHORT = 0.3  # share of captions that give the first word only


def labels_of(training: Sequence[Icon]) -> tuple[str, ...]:
    """The classes of vit-mini: first words of at least `LEAST` training icons, in alphabetical order."""
    counts = Counter(icon.label for icon in training)
    return tuple(sorted(word for word, count in counts.items() if count >= LEAST))


class Classify:
    """vit-mini's objective: the first word of the name."""

    def __init__(self, training: Sequence[Icon], masks: torch.Tensor, recipe: Recipe):
        self.labels = labels_of(training)
        kept = [i for i, icon in enumerate(training) if icon.label in set(self.labels)]
        self.recipe, self.masks = recipe, masks[kept]
        self.targets = torch.tensor([self.labels.index(training[i].label) for i in kept])
        self.model = fresh_vit(self.labels, recipe.seed)

    def loss(self, step: int) -> torch.Tensor:
        """The loss of a step's batch."""
        rows = rows_of(self.recipe, step, len(self.targets))
        images = augment(self.masks[rows], generator_of(self.recipe, step), self.recipe.strength_at(step))
        logits = self.model(pixel_values=images).logits
        return F.cross_entropy(logits, self.targets[rows], label_smoothing=0.1)

    def held_out(self, held: dict) -> dict[str, float]:
        """Accuracy over all classes on the icons of each held-out part whose class is known."""
        result = {}
        for part, (chosen, pixels) in held.items():
            rows = [i for i, icon in enumerate(chosen) if icon.label in self.labels]
            truth = torch.tensor([self.labels.index(chosen[i].label) for i in rows])
            predicted = torch.cat(
                [self.model(pixel_values=p).logits.argmax(-1) for p in pixels[rows].split(256)]
            )
            result[part] = round((predicted == truth).float().mean().item(), 4)
        return result

    def processor(self):
        """What ships beside the weights: the image processor."""
        return image_processor(self.recipe.name)


class Contrast:
    """clip-mini's objective: which caption belongs to which icon.

    A caption counts for every icon of the batch of which it is the whole name or the first word.
    """

    def __init__(self, training: Sequence[Icon], masks: torch.Tensor, recipe: Recipe, tokenizer=None):
        self.recipe, self.masks, self.training = recipe, masks, training
        self.tokenizer = tokenizer or build_tokenizer([icon.text for icon in training])
        texts = {text: i for i, text in enumerate(sorted({t for n in training for t in (n.text, n.label)}))}
        self.whole = torch.tensor([texts[icon.text] for icon in training])
        self.first = torch.tensor([texts[icon.label] for icon in training])
        self.model = fresh_clip(recipe.seed)

    def loss(self, step: int) -> torch.Tensor:
        """The loss of a step's batch, averaged over both directions."""
        rows, generator = rows_of(self.recipe, step, len(self.masks)), generator_of(self.recipe, step)
        images = augment(self.masks[rows], generator, self.recipe.strength_at(step))
        short = torch.rand(len(rows), generator=generator) < SHORT
        forms = torch.randint(len(TEMPLATES), (len(rows),), generator=generator).tolist()
        named = [self.training[row] for row in rows.tolist()]
        names = [icon.label if one else icon.text for icon, one in zip(named, short.tolist())]
        batch = tokenize(self.tokenizer, [TEMPLATES[form].format(name) for form, name in zip(forms, names)])
        scores = self.model(pixel_values=images, **batch).logits_per_image
        whole, first = self.whole[rows], self.first[rows]
        caption = torch.where(short, first, whole)
        match = ((caption == whole[:, None]) | (caption == first[:, None])).float()
        by_image, by_caption = match / match.sum(1, keepdim=True), match.T / match.T.sum(1, keepdim=True)
        return (F.cross_entropy(scores, by_image) + F.cross_entropy(scores.T, by_caption)) / 2

    def held_out(self, held: dict) -> dict[str, float]:
        """Zero-shot accuracy over the 40 known words on each held-out part."""
        captions = tokenize(self.tokenizer, [f"an icon of {word}" for word in KNOWN_WORDS])
        result = {}
        for part, (chosen, pixels) in held.items():
            rows = [i for i, icon in enumerate(chosen) if icon.label in KNOWN_WORDS]
            truth = torch.tensor([KNOWN_WORDS.index(chosen[i].label) for i in rows])
            scores = [
                self.model(pixel_values=p, **captions).logits_per_image for p in pixels[rows].split(256)
            ]
            result[part] = round((torch.cat(scores).argmax(-1) == truth).float().mean().item(), 4)
        return result

    def processor(self):
        """What ships beside the weights: the processor, which is tokenizer and image processor."""
        from transformers import CLIPProcessor

        return CLIPProcessor(image_processor(self.recipe.name), self.tokenizer)


OBJECTIVES = {"vit-mini": Classify, "clip-mini": Contrast}
