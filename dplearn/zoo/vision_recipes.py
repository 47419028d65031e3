"""How long vit-mini and clip-mini are pretrained, and what each step draws: rate, strength, icons, random numbers.

The data of a step depends on the seed and the step alone, so a resumed run sees what it would have seen. The rate
rises, stays, and falls linearly over the last steps ("warm-up, stable, decay"), so a run can be lengthened at a
checkpoint without changing the steps already taken.
"""

import zlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Recipe:
    """Steps of AdamW: linear warm-up, constant rate, linear decay to zero over the last ``decay`` steps.

    Over the first ``easy`` steps the changes of the images grow from nothing to their full strength; otherwise
    nothing is learned for long, because the average image says nothing when ink and paper change places.
    """

    name: str
    steps: int
    decay: int
    batch: int
    rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    easy: int = 800
    seed: int = 1

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.rate * min(1.0, (step + 1) / self.warmup, (self.steps - step) / self.decay)

    def strength_at(self, step: int) -> float:
        """How strongly the images of a step are changed, from 0 to 1."""
        return min(1.0, step / self.easy) if self.easy else 1.0


RECIPES = {
    "vit-mini": Recipe("vit-mini", steps=12000, decay=4000, batch=128),
    "clip-mini": Recipe("clip-mini", steps=4000, decay=1300, batch=256, easy=400),
}


def generator_of(recipe: Recipe, step: int) -> torch.Generator:
    """The random numbers of a step."""
    return torch.Generator().manual_seed(zlib.crc32(f"{recipe.name}/{recipe.seed}/{step}".encode()))


def rows_of(recipe: Recipe, step: int, count: int) -> torch.Tensor:
    """Which of ``count`` examples a step sees: every epoch is a new permutation, cut into batches."""
    batch = min(recipe.batch, count)
    epoch, place = divmod(step, count // batch)
    seed = zlib.crc32(f"{recipe.name}/{recipe.seed}/epoch/{epoch}".encode())
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[
        place * batch : (place + 1) * batch
    ]
