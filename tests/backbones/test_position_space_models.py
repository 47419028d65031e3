"""The position-space estimator on models of many kinds: the forward value is that of the inserted sequence, and the
gradient that of the mixture of position information, built by hand on the plain model; other kinds are refused.

The mixture is put into the plain model by hooks: position vectors, rotary angles, relative biases and masks that are
sums over all splits, which autograd differentiates.
"""

import math

import pytest
import spliced
import tiny
import torch
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import dplearn as dp
from dplearn.backbones.position_space import HIDDEN

CAUSAL, SEQ2SEQ, CLASSIFIER = AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
COMMON = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
COMMON |= dict(max_position_embeddings=64, **tiny.SMALL)
GPT = dict(n_embd=16, n_layer=2, n_head=2)
GROUPED = dict(num_key_value_heads=1, bos_token_id=1, eos_token_id=2)
HEADS = GROUPED | dict(head_dim=8)
T5 = dict(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
BART = dict(
    d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2
)
BART |= dict(encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_start_token_id=2, eos_token_id=2, bos_token_id=1)
SLIDING, FULL = "sliding_attention", "full_attention"
DISENTANGLED = dict(relative_attention=True, pos_att_type=["p2c", "c2p"])

# name -> class, model type, options, the window of each layer type (None: all layers see everything).
DECODERS = {
    "gpt2": ("gpt2", GPT, None),
    "llama": ("llama", GROUPED, None),
    "gpt_neox": ("gpt_neox", {}, None),
    "mistral": ("mistral", GROUPED | dict(sliding_window=4), 4),
    "phi3": ("phi3", GROUPED | dict(sliding_window=4), 4),
    "qwen2": (
        "qwen2",
        GROUPED | dict(use_sliding_window=True, sliding_window=3, max_window_layers=1),
        {FULL: None, SLIDING: 3},
    ),
    "gemma2": ("gemma2", HEADS | dict(sliding_window=3, query_pre_attn_scalar=8), {FULL: None, SLIDING: 3}),
    "gemma3": (
        "gemma3_text",
        HEADS | dict(sliding_window=3, layer_types=[SLIDING, FULL], query_pre_attn_scalar=8),
        {FULL: None, SLIDING: 3},
    ),
}
ENCODERS = {
    "bert": (CLASSIFIER, "bert", {}, "bert.embeddings.position_embeddings", 0),
    "roberta": (CLASSIFIER, "roberta", {}, "roberta.embeddings.position_embeddings", 1),
    "albert": (CLASSIFIER, "albert", dict(embedding_size=8), "albert.embeddings.position_embeddings", 0),
    "bart": (SEQ2SEQ, "bart", BART, "model.encoder.embed_positions", 2),
    "marian": (SEQ2SEQ, "marian", BART, "model.encoder.embed_positions", 0),
    "t5": (SEQ2SEQ, "t5", T5, None, 0),
    "umt5": (SEQ2SEQ, "umt5", T5, None, 0),
}
LENGTH, ROWS = 3, [[5, 9, 6, 20, 33], [40, 4, 8]]


def build(auto, kind, options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **COMMON | options)
    config._attn_implementation = "eager"
    return auto.from_config(config, attn_implementation="eager").double().eval()


def make(backbone, estimator):
    """A training model whose splits are decided, and the vectors, far from any word."""
    width = backbone.get_input_embeddings().weight.shape[1]
    vectors = torch.randn(LENGTH, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    config = dp.PromptConfig(length=LENGTH, position="task", estimator=estimator, controller_init="uniform")
    return dp.prompted(backbone, config, vectors=vectors).double().train(), vectors


def standing(row, split, now, behind):
    """Where the row of the sequence at split ``now`` stands at split ``split``: a list for each of T + l rows."""
    cut = len(row) - behind

    def sequence(k):
        tokens = [("x", t) for t in range(len(row))]
        vectors = [("p", j) for j in range(LENGTH)]
        return [*vectors[:k], *tokens[:cut], *vectors[k:], *tokens[cut:]]

    there = sequence(split)
    return [there.index(item) for item in sequence(now)]


def by_hand(backbone, vectors, row, now, behind, hooks):
    """The answer (S rows, or logits) of the plain model for the mixture, with its weights (K,) at split ``now``."""
    weights = torch.zeros(LENGTH + 1, dtype=torch.float64)
    weights[now] = 1
    weights.requires_grad_()
    at = torch.tensor([standing(row, k, now, behind) for k in range(LENGTH + 1)])  # (K, S)
    inputs = spliced.embedded(backbone, vectors.detach(), row, now, behind)
    return weights, hooks(weights, at, inputs)


def decided(model, row, **said):
    """Our answer for one input with the gradient to the weights of the splits: answer, moves."""
    ids = torch.tensor([row])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **said}
    given = {k: v for k, v in batch.items() if k not in ("keep_last",)}
    reading, summary, task, decisions = model._read(batch)
    placed = model._insert(reading, summary, task, decisions)
    placed.moves.weights.retain_grad()
    return model.adapter.run(placed, reading._replace(given=given)), placed


def visible(order, window):
    distance = order[:, None] - order[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def mixed_mask(weights, at, window):
    """log(sum_k w_k visible at k), (1, 1, S, S), with a floor."""
    seen = torch.stack([visible(order, window).double() for order in at])
    mixture = torch.einsum("k,kij->ij", weights, seen)
    return (mixture + HIDDEN * (mixture.detach() == 0)).log()[None, None]


def in_decoder(backbone, windows):
    """Hooks of a decoder: its position vectors or rotary angles, and the masks that its layers are given."""

    def run(weights, at, inputs):
        base = backbone.base_model
        usual, splits = {}, range(LENGTH + 1)
        if hasattr(base, "wpe"):
            change = lambda module, args, out: torch.einsum("k,ksd->sd", weights, module.weight[at])[None]  # noqa: E731
            handle = base.wpe.register_forward_hook(change)
        else:

            def change(module, args, options, out):
                kind = args[2:] if len(args) > 2 else ()
                options = {k: v for k, v in options.items() if k not in ("position_ids", "x")}
                each = [usual["forward"](args[0], at[k][None], *kind, **options) for k in splits]
                return tuple(sum(weights[k] * each[k][part] for k in splits) for part in (0, 1))

            usual["forward"] = type(base.rotary_emb).forward.__get__(base.rotary_emb)
            handle = base.rotary_emb.register_forward_hook(change, with_kwargs=True)
        mask = (
            {kind: mixed_mask(weights, at, window) for kind, window in windows.items()}
            if isinstance(windows, dict)
            else mixed_mask(weights, at, windows)
        )
        try:
            return base(
                inputs_embeds=inputs,
                attention_mask=mask,
                position_ids=torch.arange(inputs.shape[1])[None],
                use_cache=False,
            ).last_hidden_state[0]
        finally:
            handle.remove()

    return run


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("now", [0, 1, 3])
def test_a_decoders_gradient_is_that_of_the_mixture_by_hand(name, now):
    kind, options, windows = DECODERS[name]
    backbone = build(CAUSAL, kind, options)
    model, vectors = make(backbone, "position-space")
    fix(model, now)
    row, behind = ROWS[0], 1
    output, placed = decided(model, row, keep_last=behind)
    weights, states = by_hand(backbone, vectors, row, now, behind, in_decoder(backbone, windows))
    places = spliced_places(row, now, behind)
    wanted = backbone.get_output_embeddings()(states)
    if getattr(backbone.config, "final_logit_softcapping", None):
        cap = backbone.config.final_logit_softcapping
        wanted = (wanted / cap).tanh() * cap
    wanted = wanted[spliced.predicting(places, len(row) + LENGTH)]
    assert_close(output.logits[0], wanted, rtol=0, atol=1e-10)
    same_gradient(output.logits[0], placed, wanted, weights)


def spliced_places(row, split, behind):
    return spliced.splice(row, split, behind)[1]


def fix(model, now):
    """Logits that decide the split, whatever the noise: weights are one-hot and their gradient is looked at itself."""
    with torch.no_grad():
        model.prompt.position.controller.logits.zero_()
        model.prompt.position.controller.logits[0, now] = 80.0


def same_gradient(found, placed, wanted, weights):
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found * upstream).sum().backward()
    (wanted * upstream).sum().backward()
    assert weights.grad.abs().max() > 1e-3
    assert_close(
        placed.moves.weights.grad[0], weights.grad, rtol=1e-6, atol=1e-7 * weights.grad.abs().max()
    )  # softmax is in float32 there


def in_encoder(backbone, path, first):
    """Hooks of an encoder: its position vectors, or the biases of its layers."""

    def run(weights, at, inputs):
        encoder = backbone.get_encoder() if backbone.config.is_encoder_decoder else backbone.base_model
        undo = []
        if path is not None:
            table = backbone.get_submodule(path)
            mixture = torch.einsum("k,ksd->sd", weights, table.weight.detach()[at + first])[None]
            undo.append(table.register_forward_hook(lambda *_: mixture).remove)
        for module in encoder.modules() if path is None else ():
            if getattr(module, "has_relative_attention_bias", False):
                usual = module.compute_bias

                def mixed(*arguments, usual=usual, **options):
                    bias = usual(*arguments, **options)  # of offsets key - query, as rows stand
                    return sum(
                        w * bias[:, :, order][..., order] for w, order in zip(weights, at, strict=True)
                    )

                module.compute_bias = mixed
                undo.append(lambda module=module: module.__dict__.pop("compute_bias"))
        try:
            mask = torch.ones(inputs.shape[:2], dtype=torch.long)
            return encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state[0]
        finally:
            for function in undo:
                function()

    return run


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("now", [0, 1, 3])
def test_an_encoders_gradient_is_that_of_the_mixture_by_hand(name, now):
    auto, kind, options, path, first = ENCODERS[name]
    backbone = build(auto, kind, options)
    with torch.no_grad():  # fresh biases are small
        for parameter in backbone.parameters():
            if kind in ("t5", "umt5") and parameter.ndim == 2 and parameter.shape[0] == 32:
                parameter.normal_()
    model, vectors = make(backbone, "position-space")
    fix(model, now)
    row = ROWS[0]
    more = {"decoder_input_ids": torch.tensor([[2, 7]])} if auto is SEQ2SEQ else {}
    output, placed = decided(model, row, **more)
    weights, states = by_hand(backbone, vectors, row, now, 0, in_encoder(backbone, path, first))
    if auto is SEQ2SEQ:
        found, wanted = output.encoder_last_hidden_state[0], states
    else:
        first_row = spliced_places(row, now, 0)[0]
        found, wanted = output.logits, classified(backbone, states[None, first_row:])
    assert_close(found, wanted, rtol=0, atol=1e-10)
    same_gradient(found, placed, wanted, weights)


def classified(backbone, states):
    """What the classifier says about hidden states whose first row is that of the first token."""
    base, kind = backbone.base_model, backbone.config.model_type
    if kind == "bert":
        states = base.pooler(states)
    elif kind == "albert":
        states = base.pooler_activation(base.pooler(states[:, 0]))
    return backbone.classifier(states)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_the_forward_value_is_that_of_other_estimators_at_the_same_splits(name):
    """A batch with padding; rows of padding are nobody's."""
    auto, kind, options = (CAUSAL, *DECODERS[name][:2]) if name in DECODERS else ENCODERS[name][:3]
    backbone = build(auto, kind, options)
    ids, mask = spliced.padded(ROWS)
    said = {"keep_last": 1} if auto is CAUSAL else {}
    said |= {"labels": ids} if auto is SEQ2SEQ else {}
    answers = []
    for estimator in ("position-space", "straight-through"):
        model, _ = make(backbone, estimator)
        with torch.no_grad():
            model.prompt.position.controller.logits.copy_(torch.tensor([[0.1, 0.4, -0.2, 0.3]]))
        torch.manual_seed(5)
        answers.append(model(ids, mask, **said).logits)
    found, wanted = (answer[mask != 0] if auto is CAUSAL else answer for answer in answers)
    assert_close(found, wanted, rtol=0, atol=1e-12 * max(1, wanted.abs().max().item()))


@pytest.mark.parametrize(
    ("auto", "kind", "options", "reason"),
    [
        (
            CAUSAL,
            "gpt_neo",
            dict(num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]),
            "order",
        ),
        (CAUSAL, "falcon", dict(alibi=True), "position"),
        (CAUSAL, "opt", dict(ffn_dim=32, word_embed_proj_dim=16), "no position information that is known"),
        (CLASSIFIER, "mpnet", {}, "order"),
        (CLASSIFIER, "deberta-v2", DISENTANGLED | dict(position_biased_input=True), "order"),
        (
            CLASSIFIER,
            "deberta-v2",
            DISENTANGLED | dict(position_biased_input=False),
            "no position information",
        ),
        (CLASSIFIER, "deberta", DISENTANGLED, "order"),
        (CLASSIFIER, "roformer", {}, "no position information that is known"),
        (CLASSIFIER, "big_bird", {}, "blocks or windows"),
        (
            SEQ2SEQ,
            "led",
            BART
            | dict(
                attention_window=4, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64
            ),
            "blocks or windows",
        ),
        (SEQ2SEQ, "longt5", T5 | dict(local_radius=2), "position"),
        (SEQ2SEQ, "m2m_100", BART, "neither a relative bias nor learned positions"),
    ],
)
def test_other_kinds_are_refused_by_name(auto, kind, options, reason):
    """Their position information stands in more places than the one that is known, or in none that is."""
    torch.manual_seed(0)
    backbone = auto.from_config(AutoConfig.for_model(kind, **COMMON | options)).double().eval()
    with pytest.raises(
        ValueError, match=f"estimator='position-space' cannot be used: {type(backbone).__name__}.*{reason}"
    ):
        make(backbone, "position-space")


def test_the_floor_of_hidden_keys_is_what_the_tests_above_take_it_for():
    assert -60 < math.log(HIDDEN) < -50
