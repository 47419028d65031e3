"""Image-text models written out by hand, one text at a time: the reference that the tests of prompted CLIP share.

Attention is spelled out, rows are put together one after the other, and patches are cut with ``unfold``. Nothing here
calls the package, and of the backbone only weights and what acts on single rows are used.
"""

import tiny
import torch
from torch.nn.functional import layer_norm, linear, unfold

import dplearn as dp

WORDS = [[10, 11, 12], [10, 13], [10, 14, 15, 16], [10, 17]]
LENGTH = 3
LABELS = torch.tensor([1, 3, 0])
EXACT = dict(rtol=0, atol=1e-12)
CLOSE = dict(rtol=0, atol=1e-10)  # gradients
MODELS = {"clip": tiny.clip, "siglip": tiny.siglip}


def make(kind="clip", backbone=None, length=LENGTH, seed=0, spread=6.0, **options):
    """A prompted model in float64 with random vectors of the scale of the embeddings and decisions that differ."""
    backbone = MODELS[kind]() if backbone is None else backbone
    pool = {"pool_size": 2} if options.get("vector", "single") != "single" else {}
    config = dp.PromptConfig(length=length, **pool | tiny.SAMPLED | options)
    torch.manual_seed(seed)
    width = 12 if config.towers == "vision" else tiny.WIDTH
    model = dp.prompted(backbone, config, vectors=torch.randn(*config.shape, width)).to(backbone.dtype)
    with torch.no_grad():
        for name, parameter in model.prompt.named_parameters():
            if name.endswith("linear.weight"):
                parameter.mul_(spread)
            if name.endswith("controller.logits"):
                parameter.mul_(4)
    return model.eval()


def make_differing(decided, *arguments, **options):
    """The first of :func:`make`'s models, by seeds, for whose owners not all is decided alike."""
    for seed in range(50):
        model = make(*arguments, seed=seed, **options)
        if len(set(decided(model).tolist())) > 1:
            return model
    raise AssertionError("all models decide the same for all")


def is_siglip(backbone):
    return backbone.config.model_type == "siglip"


def given(backbone, words=WORDS, **options):
    """Texts as arguments of a forward pass."""
    ids, mask = tiny.texts(words, is_siglip(backbone), **options)
    return {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}


# --- the towers ---


