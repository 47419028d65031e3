"""Small random models of the supported kinds, for tests: real transformers classes, no download."""

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    DistilBertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    SiglipConfig,
    SiglipModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

WIDTH, VOCABULARY, EOS, PAD = 16, 60, 1, 0
# Options with which a training step runs one sampled sequence for each input, and decisions start at random.
SAMPLED = {"controller_init": "uniform", "estimator": "straight-through"}


def t5(seed: int = 0, dropout: float = 0.0, dtype=torch.float64, **options):
    """A random T5 with 2 + 2 layers, in float64 with sdpa where it has it, in evaluation mode."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        decoder_start_token_id=PAD,
        dropout_rate=dropout,
        initializer_factor=1.0,
        **options,
    )
    model = T5ForConditionalGeneration(config).to(dtype).eval()
    with torch.no_grad():  # a fresh relative bias is small; a trained one is not
        for block in (model.encoder.block[0], model.decoder.block[0]):
            block.layer[0].SelfAttention.relative_attention_bias.weight.normal_(0, 1)
    return model


def flan_t5(seed: int = 0):
    """The gated, untied variant (T5 v1.1, Flan-T5, mT5)."""
    return t5(seed, feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def bart(seed: int = 0, dtype=torch.float64, **options):
    """A random BART with 2 + 2 layers and scaled embeddings."""
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        dropout=0.0,
        pad_token_id=PAD,
        bos_token_id=2,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
        scale_embedding=True,
        init_std=0.3,
        **options,
    )
    return BartForConditionalGeneration(config).to(dtype).eval()


def batch(lengths, seed: int = 0, side: str = "right", extra: int = 0, eos: bool = True):
    """Random token ids and mask for inputs of these lengths; each ends with EOS. ``extra`` adds padding columns."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) + extra
    ids, mask = torch.full((len(lengths), width), PAD), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens = torch.randint(3, VOCABULARY, (length,), generator=generator)
        if eos:
            tokens[-1] = EOS
        where = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, where], mask[row, where] = tokens, 1
    return ids, mask


# Options of all the models below. Positions and weights are far from zero, so that every row of the input matters.
SMALL = dict(vocab_size=VOCABULARY, initializer_range=0.4, pad_token_id=PAD)
LAYERS = dict(hidden_size=WIDTH, num_hidden_layers=2, intermediate_size=32, max_position_embeddings=64)


def finish(kind, config, seed: int, dtype):
    """A random model of a class, in evaluation mode."""
    torch.manual_seed(seed)
    return kind(config).to(dtype).eval()


def gpt2(kind=GPT2LMHeadModel, seed: int = 0, dtype=torch.float64, **options):
    """A random GPT-2: learned positions. It has no end token, so generation does not stop early."""
    size = dict(n_positions=64, n_embd=WIDTH, n_layer=2, n_head=2)
    end = dict(bos_token_id=None, eos_token_id=None)
    dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return finish(kind, GPT2Config(**SMALL | size | end | dropout | options), seed, dtype)


def llama(kind=LlamaForCausalLM, seed: int = 0, dtype=torch.float64, **options):
    """A random Llama: rotary positions, four heads that share two keys and values."""
    heads = dict(num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=None)
    return finish(kind, LlamaConfig(**SMALL | LAYERS | heads | options), seed, dtype)


def qwen2(kind=Qwen2ForCausalLM, seed: int = 0, dtype=torch.float64, **options):
    """A random Qwen2: as Llama, with biases."""
    heads = dict(num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=None)
    return finish(kind, Qwen2Config(**SMALL | LAYERS | heads | options), seed, dtype)


def bert(kind=BertModel, seed: int = 0, dtype=torch.float64, **options):
    """A random BERT: learned positions, token types, and a pooler that reads the first row."""
    dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return finish(
        kind, BertConfig(**SMALL | LAYERS | dict(num_attention_heads=2) | dropout | options), seed, dtype
    )


def roberta(kind, seed: int = 0, dtype=torch.float64, **options):
    """A random RoBERTa: positions count from ``PAD + 1``."""
    dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return finish(
        kind, RobertaConfig(**SMALL | LAYERS | dict(num_attention_heads=2) | dropout | options), seed, dtype
    )


