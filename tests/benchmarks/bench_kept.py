"""A training step with a postfix on inputs whose keys and values are kept, against a step that runs the whole input.

The model is a random Llama of the shape of SmolLM2-135M; the vocabulary is cut to 2,048 words, as for the other steps.
Each of four inputs has T tokens and an answer of two. Keeping is done before, once for a data set, and is not in the
time.
"""

import torch
from bench_steps import EOS, VOCABULARY, frozen_with_gradient, make_step, peft_prompt
from goals import KEPT

import dplearn as dp

LENGTH, BATCH, ANSWER = 20, 4, 2


def make_llama(quick, **other):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9)
    if quick:
        sizes = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3)
    sizes |= dict(num_key_value_heads=3, vocab_size=VOCABULARY) | other
    config = LlamaConfig(bos_token_id=None, eos_token_id=EOS, pad_token_id=0, use_cache=False, **sizes)
    return LlamaForCausalLM(config).eval()


def make_batch(tokens):
    ids = torch.randint(3, VOCABULARY, (BATCH, tokens + ANSWER))
    answer = torch.arange(tokens + ANSWER) >= tokens
    labels = ids.where(answer, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def gradient(model, batch):
    return torch.autograd.grad(model(**batch).loss, model.prompt.vectors)[0]


def measure(report, quick, pairs):
    backbone = make_llama(quick)
    config = dp.PromptConfig(length=LENGTH, position="postfix")
    kept, front, plain = (dp.prompted(backbone, config).train() for _ in range(3))
    plain.shortcuts = ()
    prefix = dp.prompted(backbone, dp.PromptConfig(length=LENGTH)).train()
    theirs = peft_prompt(backbone, LENGTH, "CAUSAL_LM")
    for tokens in KEPT:
        batch = make_batch(tokens)
        ours = batch | {"keep_last": ANSWER}
        found = kept.cache_inputs(iter([ours]), verbose=False)
        steps = {
            name: make_step(model, ours)
            for name, model in (("kept", kept), ("front", front), ("postfix", plain))
        }
        steps |= {"prefix": make_step(prefix, ours)}
        kept.prompt.load_state_dict(plain.prompt.state_dict())
        one, other = gradient(kept, ours), gradient(plain, ours)
        report.add(f"difference T={tokens}", ((one - other).abs().max() / other.abs().max()).item())
        for name in ("prefix", "postfix"):
            report.ratio(f"kept/{name} T={tokens}", steps["kept"], steps[name], pairs)
        seconds = report.figures[-1]["ms"][0] / 1e3
        report.add(f"tokens/s T={tokens}", BATCH * tokens / seconds)
        report.ratio(f"front/postfix T={tokens}", steps["front"], steps["postfix"], pairs)
        if theirs is None:
            report.skip(f"kept/peft T={tokens}", "peft is not installed")
        else:
            theirs.train()
            backbone.eval()  # they share it: the same mode for all
            report.ratio(f"kept/peft T={tokens}", steps["kept"], make_step(theirs, batch), pairs)
    layers, mask = found.layers([next(iter(found.digests))], torch.device("cpu"))
    report.add("bytes", sum(layer.numel() for layer in layers) / mask.shape[1] * found.dtype.itemsize)
    report.add("frozen", frozen_with_gradient(backbone))
