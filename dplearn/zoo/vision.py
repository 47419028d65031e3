"""How vit-mini and clip-mini are pretrained: on rendered icons and their names, on one CPU thread each.

vit-mini classifies icons by the first word of their name; clip-mini matches icons with captions made of their names
(Radford et al. 2021). Both see the part "train" of `dplearn.zoo.icons` only, drawn anew in every step: size, place,
rotation, stroke, blur, noise and the two colours vary. The data of a step depends on the seed and the step alone, so
a resumed run sees what it would have seen. The rate rises, stays, and falls linearly over the last steps ("warm-up,
stable, decay"), so a run can be lengthened at a checkpoint without changing the steps already taken.
"""

import json
import os
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..files import replacing, write
from .icons import HELD_OUT_WORDS, KNOWN_WORDS, Icon, fonts_version, icons, paint, render_all, task_splits
from .pretraining import KEEP_MEMORY, losses_of, write_hashes

SIZE, PATCH, WIDTH = 28, 7, 96
SPREAD = 0.08  # of ViT's first weights; with the usual 0.02 the loss falls more slowly at this width
RENDERED = 40  # pixels of the cached masks, which are reduced to SIZE after they are moved and turned
LEAST = 6  # icons that a class of vit-mini has in training
VOCABULARY, POSITIONS = 2048, 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
TEMPLATES = (
    "{}",
    "an icon of {}",
    "a picture of {}",
    "{} , a small drawing",
    "this is a simple drawing that shows {}",
)
SHORT = 0.3  # share of captions that give the first word only


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


def labels_of(training: Sequence[Icon]) -> tuple[str, ...]:
    """The classes of vit-mini: first words of at least `LEAST` training icons, in alphabetical order."""
    counts = Counter(icon.label for icon in training)
    return tuple(sorted(word for word, count in counts.items() if count >= LEAST))


def fresh_vit(labels: Sequence[str], seed: int):
    """vit-mini's architecture with freshly initialised weights."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, intermediate_size=4 * WIDTH,
        image_size=SIZE, patch_size=PATCH, num_channels=3, initializer_range=SPREAD,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    return ViTForImageClassification(config)


def fresh_clip(seed: int):
    """clip-mini's architecture with freshly initialised weights."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    text = dict(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=POSITIONS, projection_dim=WIDTH,
        bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1,
    )  # fmt: skip
    vision = dict(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=4,
        image_size=SIZE, patch_size=PATCH, projection_dim=WIDTH,
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def fresh_like(config, seed: int):
    """The architecture of a vit-mini or clip-mini config with freshly initialised weights."""
    if config.model_type == "clip":
        return fresh_clip(seed)
    return fresh_vit([config.id2label[i] for i in range(config.num_labels)], seed)


def image_processor(name: str):
    """The image processor of a backbone: PIL images of any size and mode -> (3, 28, 28) from -1 to 1."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    size = {"height": SIZE, "width": SIZE}
    shared = dict(size=size, do_convert_rgb=True, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2)
    if name == "vit-mini":
        return ViTImageProcessorPil(**shared)
    return CLIPImageProcessorPil(do_center_crop=False, crop_size=size, **shared)


def learn_merges(counts: dict[str, int], room: int) -> list[tuple[str, str]]:
    """Byte-pair encoding of counted words: ``room`` merges, the most frequent pair first, ties in alphabetical order.

    The trainer of `tokenizers` orders ties differently in every process, so that a resumed run would exchange pieces.

    >>> learn_merges({"aab": 3, "ab": 2}, 2)
    [('a', 'b</w>'), ('a', 'ab</w>')]
    """
    parts = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    frequency, holders = Counter(), defaultdict(set)

    def count(word, sign):
        for pair in zip(parts[word], parts[word][1:]):
            frequency[pair] += sign * counts[word]
            holders[pair].add(word)

    for word in parts:
        count(word, 1)
    merges = []
    while len(merges) < room:
        best = min(frequency, key=lambda pair: (-frequency[pair], pair), default=None)
        if best is None or frequency[best] <= 0:
            raise ValueError(f"room={room}: the words give {len(merges)} merges only")
        merges.append(best)
        for word in sorted(holders[best]):
            count(word, -1)
            old, new = parts[word], []
            while old:
                size = 2 if tuple(old[:2]) == best else 1
                new.append("".join(old[:size]))
                old = old[size:]
            parts[word] = new
            count(word, 1)
        del frequency[best]
    return merges


def build_tokenizer(texts: Sequence[str]):
    """A CLIP tokenizer (lower-case byte-level BPE, 2,048 pieces) trained on the names and the caption templates."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    backend, letters = CLIPTokenizer().backend_tokenizer, sorted(ByteLevel.alphabet())
    counts = Counter()
    for text in (*texts, *[template.format("") for template in TEMPLATES] * 50):
        normal = backend.normalizer.normalize_str(text)
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    # As in CLIP: letters, letters that end a word, merges in their order, and the two special tokens last.
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    merges = learn_merges(counts, VOCABULARY - 2 - len(pieces))
    pieces += ["".join(pair) for pair in merges]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(pieces))}
    if len(vocabulary) != VOCABULARY - 2:
        raise ValueError(f"the names give {len(vocabulary)} pieces: expected {VOCABULARY - 2}")
    vocabulary |= {BOS: VOCABULARY - 2, EOS: VOCABULARY - 1}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


