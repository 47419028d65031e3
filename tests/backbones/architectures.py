"""Tiny random models of every text architecture that transformers' auto classes know: the table and the makers.

``ARCHITECTURES`` has one row for each name in the mappings of AutoModelForSeq2SeqLM, AutoModelForCausalLM and
AutoModelForSequenceClassification, and one more where an encoder can be made a decoder. ``build`` makes a model of a row
from a small config. What the plain model says about a text is in ``plain_answers.py``. Nothing here uses dplearn.
"""

import copy
from typing import NamedTuple

import torch
from torch import nn

VOCABULARY, WIDTH, LABELS = 64, 32, 3
PAD, EOS, BOS = 0, 1, 2


class Architecture(NamedTuple):
    """A row of the table."""

    name: str  # the model_type
    task: str  # "seq2seq", "causal" or "classification"
    kind: str  # the name of the class
    decoder: bool = False  # built with is_decoder=True

    def __str__(self):
        return f"{self.task}-{self.name}" + ("-as-decoder" if self.decoder else "")


def _table():
    from transformers.models.auto import modeling_auto

    mappings = {
        "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    masked = {*modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation"}
    encoders = masked - {"reformer", "xlm", *mappings["seq2seq"]}  # these as they come, and as decoders
    rows = []
    for task, names in mappings.items():
        for name, kinds in names.items():
            kind = kinds if isinstance(kinds, str) else kinds[0]
            rows.append(Architecture(name, task, kind))
            if task == "causal" and name in encoders:
                rows.append(Architecture(name, task, kind, decoder=True))
    return tuple(rows)


ARCHITECTURES = _table()