def distilbert(kind, seed: int = 0, dtype=torch.float64, **options):
    """A random DistilBERT: learned positions, no token types, no pooler module."""
    size = dict(dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64)
    dropout = dict(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    return finish(kind, DistilBertConfig(**SMALL | size | dropout | options), seed, dtype)


# Vision transformers: images of 3 x 8 x 8 pixels in four patches, three layers, five classes.
IMAGES = dict(
    hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4, num_labels=5
)


def vision(kind, config, seed: int, dtype):
    """A random vision model in which no token, position, scale or norm is 0 or 1 by initialisation."""
    model = finish(kind, config, seed, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_token", "position_embeddings")):
                parameter.normal_(0, 1)
            elif parameter.ndim == 1:  # biases, norms, layer scales
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def vit(kind=ViTForImageClassification, seed: int = 0, dtype=torch.float64, **options):
    """A random ViT: [CLS] and patches, classified on [CLS]."""
    size = dict(intermediate_size=32, initializer_range=0.4)
    return vision(kind, ViTConfig(**IMAGES | size | options), seed, dtype)


def deit(kind=DeiTForImageClassification, seed: int = 0, dtype=torch.float64, **options):
    """A random DeiT: [CLS], a distillation token and patches, classified on [CLS] (or on both tokens)."""
    size = dict(intermediate_size=32, initializer_range=0.4)
    return vision(kind, DeiTConfig(**IMAGES | size | options), seed, dtype)


def dinov2(kind=Dinov2ForImageClassification, seed: int = 0, dtype=torch.float64, **options):
    """A random DINOv2: [CLS] and patches, classified on [CLS] and the mean of the patches."""
    size = dict(mlp_ratio=2, initializer_range=0.4)
    return vision(kind, Dinov2Config(**IMAGES | size | options), seed, dtype)


def images(count: int = 3, seed: int = 0, side: int = 8, dtype=torch.float64):
    """Random images, (count, 3, side, side)."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Image-text models: the text tower of width 16 has room for 24 positions, the images are as above with width 12.
TEXT = dict(
    vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
)
VISION = dict(
    hidden_size=12,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
)
ROOM, START, END = 24, VOCABULARY - 2, VOCABULARY - 1


def contrastive(kind, config, seed: int, dtype):
    """A random image-text model whose weights, positions and scales are far from their first values."""
    model = finish(kind, config, seed, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" in name or name.endswith("probe"):
                parameter.normal_(0, 1)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif parameter.ndim == 2:
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5)
        model.logit_scale.fill_(1.0)
    return model


def clip(kind=CLIPModel, seed: int = 0, dtype=torch.float64, old: bool = False, **options):
    """A random CLIP. ``old``: with the wrong numbers of special tokens of configurations before 4.31."""
    special = dict(bos_token_id=0, eos_token_id=2) if old else dict(bos_token_id=START, eos_token_id=END)
    text = TEXT | special | dict(max_position_embeddings=ROOM, pad_token_id=END)
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8, **options)
    return contrastive(kind, config, seed, dtype)


def siglip(kind=SiglipModel, seed: int = 0, dtype=torch.float64, **options):
    """A random SigLIP: no start token, the end token is the padding, no causal order, a pooling head over patches."""
    text = TEXT | dict(max_position_embeddings=ROOM, pad_token_id=EOS, eos_token_id=EOS, projection_size=12)
    return contrastive(kind, SiglipConfig(text_config=text, vision_config=VISION, **options), seed, dtype)


def texts(words, siglip: bool = False, side: str = "right", extra: int = 0, around=(0, ())):
    """Token ids and mask (None for SigLIP) of lists of word ids, with a prompt of word ids ``around`` = (k, vectors).

    CLIP: start token, words, end token, padding to the longest and ``extra`` more. SigLIP: words, then padding up to
    ``ROOM``.
    """
    split, vectors = around
    full = [[*vectors[:split], *row, *vectors[split:]] for row in words]
    if siglip:
        return torch.tensor([row + [EOS] * (ROOM - len(row)) for row in full]), None
    width = max(map(len, full)) + 2 + extra
    rows, masks = [], []
    for row in full:
        row, padding = [START, *row, END], [END] * (width - len(row) - 2)
        rows.append(row + padding if side == "right" else padding + row)
        real, hidden = [1] * len(row), [0] * len(padding)
        masks.append(real + hidden if side == "right" else hidden + real)
    return torch.tensor(rows), torch.tensor(masks)
