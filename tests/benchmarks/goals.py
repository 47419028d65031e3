"""Every figure of the benchmarks with its goal: what `run.py` may report and what the page of the book expects.

This file imports nothing but the standard library: the book is built without running anything. A ratio "a / b" is the
time of a over the time of b. Symbols: B instances in a batch, T input tokens, l prompt vectors, d width of the model.
"""

from typing import NamedTuple

SHAPES = ((32, 256, 20, 768), (8, 128, 20, 512), (8, 480, 20, 1024), (32, 64, 100, 768))  # (B, T, l, d)
MAIN = SHAPES[0]  # the shape that the goals on time name
OTHERS = {
    "fixed_cat": "fixed prefix by torch.cat",
    "mixing_matrix": "one mixing matrix per instance",
    "all_candidates": "all l+1 candidates at once",
    "careful_loop": "a careful loop over instances",
    "papers_loop": "loops in the authors' manner",
}
LENGTHS = (20, 100)
ESTIMATORS = ("straight-through", "position-space", "score-function", "exact")
CLASSES = (10, 50)  # of CLIP
# What is spared on CLIP: (shortcuts, whether images are kept) of each way, and the goals for 50 classes.
CLIP_SHORTCUTS = {
    "none": (((), False), None),
    "truncated": ((("truncate",), False), 0.55),
    "cached": (((), True), None),
    "cached truncated": ((("truncate",), True), 0.25),
    "cached truncated shared": ((("truncate", "share"), True), 0.10),
}


class Figure(NamedTuple):
    """One number: its name in the record, what it says, and the most (or the least) that it should be."""

    name: str
    words: str
    goal: float | None = None
    at_least: bool = False


class Group(NamedTuple):
    """Figures that one module measures, with its function ``measure(report, quick, pairs)``."""

    title: str
    module: str
    figures: tuple[Figure, ...]


def holds(value: float, goal: float | None, at_least: bool = False) -> bool | None:
    """Whether a value reaches its goal, the goal itself included; None without a goal. What is not a number fails.

    >>> holds(1.05, 1.05), holds(1.06, 1.05), holds(15, 15, at_least=True), holds(3, None)
    (True, False, True, None)
    """
    if goal is None:
        return None
    return bool(value >= goal if at_least else value <= goal)


def bound(figure: Figure) -> str:
    """The goal in signs, or "" without one."""
    return "" if figure.goal is None else f"{'≥' if figure.at_least else '≤'} {figure.goal:g}"


def number(value: float) -> str:
    """Three digits, and whole numbers from 1000 on.

    >>> number(1.0345), number(1234.5), number(4e-14)
    ('1.03', '1234', '4e-14')
    """
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def at(shape: tuple[int, ...]) -> str:
    """The shape in words."""
    return "B={}, T={}, l={}, d={}".format(*shape)


def _insertion():
    yield Figure(
        "error", "largest relative difference to the loop in float64, output and all gradients", 1e-12
    )
    yield Figure("operations", "operations beyond those of torch.cat, T ≤ 64", 80)
    yield Figure("operations change", "change of that number with B and l", 0)
    yield Figure("reads", "times that the host waits for a value of a tensor", 0)
    yield Figure("one graph", "one graph under torch.compile(fullgraph=True), 1 = yes", 1, True)
    for shape in SHAPES:
        main = shape == MAIN
        yield Figure(
            f"time operator/fixed_cat {shape}",
            f"time, operator / {OTHERS['fixed_cat']}; {at(shape)}",
        )
        for other in list(OTHERS)[1:]:
            goal = 15 if main and other == "all_candidates" else None
            words = f"time, {OTHERS[other]} / operator; {at(shape)}"
            yield Figure(f"time {other}/operator {shape}", words, goal, True)
    for shape in SHAPES:
        words = f"peak memory in outputs, operator; {at(shape)}"
        yield Figure(f"peak operator {shape}", words, 1.35 if shape[2] == 20 else 2.5)
        for other, text in OTHERS.items():
            yield Figure(f"peak {other} {shape}", f"peak memory in outputs, {text}; {at(shape)}")