# Sizes by the names that configs use; a name that a config does not have is left out.
SIZES = dict(
    vocab_size=VOCABULARY, src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY, decoder_vocab_size=VOCABULARY,
    unpadded_vocab_size=VOCABULARY, vocab_size_per_layer_input=VOCABULARY, pad_token_id=PAD, eos_token_id=EOS,
    bos_token_id=BOS, decoder_start_token_id=BOS, sep_token_id=3, cls_token_id=BOS, mask_token_id=4, eod_token_id=EOS,
    pad_index=PAD, bos_index=BOS, eos_index=EOS, unk_index=3, mask_index=4,
    forced_eos_token_id=None, forced_bos_token_id=None, begin_suppress_tokens=None, num_labels=LABELS,
    # widths
    hidden_size=WIDTH, d_model=WIDTH, n_embd=WIDTH, dim=WIDTH, emb_dim=WIDTH, embedding_size=WIDTH, embedding_dim=WIDTH,
    word_embed_proj_dim=WIDTH, pooler_hidden_size=WIDTH, attention_hidden_size=WIDTH, lru_width=WIDTH,
    intermediate_size=48, ffn_dim=48, d_ff=48, d_inner=48, dim_ff=48, dff=48, hidden_dim=48, n_inner=48,
    encoder_ffn_dim=48, decoder_ffn_dim=48, ffn_hidden_size=48, moe_intermediate_size=16, feed_forward_size=48,
    shared_expert_intermediate_size=16, shared_experts_intermediate_size=16, moe_shared_expert_intermediate_size=16,
    shared_intermediate_size=16, dense_intermediate_size=48, intermediate_size_mlp=48, expert_ffn_hidden_size=16,
    bottleneck_size=16, intra_bottleneck_size=16, true_hidden_size=16, prediction_head_size=WIDTH,
    input_embedding_size=16, output_embedding_size=16, pronunciation_embed_dim=16, shape_embed_dim=16,
    pronunciation_vocab_size=VOCABULARY, shape_vocab_size=VOCABULARY, hidden_size_per_layer_input=8, laurel_rank=8,
    entity_vocab_size=8, entity_emb_size=8, type_vocab_size=2, router_hidden_size=16, gated_norm_rank=8,
    # depths
    encoder_layers=2, decoder_layers=2, num_encoder_layers=2, num_decoder_layers=2, n_layer=2, n_layers=2, num_layers=2,
    num_hidden_layers=2, num_blocks=2, num_layers_per_stack=1, num_nextn_predict_layers=0, num_sparse_encoder_layers=1,
    num_sparse_decoder_layers=1, encoder_sparse_step=2, max_window_layers=1,
    # heads
    num_attention_heads=4, num_key_value_heads=2, num_heads=4, n_head=4, n_heads=4, encoder_attention_heads=4,
    decoder_attention_heads=4, num_encoder_attention_heads=4, num_decoder_attention_heads=4, attention_heads=4,
    num_kv_heads=2, head_dim=8, d_kv=8, d_head=8, dim_head=8, kv_channels=8, global_head_dim=8, attention_head_size=8,
    swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, swa_v_head_dim=8, d_rel=4, rel_extent=16,
    attention_head_dim=16, num_query_groups=2, num_global_key_value_heads=2,
    qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, qk_head_dim=16, kv_lora_rank=16, q_lora_rank=16,
    o_lora_rank=16, o_groups=2, index_head_dim=16, index_n_heads=2, index_topk=64, rotary_dim=8,
    index_block_size=4, index_topk_blocks=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
    linear_value_head_dim=8, linear_head_dim=8, linear_num_heads=4,
    # experts
    num_experts=4, num_local_experts=4, n_routed_experts=4, moe_num_experts=4, num_experts_per_tok=2, moe_topk=2,
    moe_k=2, num_experts_per_token=2, n_shared_experts=1, num_shared_experts=1, moe_num_shared_experts=1, n_group=1,
    topk_group=1, num_expert_group=1, zero_expert_num=2, first_k_dense_replace=1, num_dense_layers=1,
    expert_capacity=64, scale_embedding=True, moe_layer_start_index=1, moe_layer_end_index=1,
    # state spaces
    state_size=8, time_step_rank=4, ssm_state_size=8, mamba_d_state=8, mamba_expand=2, mamba_d_ssm=WIDTH,
    mamba_n_heads=8, mamba_d_head=8, mamba_num_heads=8, mamba_head_dim=8, mamba_headdim=8, n_mamba_heads=2,
    mamba_dt_rank=4, mamba_n_groups=1, n_groups=1, mamba_ngroups=1, mamba_chunk_size=16, chunk_size=16, expand=2,
    # positions and windows
    max_position_embeddings=64, n_positions=64, n_ctx=64, max_seq_len=64, max_source_positions=64,
    max_target_positions=64, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64,
    original_max_position_embeddings=64, context_length=64, model_max_length=64, sliding_window=6,
    sliding_window_size=6, window_size=6, local_attention=6, attention_window=4, attention_window_size=6,
    attention_chunk_size=64, block_size=4, num_random_blocks=1, num_hash_buckets=64, keep_window_size=64,
    max_2d_position_embeddings=64, coordinate_size=4, shape_size=8, num_landmarks=4, segment_means_seq_len=64,
    # what is multiplied or left out at random
    initializer_range=0.4, init_std=0.4, initializer_factor=1.0,
)  # fmt: skip