def attend(attention, states, causal):
    heads, (_, count, width) = attention.num_heads, states.shape
    query, key, value = (
        getattr(attention, f"{name}_proj")(states).unflatten(2, (heads, -1)).transpose(1, 2) for name in "qkv"
    )
    scores = query @ key.mT * (width // heads) ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), float("-inf"))
    return attention.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def through(tower, states, prompts, rows, causal):
    """The layers of a tower; prompts (depth, l, d), of which the first stands in the states already, in these rows."""
    for number, layer in enumerate(tower.encoder.layers):
        if 0 < number < len(prompts):
            states = states.index_copy(
                1, torch.tensor(rows, dtype=torch.long), prompts[number].expand(len(states), -1, -1)
            )
        states = states + attend(layer.self_attn, layer.layer_norm1(states), causal)
        states = states + layer.mlp(layer.layer_norm2(states))
    return states


def text_rows(backbone, words, vectors, split):
    """One text with its prompt, without positions (S, d); and the rows of the prompt."""
    table, length = backbone.text_model.embeddings.token_embedding.weight, len(vectors)
    if is_siglip(backbone):
        front, back = [], [tiny.EOS] * (tiny.ROOM - len(words) - length)
    else:
        front, back = [tiny.START], [tiny.END]
    ids = [torch.tensor(part, dtype=torch.long) for part in (front, words, back)]
    parts = [table[ids[0]], vectors[:split], table[ids[1]], vectors[split:], table[ids[2]]]
    first, second = len(front), len(front) + len(words)
    places = [first + i if i < split else second + i for i in range(length)]
    return torch.cat(parts), places


def read_text(backbone, rows, prompts, places, row=-1):
    """The unit vector of one text: rows (S, d) without positions, read in a row (the last one)."""
    tower, siglip = backbone.text_model, is_siglip(backbone)
    states = (rows + tower.embeddings.position_embedding.weight[: len(rows)])[None]
    states = tower.final_layer_norm(through(tower, states, prompts, places, not siglip))[0, row]
    found = tower.head(states) if siglip else backbone.text_projection(states)
    return found / found.norm()


def text_by_hand(backbone, words, prompts, split):
    """The unit vector (p,) of one text whose prompt (depth, l, d) has ``split`` vectors in front."""
    rows, places = text_rows(backbone, words, prompts[0], split)
    return read_text(backbone, rows, prompts, places)


def texts_by_hand(backbone, prompts, split, words=WORDS):
    """(C, p): one prompt for all texts."""
    return torch.stack([text_by_hand(backbone, row, prompts, split) for row in words])


def patches_by_hand(backbone, pixels):
    """(N, T, width): patches with positions, in CLIP behind the class token."""
    embeddings = backbone.vision_model.embeddings
    projection = embeddings.patch_embedding
    rows = unfold(pixels, 4, stride=4).mT @ projection.weight.flatten(1).T
    if projection.bias is not None:
        rows = rows + projection.bias
    if not is_siglip(backbone):
        rows = torch.cat([embeddings.class_embedding.expand(len(pixels), 1, -1), rows], 1)
    return rows + embeddings.position_embedding.weight


def images_by_hand(backbone, pixels, prompts=None):
    """The unit vectors (N, p) of images whose prompt (depth, l, width) stands behind the patches, or of bare ones."""
    tower, siglip = backbone.vision_model, is_siglip(backbone)
    rows, prompts = patches_by_hand(backbone, pixels), torch.empty(0, 0) if prompts is None else prompts
    count, states = rows.shape[1], rows
    if len(prompts):
        states = torch.cat([rows, prompts[0].expand(len(rows), -1, -1)], 1)
    states = states if siglip else tower.pre_layrnorm(states)
    states = through(tower, states, prompts, list(range(count, states.shape[1])), False)[:, :count]
    if siglip:
        found = pool_by_hand(tower.head, tower.post_layernorm(states))
    else:
        found = backbone.visual_projection(tower.post_layernorm(states[:, 0]))
    return found / found.norm(dim=1, keepdim=True)


def pool_by_hand(head, rows):
    """SigLIP's attention from a probe to the patches."""
    attention = head.attention
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    seen = [head.probe[0], rows, rows]
    query, key, value = (
        linear(x, w, b).unflatten(-1, (attention.num_heads, -1)).transpose(-3, -2)
        for x, w, b in zip(seen, weights, biases)
    )
    scores = query @ key.mT * query.shape[-1] ** -0.5
    found = attention.out_proj((scores.softmax(-1) @ value).transpose(-3, -2).flatten(-2))[:, 0]
    return found + head.mlp(head.layernorm(found))


def scores_by_hand(backbone, texts, images):
    """(N, C) of unit vectors: texts (C, p), or (N, C, p)."""
    texts = texts.expand(len(images), *texts.shape[-2:])
    cosines = torch.stack([own @ image for own, image in zip(texts, images)])
    return cosines * backbone.logit_scale.exp() + getattr(backbone, "logit_bias", 0.0)


# --- decisions ---


def controller_logits(model, part, summaries=None):
    """(owners, options) from a decision's parameters: a row for each task, or of each summary (owners, w)."""
    named, name = model.trainable_parameters(), f"prompt.{part}.controller"
    if f"{name}.logits" in named:
        return named[f"{name}.logits"]
    normal = layer_norm(summaries, summaries.shape[1:])
    state, statistics = model.state_dict(), f"{name}.standardizer"
    if f"{statistics}.mean" in state:  # those after the batch at hand, where a training step came before
        deviation = state[f"{statistics}.variance"].clamp(min=1e-5).sqrt()
        normal = (normal - state[f"{statistics}.mean"]) / deviation
    return normal @ named[f"{name}.linear.weight"].T + named[f"{name}.linear.bias"]


def word_means(backbone, words=WORDS):
    """(C, d): the mean of the embedded words, without start and end tokens."""
    table = backbone.text_model.embeddings.token_embedding.weight
    return torch.stack([table[row].mean(0) for row in words])


def gradients(model, loss):
    """Of all trained parameters by name, zeros where there is none."""
    named = model.trainable_parameters()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found)}
