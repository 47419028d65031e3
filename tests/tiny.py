"""Small random models of the supported kinds, for tests: real transformers classes, no download."""

import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

WIDTH, VOCABULARY, EOS, PAD = 16, 60, 1, 0


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