def _steps():
    for l in LENGTHS:
        yield Figure(f"peft/fixed l={l}", f"PEFT prompt tuning / fixed prompt; l={l}")
        for way, words in {
            "prefix": "our prefix",
            "task": "position per task, straight-through",
            "instance": "position per instance, straight-through",
            "unified": "position, size and vector per instance, straight-through",
        }.items():
            yield Figure(f"{way}/fixed l={l}", f"{words} / fixed prompt; l={l}", 1.05)
        yield Figure(f"instance/peft l={l}", f"position per instance / PEFT prompt tuning; l={l}", 1.05)
        words = "position per instance from the encoder, one more frozen pass / fixed prompt"
        yield Figure(f"encoder/fixed l={l}", f"{words}; l={l}")
        words = "the authors' two passes and loops / position per instance"
        yield Figure(f"authors/instance l={l}", f"{words}; l={l}", 1.4 if l == 20 else None, True)
        words = "the operator alone, forward and backward / a step with a position per instance"
        yield Figure(f"operator/instance l={l}", f"{words}; l={l}", 0.02)
        yield Figure(f"frozen l={l}", f"frozen weights that got a gradient in all of these; l={l}", 0)


def _models():
    for kind, words in {"gpt2": "GPT-2", "bert": "BERT"}.items():
        yield Figure(f"{kind} instance/fixed", f"{words}: position per instance / fixed prompt", 1.05)
        yield Figure(f"{kind} frozen", f"{words}: frozen weights that got a gradient", 0)


def _vit():
    for way, words in {
        "prefix": "our fixed prefix",
        "pool": "a pool of 4 prompts mixed for each image",
        "before": "position per instance in front of the position vectors",
        "after": "position per instance behind the position vectors",
    }.items():
        yield Figure(f"{way}/VPT-shallow", f"{words} / VPT-shallow by hand", 1.05)
    yield Figure("deep/VPT-deep", "our fixed prefix in every layer / VPT-deep by hand", 1.05)
    yield Figure("frozen", "frozen weights that got a gradient in all of these", 0)


def _clip():
    words = {
        "none": "our prefix, nothing spared",
        "truncated": "our prefix, texts cut behind the longest",
        "cached": "our prefix, image features kept",
        "cached truncated": "our prefix, image features kept, texts cut",
        "cached truncated shared": "our prefix, image features kept, texts cut, what they share computed once",
    }
    learned = {"task": "position per task", "class": "position per class"}
    for count in CLASSES:
        yield Figure(
            f"images alone/CoOp {count}", f"the images alone, forward / CoOp's step; {count} classes"
        )
        yield Figure(
            f"texts alone/CoOp {count}", f"CoOp's step without the image tower / CoOp's step; {count} classes"
        )
        for way, (_, goal) in CLIP_SHORTCUTS.items():
            goal = goal if count == 50 else None
            yield Figure(f"{way}/CoOp {count}", f"{words[way]} / CoOp's step; {count} classes", goal)
        for way, text in learned.items():
            text = f"{text}, image features kept, texts cut"
            yield Figure(f"{way}/CoOp {count}", f"{text} / CoOp's step; {count} classes")
        for way, text in learned.items():
            other = "the fixed prefix with the same savings"
            yield Figure(f"{way}/cached truncated {count}", f"{text} / {other}; {count} classes", 1.05)
        text = "largest relative difference of the logits, all savings / none"
        yield Figure(f"difference {count}", f"{text}; {count} classes", 1e-5)
    yield Figure("image plain/CoCoOp", "a mixture for each image, nothing spared / CoCoOp's loop; 10 classes")
    text = "a mixture for each image, texts cut, what they share computed once / CoCoOp's loop; 10 classes"
    yield Figure("image/CoCoOp", text)
    text = "largest relative difference of the logits, all savings / none; a mixture for each image"
    yield Figure("difference image", text, 1e-5)
    yield Figure("frozen", "frozen weights that got a gradient in all of these", 0)