# What single architectures need besides: model_type -> options; ``...`` takes a name of SIZES away.
_BERTS = dict(
    vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
)
_BERTS |= dict(
    max_position_embeddings=64, pad_token_id=PAD, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
)
_GEMMA = dict(
    vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, head_dim=8
)
_GEMMA |= dict(
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    sliding_window=6,
    pad_token_id=PAD,
)
_GEMMA |= dict(eos_token_id=EOS, bos_token_id=BOS, layer_types=["sliding_attention", "full_attention"])
SPECIAL: dict[str, dict] = {
    "axk2": dict(layer_types=...),
    "bamba": dict(attn_layer_indices=[1]),
    "dots3_note": dict(swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_q_lora_rank=16, swa_kv_lora_rank=16,
                       swa_head_dim=16, swa_qk_nope_head_dim=8, swa_v_head_dim=8),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=10000.0),
        ffn_config=dict(hidden_size=WIDTH, ffn_hidden_size=48, moe_num_experts=4, moe_top_k=2),
    ),
    "encoder-decoder": dict(
        encoder=dict(model_type="bert", **_BERTS),
        decoder=dict(model_type="bert", is_decoder=True, add_cross_attention=True, **_BERTS),
    ),
    "cohere_compass_text": dict(
        rope_parameters={
            kind: dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1])
            for kind in ("full_attention", "sliding_attention")
        }
    ),
    # Without relative attention these see no order.
    "deberta": dict(relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=16),
    "deberta-v2": dict(relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=16),
    "esmc": dict(num_key_value_heads=4),
    "falcon_h1": dict(mamba_n_heads=4),
    "funnel": dict(separate_cls=False),  # with it, texts shorter than its pooling fail in the plain model
    "gemma3n_text": dict(num_kv_shared_layers=0),
    "gemma4_text": dict(num_kv_shared_layers=0),
    "granitemoehybrid": dict(layer_types=["mamba", "attention"]),
    "hrm_text": dict(num_layers_per_stack=...),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"]),
    "lilt": dict(hidden_size=48),
    "mamba2": dict(num_heads=8),
    "mistral4": dict(head_dim=16),
    "nystromformer": dict(num_landmarks=64),
    "qwen4_exp": dict(ple_layer_ids=[1], heads_per_ngram=2, ngram_vocab_size_base=100, ple_embed_dim=32, split_ngram_parts=4,
                      make_ngram_vocab_size_divisible_by=4, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8,
                      indexer_budget=64, indexer_compress_ratio=4),
    "recurrent_gemma": dict(block_types=["recurrent", "attention"]),
    "reformer": dict(axial_pos_embds_dim=(16, 16), axial_pos_shape=(8, 8), attn_layers=["local", "lsh"], num_buckets=2,
                     hash_seed=0),
    "t5gemma": dict(encoder=_GEMMA, decoder=_GEMMA),
    "xlstm": dict(hidden_size=128, embedding_dim=128),  # its cache counts in multiples of 64
    "xmod": dict(languages=["en_XX"], default_language="en_XX"),
    "zamba": dict(attention_hidden_size=64, layers_block_type=["mamba", "hybrid", "hybrid"], num_hidden_layers=3),
    "zamba2": dict(attention_hidden_size=64, layers_block_type=["mamba", "hybrid", "hybrid"], num_hidden_layers=3, n_mamba_heads=8, chunk_size=16),
    "zaya": dict(num_experts_per_tok=1),
}  # fmt: skip
SPECIAL["qwen4_exp_text"] = SPECIAL["qwen4_exp"]
SPECIAL["dots3_note_text"] = SPECIAL["dots3_note"]

# Not text alone, whatever the mapping: why.
OTHER = {
    "blt": "it is four models in one: bytes are put together to patches by their entropy",
    "layoutlmv2": "it needs detectron2, and images",
    "markuplm": "with random weights its answer hardly depends on the order of words, so nothing could be seen",
    "musicgen": "its decoder reads several codebooks of sound",
    "musicgen_melody": "its decoder reads several codebooks of sound",
    "gemma4_assistant": "it drafts for another model, whose keys and values it reads",
    "perceiver": "its base model has no input_ids; latent vectors see all tokens at once",
    "gemma4_unified_assistant": "it drafts for another model, whose keys and values it reads",
    "vibevoice_asr": "not a text model: it has images or sound",
    "fuyu": "not a text model: it has images or sound",
    "t5gemma2": "not a text model: it has images or sound",
}


class NotBuilt(Exception):
    """Why there is no tiny model of an architecture."""


def build(architecture, seed=0):
    """A random model of an architecture in evaluation mode, its weights far from their first values.

    It is in float64; in float32 where the plain model cannot answer in float64.

    Raises
    ------
    NotBuilt : there is none, with the reason.
    """
    import transformers
    from plain_answers import answer

    if architecture.name in OTHER:
        raise NotBuilt(OTHER[architecture.name])
    reason = ""
    try:
        kind = getattr(transformers, architecture.kind)
        config = small_config(kind, architecture)
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in kind(copy.deepcopy(config)).parameters())
        if count > 3_000_000:
            raise NotBuilt(f"the small config still has {count} parameters")
        torch.manual_seed(seed)
        model = kind(config).eval()
        shake(model)
    except NotBuilt:
        raise
    except Exception as error:  # many kinds: each config has its own checks
        raise NotBuilt(f"no small config is known: {type(error).__name__}: {error}") from error
    text, mask = torch.tensor([[PAD, PAD, 8, 9, 8, 11, EOS]]), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    for dtype in (torch.float64, torch.float32):
        try:
            finite = answer(model.to(dtype), architecture.task, input_ids=text[:, 2:]).isfinite().all()
            # Eager attention that softens in float32 gives nan where a float64 mask hides all: padding on the left.
            padded = answer(model, architecture.task, input_ids=text, attention_mask=mask).isfinite().all()
            if finite and (padded or dtype == torch.float32):
                return model
            reason = "its answer is not finite"
        except Exception as error:  # many kinds: what the plain model cannot do is no fault of a prompt
            reason = f"{type(error).__name__}: {error}"
    raise NotBuilt(f"the plain model does not answer: {reason}")