def augment(masks: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Coverage masks (B, H, H) uint8 as new training images (B, 3, 28, 28) from -1 to 1.

    Half of the strokes are made thicker, thinner or blurred; then size, aspect, rotation, shear and place change; ink
    and paper get colours (half of the time greys) that differ in brightness; a little noise is added. A ``strength``
    below 1 means smaller changes, and black on white for that much more of the images.
    """
    count = len(masks)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def around(reach, *shape):
        return strength * uniform(-reach, reach, *shape)

    x = masks.float().div(255).unsqueeze(1)
    kind, mix = uniform(0, 1, 1, 1, 1), uniform(0.3, 1, 1, 1, 1)
    changed = torch.where(kind < 0.2, F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1))
    changed = torch.where(kind < 0.3, changed, F.avg_pool2d(x, 3, 1, 1))
    x = torch.where(kind < 0.5, strength * mix * changed + (1 - strength * mix) * x, x)
    size, aspect, angle, shear = 0.95 + around(0.25) - 0.1 * strength, around(0.1), around(0.2), around(0.1)
    shift = around(0.12, 2)
    wide, high = 1 / (size * torch.exp(aspect)), 1 / (size * torch.exp(-aspect))
    rows = [
        torch.stack([wide * angle.cos(), -high * (angle.sin() + shear), shift[:, 0]], -1),
        torch.stack([wide * angle.sin(), high * angle.cos(), shift[:, 1]], -1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), (count, 1, SIZE, SIZE), align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    paper, ink, grey = uniform(0, 1, 3), uniform(0, 1, 3), uniform(0, 1, 1) < 0.5
    paper, ink = (torch.where(grey, colour[:, :1], colour) for colour in (paper, ink))
    bright = paper.mean(1, keepdim=True)
    faint = (ink.mean(1, keepdim=True) - bright).abs() < 0.3
    ink = torch.where(faint, (bright < 0.5).float().expand_as(ink), ink)
    coloured = uniform(0, 1, 1) < strength
    ink = torch.where(coloured, ink, torch.zeros_like(ink))[..., None, None]
    paper = torch.where(coloured, paper, torch.ones_like(paper))[..., None, None]
    image = paper * (1 - x) + ink * x
    image = image + strength * uniform(0, 0.06, 1, 1, 1) * torch.randn(image.shape, generator=generator)
    return image.clamp(0, 1) * 2 - 1


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
            found = torch.cat([self.model(pixel_values=p).logits.argmax(-1) for p in pixels[rows].split(256)])
            result[part] = round((found == truth).float().mean().item(), 4)
        return result

    def save(self, target: Path) -> None:
        """Everything but the weights: the image processor."""
        image_processor(self.recipe.name).save_pretrained(target)


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

    def save(self, target: Path) -> None:
        """Everything but the weights: the processor, which is tokenizer and image processor."""
        from transformers import CLIPProcessor

        CLIPProcessor(image_processor(self.recipe.name), self.tokenizer).save_pretrained(target)


OBJECTIVES = {"vit-mini": Classify, "clip-mini": Contrast}


def tokenize(tokenizer, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask (B, T) of captions."""
    found = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def rendered(folder: Path, part: str) -> tuple[list[Icon], torch.Tensor]:
    """The icons of a part and their masks (N, 40, 40) uint8, rendered once per run folder."""
    chosen, file = icons(part), folder / f"{part}-{fonts_version()}.npy"
    if not file.exists():
        masks = render_all(chosen, RENDERED)
        with replacing(file) as target:
            np.save(target, masks)
    return chosen, torch.from_numpy(np.load(file))


def pixels_of(name: str, masks: torch.Tensor) -> torch.Tensor:
    """Black on white, through the image processor that ships: (N, 3, 28, 28)."""
    images = [paint(mask) for mask in masks.numpy()]
    return image_processor(name)(images, return_tensors="pt")["pixel_values"]


def held_out_data(folder: Path, name: str) -> dict:
    """{part: (icons, pixels)} for the reports, at most 1,000 icons a part, evenly chosen."""
    result = {}
    for part in ("validation", "icons", "style"):
        chosen, masks = rendered(folder, part)
        step = -(-len(chosen) // 1000)
        result[part] = (chosen[::step], pixels_of(name, masks[::step]))
    return result


@contextmanager
def without_denormals():
    """Numbers below 1e-38 count as 0, which is faster; afterwards as usual, since this holds for the whole process."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@without_denormals()
def train(objective, folder: Path, held: dict, report_every: int = 100, stop: int | None = None) -> None:
    """Runs a recipe to its end or to step ``stop``, from folder/checkpoint.pt if it is there; logs and saves."""
    recipe, model = objective.recipe, objective.model
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    step, seconds, losses = 0, 0.0, []
    if (folder / "checkpoint.pt").exists():
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, losses = state["step"], state["seconds"], state["losses"]
    last = recipe.steps if stop is None else min(stop, recipe.steps)
    began = time.time() - seconds
    with tqdm(total=recipe.steps, initial=step, mininterval=10) as bar:
        while step < last:
            model.train()
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate_at(step)
            loss = objective.loss(step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            step += 1
            losses.append(loss.item())
            bar.update()
            if step % report_every == 0 or step == last:
                seconds = time.time() - began
                if step % report_every == 0 or step == recipe.steps:
                    report(objective, folder, held, step, losses, seconds)
                    losses = []
                state = dict(model=model.state_dict(), optimiser=optimiser.state_dict())
                state |= dict(step=step, seconds=seconds, losses=losses)
                with replacing(folder / "checkpoint.pt") as file:
                    torch.save(state, file)


@torch.no_grad()
def report(objective, folder: Path, held: dict, step: int, losses: list[float], seconds: float) -> None:
    """Appends a line to the log: mean loss since the last line, minutes, held-out accuracies; prints it too."""
    objective.model.eval()
    record = dict(
        step=step, samples=step * objective.recipe.batch, loss=round(sum(losses) / len(losses), 4),
        minutes=round(seconds / 60, 2), held_out=objective.held_out(held),
    )  # fmt: skip
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(record) + "\n")
    tqdm.write(json.dumps(record))


def pretrain(name: str, folder: Path) -> None:
    """Runs the recipe of a backbone in its run folder, which holds rendered icons, checkpoint and log."""
    os.environ.update(KEEP_MEMORY, TOKENIZERS_PARALLELISM="false")
    torch.set_num_threads(1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    objective = OBJECTIVES[name](*rendered(folder, "train"), RECIPES[name])
    train(objective, folder, held_out_data(folder, name))


def export(name: str, folder: Path, target: Path) -> Path:
    """Writes a checkpoint as Hugging Face files (float16): processor, losses, probes and the SHA-256 of each file."""
    folder, target = Path(folder), Path(target)
    objective = OBJECTIVES[name](*rendered(folder, "train"), RECIPES[name])
    objective.model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
    target.mkdir(parents=True, exist_ok=True)
    objective.model.half().save_pretrained(target)
    objective.save(target)
    write(target / "losses.json", (json.dumps(losses_of(folder), indent=0) + "\n").encode())
    write_hashes(target)
    write(target / "probes.json", (json.dumps(measure(name, target), indent=0) + "\n").encode())
    write_hashes(target)
    return target


def embed(model, pixels: torch.Tensor) -> torch.Tensor:
    """What a linear probe sees of images (N, 3, 28, 28): vit-mini's CLS vector, clip-mini's image vector; (N, 96)."""
    with torch.no_grad():
        if model.config.model_type == "vit":
            found = [model.vit(pixel_values=p).last_hidden_state[:, 0] for p in pixels.split(256)]
        else:
            pooled = [model.vision_model(pixel_values=p).pooler_output for p in pixels.split(256)]
            found = [model.visual_projection(vector) for vector in pooled]
    return torch.cat(found)


def probe_data(task: str, name: str) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """{split: (pixels, labels)} of a probe task.

    "digits" are scikit-learn's handwritten digits (500 train, 300 validation, 997 test), "new classes" the icons of
    `HELD_OUT_WORDS`, "new style" the known words in the font that was never seen (words with three drawings).
    """
    if task == "digits":
        from sklearn.datasets import load_digits

        data = load_digits()
        order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0)).numpy()
        pixels = pixels_of(name, torch.from_numpy(np.rint(data.images * (255 / 16)).astype(np.uint8)))
        bounds = {"train": order[:500], "validation": order[500:800], "test": order[800:]}
        return {split: (pixels[rows], data.target[rows]) for split, rows in bounds.items()}
    words = {"new classes": HELD_OUT_WORDS, "new style": KNOWN_WORDS}
    if task not in words:
        raise ValueError(f"task={task!r}: expected one of {['digits', *words]}")
    chosen = icons({"new classes": "classes", "new style": "style"}[task], words=words[task])
    drawings = Counter(label for label, _ in {(icon.label, icon.drawing) for icon in chosen})
    splits = task_splits(icon for icon in chosen if drawings[icon.label] >= 3)
    return {
        split: (
            pixels_of(name, torch.from_numpy(render_all(some, RENDERED))),
            np.array([icon.label for icon in some]),
        )
        for split, some in splits.items()
    }


def probe(model, data: dict) -> float:
    """Test accuracy of a linear probe (logistic regression on standardised features), its strength chosen on
    validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen = {split: embed(model, pixels).double().numpy() for split, (pixels, _) in data.items()}
    best = (-1.0, None)
    for strength in (1e-3, 1e-2, 1e-1, 1.0):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        fitted.fit(seen["train"], data["train"][1])
        score = fitted.score(seen["validation"], data["validation"][1])
        if score > best[0]:
            best = (score, fitted)
    return round(best[1].score(seen["test"], data["test"][1]), 4)


@torch.no_grad()
def recall(model, processor, chosen: Sequence[Icon], masks) -> float:
    """Share of right names of icons of `KNOWN_WORDS`, averaged over the words (a constant answer gets 1 / 40 or less).

    vit-mini chooses out of all its classes, clip-mini out of the 40 words in "an icon of ...".
    """
    if model.config.model_type == "vit":
        names, extra, pixels = model.config.id2label, {}, pixels_of("vit-mini", masks)
    else:
        names, pixels = KNOWN_WORDS, pixels_of("clip-mini", masks)
        extra = tokenize(processor.tokenizer, [f"an icon of {word}" for word in names])
    right = defaultdict(list)
    for rows in torch.arange(len(chosen)).split(256):
        output = model(pixel_values=pixels[rows], **extra)
        scores = output.logits_per_image if extra else output.logits
        for row, answer in zip(rows.tolist(), scores.argmax(-1).tolist()):
            right[chosen[row].label].append(names[answer] == chosen[row].label)
    return round(float(np.mean([np.mean(answers) for answers in right.values()])), 4)


def measure(name: str, folder: Path, seeds: Sequence[int] = (1, 2, 3)) -> dict:
    """{figure: {"pretrained": value, "random": [value for each seed]}}: exported weights and never trained ones.

    Figures: :func:`recall` on the held-out parts, and :func:`probe` on the tasks of :func:`probe_data`.
    """
    from . import load_folder

    pretrained, processor = load_folder(folder)
    controls = [fresh_like(pretrained.config, seed).eval() for seed in seeds]
    result = {}
    for part in ("icons", "style"):
        chosen = icons(part, words=KNOWN_WORDS)
        masks = torch.from_numpy(render_all(chosen, RENDERED))
        values = [recall(model, processor, chosen, masks) for model in (pretrained, *controls)]
        result[f"recall, part {part}"] = {"pretrained": values[0], "random": values[1:]}
    for task in ("digits", "new classes", "new style"):
        data = probe_data(task, name)
        values = [probe(model, data) for model in (pretrained, *controls)]
        result[f"linear probe, {task}"] = {"pretrained": values[0], "random": values[1:]}
    return result


def figures(name: str, run: bool = True) -> str:
    """The end of a backbone's pretraining, and :func:`measure`, recorded or (``run``) now."""
    from . import folder_of

    folder = folder_of(name)
    last = json.loads((folder / "losses.json").read_text())[-1]
    kind = "accuracy over all classes" if name == "vit-mini" else "zero-shot accuracy over 40 words"
    lines = [
        f"step {last['step']}, {last['samples']} samples, {last['minutes']} minutes, loss {last['loss']}",
        *(f"{kind}, part {part}: {value:.3f}" for part, value in last["held_out"].items()),
    ]
    probes = measure(name, folder) if run else json.loads((folder / "probes.json").read_text())
    for task, scores in probes.items():
        random = ", ".join(f"{score:.3f}" for score in scores["random"])
        lines.append(f"{task}: {scores['pretrained']:.3f} (random layers: {random})")
    return "\n".join(lines)
