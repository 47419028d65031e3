"""Prompts decided and put in place by hand, one instance after the other: the reference that several test files share.

Nothing here calls the package's decisions, mixtures or insertion. Only the names and values of parameters, and of the
statistics of summaries, are read.
"""

from functools import cache

import tiny
import torch
from torch.nn.functional import gumbel_softmax, one_hot

import dplearn as dp
from dplearn.summaries import Standardizer

LENGTH, POOL = 4, 3


backbone = cache(tiny.t5)  # frozen, so that tests may share it


def prompted(seed=0, length=LENGTH, double=True, vectors=None, **options):
    """A prompted T5 in float64 whose random vectors have the scale of its embeddings, and whose decisions are random,
    with statistics of summaries as of ten inputs."""
    pool = {"pool_size": POOL} if options.get("vector", "single") != "single" else {}
    options = pool | tiny.SAMPLED | options
    config, t5 = dp.PromptConfig(length=length, **options), backbone()
    torch.manual_seed(seed)
    if vectors is None:
        vectors = torch.randn(*config.shape, tiny.WIDTH)
    model = dp.prompted(t5, config, vectors=vectors)
    for module in model.prompt.modules():
        if isinstance(module, Standardizer):
            module.observe(torch.randn(10, tiny.WIDTH) * torch.arange(1, tiny.WIDTH + 1) / tiny.WIDTH + 0.1)
    model.prompt = model.prompt.double() if double else model.prompt
    return model.eval()


def settle(model, ids, mask):
    """The statistics of summaries become those of this batch, which training steps on it then leave as they are."""
    model.fit_summaries(iter([{"input_ids": ids, "attention_mask": mask}]))


def tokens(model, ids, mask):
    """Embedded real tokens of each instance: pairs of what the prompt surrounds and the end token behind it."""
    pairs = []
    for row, real in zip(ids, mask.bool()):
        embedded = model.backbone.get_input_embeddings()(row[real])
        cut = len(embedded) - int(row[real][-1] == tiny.EOS)
        pairs.append((embedded[:cut], embedded[cut:]))
    return pairs


def sequence(vectors, body, end, split, size):
    """[P_1..P_f ; X ; P_f+1..P_n ; end] with f = min(k, n), for one instance."""
    front = min(split, size)
    return torch.cat([vectors[:front], body, vectors[front:size], end])


def logits(model, ids, mask, labels, vectors, splits, sizes):
    """The backbone's logits of each instance alone, unpadded. vectors: (l, d) each; splits, sizes: int each."""
    rows = []
    for i, (body, end) in enumerate(tokens(model, ids, mask)):
        embeds = sequence(vectors[i], body, end, splits[i], sizes[i])
        rows.append(model.backbone(inputs_embeds=embeds[None], labels=labels[i : i + 1]).logits)
    return torch.cat(rows)


def scores(model, part, ids, mask, task=None):
    """Logits (B, options) of a decision from its parameters; None where it is fixed."""
    named, name = model.trainable_parameters(), f"prompt.{part}.controller"
    state, statistics = model.state_dict(), f"{name}.standardizer"
    if f"{name}.logits" in named:
        return named[f"{name}.logits"][[0] * len(ids) if task is None else task]
    if f"{name}.linear.weight" not in named:
        return None
    rows = []
    for pair in tokens(model, ids, mask):
        mean = torch.cat(pair).mean(0)
        centred = mean - mean.mean()
        normal = centred / (centred.square().mean() + 1e-5).sqrt()
        if f"{statistics}.mean" in state:  # those after the batch at hand, where a training step came before
            normal = (normal - state[f"{statistics}.mean"]) / state[f"{statistics}.variance"].clamp(
                min=1e-5
            ).sqrt()
        rows.append(named[f"{name}.linear.weight"] @ normal + named[f"{name}.linear.bias"])
    return torch.stack(rows)


def decide(model, ids, mask, task=None, sample=False):
    """One-hot rows (B, l+1) of split and size, and weights (B, K) of the pool or None, in this order of sampling."""
    config, decided = model.prompt_config, {}
    fixed = {"prefix": config.length, "postfix": 0, "full": config.length}
    for part in ("position", "size"):
        found = scores(model, part, ids, mask, task)
        if found is None:
            option = getattr(config, part)
            index = torch.full((len(ids),), fixed.get(option, option))
            decided[part] = one_hot(index, config.length + 1).double()
        elif sample:
            decided[part] = gumbel_softmax(found, tau=config.temperature, hard=True).double()
        else:
            decided[part] = one_hot(found.argmax(1), config.length + 1).double()
    found = scores(model, "vector", ids, mask, task)
    if found is None:
        decided["vector"] = None
    elif config.mixing == "hard" and sample:
        decided["vector"] = gumbel_softmax(found, tau=config.temperature, hard=True).double()
    elif config.mixing == "hard":
        decided["vector"] = one_hot(found.argmax(1), config.pool_size).double()
    else:
        weights = (found.tanh() if config.mixing == "tanh" else found).exp()
        decided["vector"] = weights / weights.sum(1, keepdim=True)
    return decided


def contents(model, weights):
    """The prompt (l, d) of each instance, as a list: sum_k weights[b, k] * pool[k]; weights None: the single prompt."""
    vectors = model.prompt.vectors
    if weights is None:
        return vectors
    return [sum(weight * prompt for weight, prompt in zip(row, vectors)) for row in weights]


def answer(model, ids, mask, labels, task=None):
    """Logits in evaluation: what is decided without noise, put in place by hand."""
    decided = decide(model, ids, mask, task)
    splits, sizes = (decided[part].argmax(1).tolist() for part in ("position", "size"))
    vectors = contents(model, decided["vector"])
    vectors = vectors.expand(len(ids), -1, -1) if decided["vector"] is None else vectors
    return logits(model, ids, mask, labels, vectors, splits, sizes)


def mixture(model, ids, mask, decided):
    """The mixture over all splits and sizes, ``sum_k sum_n w_k v_n sequence(k, n)``, and the mask of the chosen size.

    For autograd to differentiate. Every sequence has T + l rows: padding and then the vectors that it does not use.
    """
    length, width = model.prompt_config.length, ids.shape[1] + model.prompt_config.length
    vectors, rows, real = contents(model, decided["vector"]), [], torch.zeros(len(ids), width)
    for b, (body, end) in enumerate(tokens(model, ids, mask)):
        own, total = vectors if decided["vector"] is None else vectors[b], 0.0
        padding = model.backbone.get_input_embeddings()(ids[b][~mask[b].bool()])
        for k in range(length + 1):
            for n in range(length + 1):
                candidate = torch.cat([sequence(own, body, end, k, n), padding, own[n:]])
                total = total + decided["position"][b, k] * decided["size"][b, n] * candidate
        rows.append(total)
        real[b, : len(body) + len(end) + int(decided["size"][b].argmax())] = 1
    return torch.stack(rows), real.long()


def training_gradients(model, ids, mask, labels, task=None):
    """Gradients of all trained parameters by dense autograd; noise from torch's global generator, as it stands."""
    decided = decide(model, ids, mask, task, sample=True)
    embeds, real = mixture(model, ids, mask, decided)
    loss = model.backbone(inputs_embeds=embeds, attention_mask=real, labels=labels).loss
    named = model.trainable_parameters()
    found = torch.autograd.grad(loss, named.values(), allow_unused=True)
    return loss.detach(), {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found)
    }
