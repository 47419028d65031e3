"""The plain model on a text with the prompt's words in it: the reference of the sweep over architectures.

A prompt whose vectors are a model's own rows of some word ids must give the answer that the plain model gives on each
text alone, without padding, with these words spliced into its ids. Nothing here uses dplearn.
"""

import contextlib
import functools
import inspect

import torch
from architectures import BOS, EOS, PAD, VOCABULARY, WIDTH


def answer(model, task, input_ids=None, inputs_embeds=None, attention_mask=None):
    """The plain model's logits; without a mask all tokens are real."""
    given = input_ids if inputs_embeds is None else inputs_embeds
    options = dict(input_ids=input_ids) if inputs_embeds is None else dict(inputs_embeds=inputs_embeds)
    if attention_mask is None:
        attention_mask = torch.ones(given.shape[:2], dtype=torch.long)
    if "use_cache" in inspect.signature(model.forward).parameters:
        options["use_cache"] = False
    with torch.no_grad():
        return model(
            attention_mask=attention_mask, return_dict=True, **options, **decoder_inputs(task, len(given))
        ).logits


def decoder_inputs(task, batch):
    """What the decoder of an encoder-decoder language model has said so far."""
    return {"decoder_input_ids": torch.tensor([[BOS, 20, 21]]).expand(batch, -1)} if task == "seq2seq" else {}


def role_of(model, task):
    """ "encoder-decoder", "decoder" (no row sees a later one) or "encoder", by what the model does."""
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    rows = []
    for last in (17, 30):
        ids = torch.tensor([[10, 11, 12, 13, 14, 15, 16, last]])
        if task == "causal":
            rows.append(answer(model, task, input_ids=ids))
        else:
            with torch.no_grad():
                rows.append(
                    first_state(
                        model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True)
                    )
                )
    whole = rows[0].shape[1] == 8  # Funnel pools rows
    return "decoder" if whole and difference(rows[0][:, :-2], rows[1][:, :-2]) < 1e-4 else "encoder"


def splice(words, ids, split, keep=0):
    """The prompt's words around one text (T,), before its last ``keep`` tokens."""
    end = len(ids) - keep
    return torch.cat([words[:split], ids[:end], words[split:], ids[end:]])


def reference(model, task, role, words, ids, split):
    """What a prompted model must say about one text (T,).

    Encoder-decoder: the decoder's logits, the text's end token being last. Decoder: a classifier's logits, or a logit row
    for each token: the row in front of the next token; the last row predicts what follows the whole. Encoder: the pooler,
    head and mean over the mask see the rows of the text's own tokens, where they would be without a prompt.
    """
    whole = splice(words, ids, split, keep=int(role == "encoder-decoder" and ends(model, ids)))[None]
    if role != "encoder":
        logits = answer(model, task, input_ids=whole)[0]
        if role == "encoder-decoder" or task == "classification":
            return logits
        return logits[[*range(split, split + len(ids) - 1), -1]]
    module, states = end_of_layers(model, whole), []
    with hooked(module, lambda output: states.append(first_state(output))):
        answer(model, task, input_ids=whole)
    own = states[0][:, split : split + len(ids)]
    with hooked(module, lambda output: with_first_state(output, own)):
        return answer(model, task, input_ids=ids[None])[0]


def ends(model, ids):
    """Whether a text ends with what the model names as the end token. (Two models in one may name none.)"""
    return ids[-1] == EOS and EOS in (
        getattr(c, "eos_token_id", None) for c in (model.config, getattr(model.get_encoder(), "config", None))
    )


def end_of_layers(model, ids):
    """The outermost module inside of the base model that gives its last hidden states; the base model, if none does."""
    base, seen = model.base_model, []

    def note(name, module, output):
        seen.append((name.count("."), module, first_state(output)))

    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, module in base.named_modules():
            stack.enter_context(hooked(module, functools.partial(note, name, module)))
        last = first_state(base(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True))
    inside = [(depth, module) for depth, module, state in seen if state is last and module is not base]
    found = min(inside, key=lambda found: found[0])[1] if inside else base
    with hooked(found, lambda output: with_first_state(output, 0 * last)), torch.no_grad():
        changed = first_state(base(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True))
    return base if changed.any() else found  # DeBERTa takes them from the list of all layers' states


