"""Random vectors in a text, as a prompt that was never trained would be: where they stand, and what they look like."""

import torch

from .holes import SENTINEL

NOISE = SENTINEL.format(
    31
)  # a mark in a text; pretraining puts a random vector there (never the sentinel itself)


def among_noise(rng, text, most):
    """The text with 1..most random vectors before, after or around it, as a prompt that was never trained."""
    count = rng.randint(1, most)
    before = rng.choice((0, count, rng.randint(0, count)))
    return " ".join([NOISE] * before + [text] + [NOISE] * (count - before))


def embed_with_noise(model, input_ids, noise_id, generator):
    """Input embeddings (B, T, d) with a random vector wherever the text has the mark of noise.

    What a prompt can look like before and after training: a row of the vocabulary, such a row moved by Gaussian noise,
    or noise alone, of half to eight times the spread of the embeddings; one kind and size for each sequence.
    """
    table = model.get_input_embeddings().weight
    noise = input_ids == noise_id
    rows = torch.randint(len(table), input_ids.shape, generator=generator)
    embeds = torch.nn.functional.embedding(torch.where(noise, rows, input_ids), table)
    kind = torch.rand(len(input_ids), 1, 1, generator=generator)
    size = 0.5 * 16 ** torch.rand(len(input_ids), 1, 1, generator=generator)
    random_vectors = torch.randn(embeds.shape, generator=generator) * table.detach().std(0) * size
    moved = random_vectors + embeds.detach() * (kind < 0.7)
    return torch.where(noise.unsqueeze(-1) & (kind > 0.4), moved, embeds)
