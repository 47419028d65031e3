"""Attention with a prompt, twice: in torch, to compare with real models, and in sympy, where an identity is exact.

The keys of a row fall into segments: the prompt BEFORE the input, the INPUT, the prompt AFTER it. The functions in
torch are free of parameters; the functions named ``symbolic_...`` return sympy expressions for sequences of any size.
Built in chapter 03.

order     which row of a prompted sequence is what
biases    what is added to scores, and what turns queries and keys
parts     attention, and what falls on each segment
models    the attention of a real model
symbolic  the same in exact symbols
"""

from dplearn.theory.attention.biases import (
    bucket_edges,
    causal_bias,
    offsets,
    padding_bias,
    relative_bias,
    relative_buckets,
    rotate,
)
from dplearn.theory.attention.models import (
    Layer,
    decomposition_error,
    gates_from_maps,
    jacobian_blocks,
    layer_gates,
    mean_gates,
    recording,
)
from dplearn.theory.attention.order import (
    AFTER,
    BEFORE,
    INPUT,
    arrangement,
    segments,
    segments_of,
)
from dplearn.theory.attention.parts import (
    Parts,
    attend,
    combine,
    content_free_gates,
    decompose,
    gates,
    multihead,
    rebracket,
    scores,
    within,
)
from dplearn.theory.attention.symbolic import (
    Symbols,
    difference,
    symbolic_attend,
    symbolic_bias,
    symbolic_content_free,
    symbolic_decomposition,
    symbolic_gates,
    symbolic_key_ratio,
    symbolic_multihead,
    symbolic_parts,
    symbolic_rebracketing,
    symbolic_row,
    symbols,
)

__all__ = [
    "AFTER",
    "BEFORE",
    "INPUT",
    "Layer",
    "Parts",
    "Symbols",
    "arrangement",
    "attend",
    "bucket_edges",
    "causal_bias",
    "combine",
    "content_free_gates",
    "decompose",
    "decomposition_error",
    "difference",
    "gates",
    "gates_from_maps",
    "jacobian_blocks",
    "layer_gates",
    "mean_gates",
    "multihead",
    "offsets",
    "padding_bias",
    "rebracket",
    "recording",
    "relative_bias",
    "relative_buckets",
    "rotate",
    "scores",
    "segments",
    "segments_of",
    "symbolic_attend",
    "symbolic_bias",
    "symbolic_content_free",
    "symbolic_decomposition",
    "symbolic_gates",
    "symbolic_key_ratio",
    "symbolic_multihead",
    "symbolic_parts",
    "symbolic_rebracketing",
    "symbolic_row",
    "symbols",
    "within",
]