@contextlib.contextmanager
def hooked(module, change):
    """While this is open, ``change(output)`` sees the module's output; what it returns, if anything, stands for it."""
    handle = module.register_forward_hook(lambda module, arguments, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def first_state(output):
    """The first tensor of a module's output."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, tuple | list):
        return output[0] if len(output) else None
    return next(iter(output.values()), None) if hasattr(output, "values") else None


def with_first_state(output, state):
    """The output with another first tensor."""
    if isinstance(output, torch.Tensor):
        return state
    if hasattr(output, "_replace"):  # a named tuple (Reformer)
        return output._replace(**{output._fields[0]: state})
    if isinstance(output, tuple | list):
        return type(output)((state, *output[1:]))
    output[next(iter(output))] = state
    return output


class NoRows(Exception):
    """The model has no vectors that stand for word ids: embedded words give another answer than their ids."""


def rows_of(model, task, ids, tolerance=1e-5):
    """The vectors (n, d) of word ids (n,) as the model itself embeds them, before positions.

    With them as ``inputs_embeds`` the model answers as with the ids. Most models look words up in a table. Some multiply
    what they looked up, and only that (Marian): then one of the model's own factors makes both the same.

    Raises
    ------
    NoRows : there are no such vectors, or words near them are not read (gemma4 looks the id of each vector up).
    """
    end = [EOS] if model.config.is_encoder_decoder else []  # some classifiers read at the end token
    text = torch.cat([ids, torch.tensor(end, dtype=torch.long)])[None]
    want, nearest = answer(model, task, input_ids=text), float("inf")
    try:
        table = model.get_input_embeddings()(text).detach()
        for factor in (1.0, *factors_of(model)):
            rows = factor * table
            got = answer(model, task, inputs_embeds=rows.clone())  # CTRL multiplies in place
            nearest = min(nearest, difference(got, want))
            if nearest < tolerance:
                noise = 1e-6 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
                near = difference(answer(model, task, inputs_embeds=rows + noise.to(rows)), want)
                if near > 1e-2:
                    raise NoRows(f"vectors near to words differ from them by {near:.2g}")
                return rows[0, : len(ids)]
    except NoRows:
        raise
    except Exception as error:
        raise NoRows(f"it does not take inputs_embeds: {type(error).__name__}: {error}") from error
    raise NoRows(f"embedded words differ from their ids by {nearest:.2g}")


def factors_of(model):
    """Numbers by which a model may multiply its words: what its modules and config call a scale or multiplier."""
    found = {WIDTH**0.5}
    for owner in (*model.modules(), model.config):
        for name, value in vars(owner).items():
            if ("scale" in name or "multiplier" in name) and isinstance(value, int | float):
                found.add(float(value))
    return sorted(found - {0.0, 1.0})


def difference(got, want):
    """The greatest difference, relative to the greatest value; infinite for another shape or what is no number."""
    if got.shape != want.shape:
        return float("inf")
    found = ((got - want).abs().max() / want.abs().max().clamp(min=1e-9)).item()
    return found if found == found else float("inf")


def texts(eos, lengths=(7, 5), seed=0):
    """Random texts (T,) of words, ending with the end token or not."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(8, VOCABULARY, (length,), generator=generator) for length in lengths]
    return [torch.cat([row[:-1], torch.tensor([EOS])]) if eos else row for row in rows]


def padded(rows, side):
    """Ids and mask (B, T) of texts, padded on a side."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        where = slice(0, len(tokens)) if side == "right" else slice(width - len(tokens), width)
        ids[row, where], mask[row, where] = tokens, 1
    return ids, mask