def _length():
    yield Figure("dropped/masked T=64", "dropping 80 of 100 vectors / masking them; T=64", 0.60)
    yield Figure("dropped/masked T=128", "dropping 80 of 100 vectors / masking them; T=128")
    yield Figure("difference", "largest relative difference of the logits of the two", 1e-4)


def _padding():
    words = {
        "longest": "padded to the longest input of all",
        "dynamic": "padded to the longest of each batch",
        "grouped": "the same with inputs of like length in a batch",
    }
    for way in ("dynamic", "grouped"):
        yield Figure(f"{way}/longest", f"time of one epoch, {words[way]} / {words['longest']}")
    for way, text in words.items():
        yield Figure(f"padding {way}", f"share of padding among the input tokens, {text}")


def _estimators():
    for name in ESTIMATORS:
        yield Figure(f"{name}/fixed", f"position per instance, {name} / fixed prompt; l=20")
    words = "position per instance, score-function, one split with probability 0.9 / fixed prompt; l=20"
    yield Figure("score-function settled/fixed", words, 2.2)


GRADIENT_KINDS = {"t5": "T5", "bert": "BERT", "gpt2": "GPT-2", "llama": "Llama"}


def _gradients():
    for kind, words in GRADIENT_KINDS.items():
        for name in ESTIMATORS[:-1]:
            yield Figure(f"{kind} {name} cosine", f"{words}, {name}: cosine")
            yield Figure(f"{kind} {name} noise", f"{words}, {name}: noise")


KEPT = {64: 0.40, 128: 0.22, 256: 0.13}  # T -> the goal of a step on kept inputs


def _kept():
    for T, goal in KEPT.items():
        yield Figure(f"kept/prefix T={T}", f"postfix on kept inputs / our prefix; T={T}, l=20", goal)
        yield Figure(f"kept/postfix T={T}", f"postfix on kept inputs / the same without; T={T}, l=20")
        yield Figure(f"tokens/s T={T}", f"input tokens per second of CPU time in these steps; T={T}")
        words = "postfix whose input runs without gradient / the same with"
        yield Figure(f"front/postfix T={T}", f"{words}; T={T}, l=20")
        yield Figure(f"kept/peft T={T}", f"postfix on kept inputs / PEFT prompt tuning; T={T}, l=20")
        yield Figure(
            f"difference T={T}", f"largest relative difference of the gradient, kept / not; T={T}", 1e-4
        )
    yield Figure("bytes", "bytes that keys and values of one token take")
    yield Figure("frozen", "frozen weights that got a gradient in all of these", 0)


SERVED, SERVED_TOKENS, NEW_TOKENS = (1, 4, 16), 128, 8  # prompts on one input, T, tokens that are generated


def _serving():
    for count in SERVED:
        words = f"{count} prompts on one input, keeping it included / one full pass; T={SERVED_TOKENS}, l=20"
        goal = 1 + 1.2 * count * 20 / (SERVED_TOKENS + 20)
        yield Figure(f"{count} prompts/one", words, round(goal, 2) if count > 1 else None)
    yield Figure("difference", "largest relative difference of the answers, shared / not", 1e-4)
    words = f"{NEW_TOKENS} new tokens behind a prefix that is kept / not; T={SERVED_TOKENS}, l=20"
    yield Figure("prefix kept/not", words)
    yield Figure("other tokens", "new tokens that differ between the two", 0)


PEFT_MODELS = {"t5": "T5-small", "llama": "Llama, 135M", "bert": "BERT-base"}
PEFT_WAYS = {
    "prefix": "our prefix",
    "instance": "position per instance",
    "pool": "a pool of 4 prompts mixed for each input",
}