def small_config(kind, architecture):
    """A config for a class with the sizes of ``SIZES`` where it has such names, and lists cut to a few layers."""
    config_class = _config_class(kind, architecture.name)
    usual, aliases = config_class().to_dict(), config_class.attribute_map
    if any(key in usual for key in ("vision_config", "audio_config", "audio_encoder", "encoder_config")):
        raise NotBuilt("not a text model: it has images or sound")
    options = {key: value for key, value in SIZES.items() if key in usual or key in aliases}
    for alias, key in aliases.items():  # never both names of one thing
        if alias in options and key in options:
            del options[alias]
    options |= _few_layers(usual)
    options |= {key: 0.0 for key, value in usual.items() if "dropout" in key and isinstance(value, float)}
    if usual.get("is_encoder_decoder"):
        options["decoder_start_token_id"] = BOS
    if "kv_lora_rank" in usual:  # latent attention has no groups
        options["num_key_value_heads"] = 4
    options |= SPECIAL.get(architecture.name, {})
    if architecture.decoder or str(architecture) == "causal-reformer":  # its language model is a decoder only
        options["is_decoder"] = True
    config = config_class(**{key: value for key, value in options.items() if value is not ...})
    config._experts_implementation = "eager"  # the others know no float64
    return config


def _config_class(kind, name):
    """A class's own config where it is not its model_type's (text classes of image models)."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own = getattr(kind, "config_class", None)
    return own if isinstance(own, type) else CONFIG_MAPPING[name]


def _few_layers(usual):
    """Lists with an item for each layer, cut to two to four layers that show each kind of layer once."""
    depth = usual.get("num_hidden_layers") or usual.get("num_layers")
    lists = {
        key: value
        for key, value in usual.items()
        if isinstance(value, list) and depth and len(value) == depth and key not in SIZES
    }
    if not lists:
        return {}
    first = {}
    for layer, values in enumerate(zip(*lists.values())):
        first.setdefault(str(values), layer)
    chosen = sorted(first.values())[:4]
    chosen = chosen if len(chosen) > 1 else [0, 1]
    names = [name for name in ("num_hidden_layers", "num_layers") if name in usual]
    return {key: [value[layer] for layer in chosen] for key, value in lists.items()} | dict.fromkeys(
        names, len(chosen)
    )


# State spaces and recurrences: values whose range is a part of the model.
DELICATE = ("A_log", "dt_bias", "dt_proj.bias", ".D", "time_decay", "time_first", "rg_lru.recurrent_param")


@torch.no_grad()
def shake(model):
    """Weights under which every token, position and layer matters."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not parameter.is_floating_point() or name.endswith(DELICATE):
            continue  # sinusoidal tables have no gradient
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.add_(0.2 * noise)
        elif "embed" in name or name.endswith(("wte.weight", "wpe.weight")):
            parameter.copy_(0.7 * noise)
        elif parameter.ndim == 2 or parameter.ndim == 3 and ("expert" in name or "mlp" in name):
            parameter.copy_(1.2 * max(parameter.shape[1], 2) ** -0.5 * noise)
        else:
            parameter.add_(0.2 * noise)
    for module in model.modules():
        if (
            isinstance(module, nn.Embedding)
            and module.padding_idx is not None
            and module.weight.requires_grad
        ):
            module.weight[module.padding_idx] = 0
