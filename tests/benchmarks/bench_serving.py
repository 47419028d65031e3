"""What is shared when a decoder-only model answers: the input by several prompts, a prefix by all inputs.

The model and its inputs are those of the kept inputs (bench_kept), without answers. Here the time of keeping is in the
figure: a request comes, its inputs run once, and each of the prompts answers to it.
"""

import torch
from bench_kept import BATCH, LENGTH, make_batch, make_llama
from goals import NEW_TOKENS, SERVED, SERVED_TOKENS

import dplearn as dp


@torch.no_grad()
def answers(model, names, batch):
    found = []
    for name in names:
        model.use_prompt(name)
        found.append(model(**batch, use_cache=False).logits[:, -1])
    return torch.stack(found)


def shared(model, names, batch):
    with model.cache_inputs(batch, verbose=False):
        return answers(model, names, batch)


def generation(model, batch, shortcuts):
    def run():
        model.shortcuts = shortcuts
        return model.generate(
            batch["input_ids"], batch["attention_mask"], do_sample=False, max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
        )  # fmt: skip

    return run


def measure(report, quick, pairs):
    backbone = make_llama(quick)
    backbone.generation_config.use_cache = True
    batch = make_batch(SERVED_TOKENS)
    del batch["labels"]
    model = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, position="postfix")).eval()
    names = ["default", *(f"prompt {number}" for number in range(1, max(SERVED)))]
    for name in names[1:]:
        model.add_prompt(name, dp.PromptConfig(length=LENGTH, position="postfix"))
    plain = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, position="postfix")).eval()
    plain.prompt.load_state_dict(model.prompt.state_dict())
    plain.shortcuts = ()
    for count in SERVED:
        report.ratio(
            f"{count} prompts/one",
            lambda count=count: shared(model, names[:count], batch),
            lambda: answers(plain, ["default"], batch),
            pairs,
        )
    one, other = shared(model, names[:1], batch), answers(plain, ["default"], batch)
    report.add("difference", ((one - other).abs().max() / other.abs().max()).item())
    prefix = dp.prompted(backbone, dp.PromptConfig(length=LENGTH)).eval()
    report.ratio(
        "prefix kept/not", generation(prefix, batch, ("prefix",)), generation(prefix, batch, ()), pairs
    )
    one, other = (generation(prefix, batch, shortcuts)() for shortcuts in (("prefix",), ()))
    report.add("other tokens", int((one != other).sum()))
    assert one.shape == (BATCH, NEW_TOKENS)