def _peft():
    for kind, model in PEFT_MODELS.items():
        for way, words in PEFT_WAYS.items():
            goal = 1.02 if way == "prefix" else 1.05
            yield Figure(f"{kind} {way}/peft", f"{model}: {words} / PEFT prompt tuning; l=20", goal)
        yield Figure(f"{kind} frozen", f"{model}: frozen weights that got a gradient", 0)


def _importing():
    yield Figure("dplearn/torch", "`import dplearn` / `import torch`", 1.25)
    yield Figure("dplearn/torch, transformers", "`import dplearn` / `import torch, transformers`", 1.05)


GPU_T5 = ("base", "large", "xl")  # of v1.1


def _gpu():
    yield Figure("operator ms", f"the insertion operator, forward and backward, ms; {at(MAIN)}", 0.5)
    words = {"prefix": "our fixed prefix", "before": "position per image in front of the position vectors"}
    for way, text in words.items():
        yield Figure(f"vit {way}/VPT", f"ViT-B/16, B=64: {text} / VPT-shallow by hand", 1.05)
    yield Figure("clip plain/CoOp", "CLIP ViT-B/16, 50 classes: our prefix, nothing spared / CoOp's step")
    yield Figure(
        "clip spared/CoOp", "CLIP ViT-B/16, 50 classes: our prefix, everything spared / CoOp's step", 0.10
    )
    yield Figure("llama prefix ms", "Llama, 1.2B, B=8, T=256: a step with a prefix, ms")
    yield Figure("llama kept/prefix", "Llama, 1.2B, B=8, T=256: postfix on kept inputs / prefix", KEPT[256])
    words = "postfix whose input runs without gradient / the same with"
    yield Figure("llama front/postfix", f"Llama, 1.2B, B=8, T=256: {words}")
    for size, goal in zip(GPU_T5, (16, 45, 160)):
        model = f"T5 v1.1 {size}, B=32, T=256"
        yield Figure(f"t5 {size} ms", f"{model}: a step with a position per instance, ms", goal)
        yield Figure(f"t5 {size} memory", f"{model}: peak memory of it, GiB")
        yield Figure(f"t5 {size} MFU", f"{model}: share of the device's FLOP/s that it uses")
        yield Figure(f"t5 {size} instance/fixed", f"{model}: position per instance / fixed prompt", 1.05)
        if size == "base":
            yield Figure("t5 base compiled ms", f"{model}: the same step compiled, ms", 12)


GPU_GROUP = Group("On a GPU", "gpu", tuple(_gpu()))  # by its own script, on a machine that has one

GROUPS = {
    "insertion": Group("The insertion operator", "bench_insertion", tuple(_insertion())),
    "steps": Group("A training step", "bench_steps", tuple(_steps())),
    "models": Group("Other kinds of models", "bench_models", tuple(_models())),
    "vit": Group("Images", "bench_vit", tuple(_vit())),
    "clip": Group("Images and texts", "bench_clip", tuple(_clip())),
    "length": Group("Unused vectors", "bench_length", tuple(_length())),
    "padding": Group("Padding", "bench_padding", tuple(_padding())),
    "kept": Group("Kept inputs", "bench_kept", tuple(_kept())),
    "serving": Group("Several prompts on one input", "bench_serving", tuple(_serving())),
    "peft": Group("Beside PEFT", "bench_peft", tuple(_peft())),
    "estimators": Group("Estimators of the position's gradient", "bench_estimators", tuple(_estimators())),
    "gradients": Group("What the estimators find", "bench_gradients", tuple(_gradients())),
    "importing": Group("Importing the package", "bench_importing", tuple(_importing())),
}


def group(name: str) -> Group:
    """The group of a name, that of the GPU's script included."""
    return GPU_GROUP if name == "gpu" else GROUPS[name]
