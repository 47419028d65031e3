"""Steps of full-size models on a GPU: python tests/benchmarks/gpu.py [--minutes 7] [--tiny] [--out FILE.json]

T5 v1.1 base, large and XL, ViT-B/16, CLIP ViT-B/16 and a Llama of 1.2 billion parameters, all with random weights in
bfloat16: nothing is downloaded. Prints each figure as it comes and writes the record after each, so that a run that is
stopped keeps what it has. Figures for which no time is left, or for which the memory is too small, are skipped and say
so. With --tiny all models are small ones, on whatever device there is: it shows that the script runs, and no more.
"""

import argparse
import gc
import json
import os
import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import bench_clip
import bench_vit
import torch
from bench_kept import make_llama
from bench_steps import ONE_PASS, FixedPrompt, Shape, make_batch, make_step
from goals import GPU_GROUP, GPU_T5, GROUPS
from measure import Report

import dplearn as dp

os.environ.setdefault("HF_HUB_OFFLINE", "1")

LENGTH = 20
# B, T, d, heads, inner width, layers of each stack; T5 v1.1 has heads of 64 numbers whatever d is.
T5_SHAPES = {
    "base": Shape(32, 256, 768, 12, 2048, 12),
    "large": Shape(32, 256, 1024, 16, 2816, 24),
    "xl": Shape(32, 256, 2048, 32, 5120, 24),
}
TINY = Shape(2, 24, 32, 2, 64, 2)
LLAMA = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
             num_key_value_heads=8)  # fmt: skip
TINY_LLAMA = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3,
                  num_key_value_heads=3)  # fmt: skip
CLIP_CLASSES = 50
PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}  # bfloat16 FLOP/s, dense, by their makers


class Place(NamedTuple):
    """Where and how large everything runs."""

    device: torch.device
    dtype: torch.dtype
    tiny: bool

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def peak(self) -> float | None:
        """The most FLOP/s that the device can do, where that is known."""
        if self.device.type != "cuda":
            return None
        return next((peak for name, peak in PEAKS.items() if name in torch.cuda.get_device_name()), None)


class Written(Report):
    """A report that is on disk after each figure."""

    def __init__(self, place: Place, write, seconds: float):
        super().__init__("gpu", place.tiny)
        self.place, self.write, self.end = place, write, time.perf_counter() + seconds

    def add(self, name: str, value: float, **more) -> None:
        super().add(name, value, **more)
        self.write(self.figures)

    def skip(self, name: str, reason: str) -> None:
        super().skip(name, reason)
        self.write(self.figures)


def seconds_of(place: Place, step, repeats: int) -> list[float]:
    """Seconds of each of so many calls, of which the first three are not counted."""
    return [seconds_of_one(place, step) for _ in range(repeats + 3)][3:]


def in_turn(place: Place, first, second, repeats: int = 12) -> dict:
    """time(first) / time(second) of calls that take turns: median and quartiles over the pairs."""
    for step in (first, second) * 3:
        step()
    pairs = [[seconds_of_one(place, step) for step in (first, second)] for _ in range(repeats)]
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4, method="inclusive")
    return {"value": middle, "low": low, "high": high, "pairs": repeats,
            "best": min(a for a, _ in pairs) / min(b for _, b in pairs),
            "ms": [1e3 * statistics.median(column) for column in zip(*pairs)]}  # fmt: skip


def seconds_of_one(place: Place, step) -> float:
    place.wait()
    start = time.perf_counter()
    step()
    place.wait()
    return time.perf_counter() - start


def moved(batch: dict, place: Place) -> dict:
    """A batch on the device, its pixels in the dtype of the model."""
    return {
        name: value.to(place.device, place.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
    }


@contextmanager
def built_on(place: Place):
    """Models that are made inside are made on the device and in the dtype."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(place.dtype)
    try:
        with place.device:
            yield
    finally:
        torch.set_default_dtype(usual)


def make_t5(shape: Shape):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=32128, d_model=shape.dim, d_kv=64, d_ff=shape.inner, num_layers=shape.layers,
        num_decoder_layers=shape.layers, num_heads=shape.heads, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def flop_of_a_step(model, shape: Shape) -> float:
    """Of the encoder, which has nearly all rows: a frozen weight takes 4 for each row (forward, and the gradient of the
    activations), attention 12 for each pair of rows, layer and inner unit."""
    rows = shape.seq + LENGTH
    weights = sum(p.numel() for p in model.get_encoder().block.parameters())
    return shape.batch * rows * (4 * weights + 12 * rows * shape.heads * 64 * shape.layers)


def report_t5(report: Written, size: str) -> None:
    place, shape = report.place, TINY if report.place.tiny else T5_SHAPES[size]
    with built_on(place):
        backbone = make_t5(shape)
        fixed = FixedPrompt(backbone, torch.randn(LENGTH, shape.dim))
    batch = moved(make_batch(shape), place)
    model = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, position="instance", **ONE_PASS)).train()
    ours, theirs = make_step(model, batch), make_step(fixed.train(), batch)
    backbone.eval()
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = seconds_of(place, ours, 12)
    middle = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    report.add(f"t5 {size} ms", 1e3 * middle, low=1e3 * low, high=1e3 * high)
    if place.device.type == "cuda":
        report.add(f"t5 {size} memory", torch.cuda.max_memory_allocated() / 2**30)
    else:
        report.skip(f"t5 {size} memory", "no GPU")
    if place.peak is None:
        report.skip(f"t5 {size} MFU", "what the device can do is not known")
    else:
        report.add(f"t5 {size} MFU", flop_of_a_step(backbone, shape) / middle / place.peak)
    report.add(f"t5 {size} instance/fixed", **in_turn(place, ours, theirs))
    if size == "base":
        compiled = make_step(torch.compile(model, dynamic=False) if not place.tiny else model, batch)
        report.add("t5 base compiled ms", 1e3 * statistics.median(seconds_of(place, compiled, 12)))


def report_operator(report: Written) -> None:
    place = report.place
    B, T, l, d = (2, 16, 4, 32) if place.tiny else (32, 256, LENGTH, 768)
    with built_on(place):
        vectors, rows = torch.randn(l, d, requires_grad=True), torch.randn(B, T, d)
        weights = torch.eye(l + 1)[torch.randint(l + 1, (B,))].requires_grad_()
    mask = torch.ones(B, T, dtype=torch.long, device=place.device)

    def step():
        dp.insert_weighted(vectors, rows, mask, weights).embeds.sum().backward()

    report.add("operator ms", 1e3 * statistics.median(seconds_of(place, step, 30)))


def report_vit(report: Written) -> None:
    place = report.place
    shape = bench_vit.SMALL if place.tiny else bench_vit.Shape(64, 224, 16, 768, 12, 3072, 12)
    with built_on(place):
        backbone = bench_vit.make_vit(shape)
        theirs = bench_vit.HandWrittenVPT(backbone, torch.randn(1, LENGTH, shape.dim))
    batch = moved(bench_vit.make_batch(shape), place)
    other = make_step(theirs.train(), batch)
    for way in ("prefix", "before"):
        model = bench_vit.prompted(backbone, **bench_vit.ours(shape.layers)[way]).train()
        backbone.eval()
        report.add(f"vit {way}/VPT", **in_turn(place, make_step(model, batch), other))


def report_clip(report: Written) -> None:
    place = report.place
    shape = bench_clip.SMALL
    if not place.tiny:
        shape = bench_clip.Shape(32, 4, 224, 16, 77, (512, 8, 2048), (768, 12, 3072), 12, 512)
    with built_on(place):
        clip = bench_clip.make_clip(shape)
        vectors = torch.randn(bench_clip.LENGTH, shape.text[0]) * 0.02
    ids = bench_clip.make_texts(CLIP_CLASSES, shape.positions).to(place.device)
    batch = moved(bench_clip.make_images(shape, shape.batch, CLIP_CLASSES), place)
    coop = make_step(bench_clip.HandWrittenCoOp(clip, vectors, ids), batch)
    plain = bench_clip.prompted(clip, ids, ())
    fast = bench_clip.prompted(clip, ids, bench_clip.SHORTCUTS)
    report.add("clip plain/CoOp", **in_turn(place, make_step(plain, batch), coop))
    report.add("clip spared/CoOp", **in_turn(place, make_step(fast, bench_clip.cached(fast, batch)), coop))


def report_llama(report: Written) -> None:
    place = report.place
    batch_size, tokens, answer = (2, 24, 2) if place.tiny else (8, 256, 2)
    sizes = TINY_LLAMA if place.tiny else LLAMA
    with built_on(place):
        backbone = make_llama(place.tiny, **sizes, vocab_size=2048 if place.tiny else 128256)
    ids = torch.randint(3, 2000, (batch_size, tokens + answer), device=place.device)
    labels = ids.masked_fill(torch.arange(tokens + answer, device=place.device) < tokens, -100)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "keep_last": answer}
    config = dp.PromptConfig(length=LENGTH, position="postfix")
    kept, front, plain = (dp.prompted(backbone, config).train() for _ in range(3))
    prefix = dp.prompted(backbone, dp.PromptConfig(length=LENGTH)).train()
    plain.shortcuts = ()
    kept.cache_inputs(batch, verbose=False)
    steps = {name: make_step(model, batch) for name, model in
             {"kept": kept, "front": front, "postfix": plain, "prefix": prefix}.items()}  # fmt: skip
    report.add("llama prefix ms", 1e3 * statistics.median(seconds_of(place, steps["prefix"], 12)))
    for way in ("kept/prefix", "front/postfix"):
        report.add(f"llama {way}", **in_turn(place, *(steps[name] for name in way.split("/"))))


PARTS = {
    "operator": report_operator,
    "vit": report_vit,
    "clip": report_clip,
    "llama": report_llama,
    **{f"t5 {size}": lambda report, size=size: report_t5(report, size) for size in GPU_T5},
}


def measure(report: Written) -> None:
    """All figures, one part after the other; a part that fails is told and does not stop the others."""
    for name, part in PARTS.items():
        reason = "no time was left" if time.perf_counter() > report.end else None
        if reason is None:
            try:
                part(report)
            except torch.OutOfMemoryError:
                reason = "out of memory"
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        done = {figure["name"] for figure in report.figures}
        for figure in report.expected:
            if figure.startswith(f"{name} ") and figure not in done:
                report.skip(figure, reason or "not reached")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(prog="gpu.py", description=__doc__.split("\n\n")[1])
    parser.add_argument("--minutes", type=float, default=7, help="no part begins later than this (default 7)")
    parser.add_argument("--tiny", action="store_true", help="small models, on any device")
    parser.add_argument("--out", type=Path, help="the record to write (default: the package's, not if tiny)")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no GPU is there; --tiny runs small models on the CPU")
    from dplearn.experiments import records

    place = Place(
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        torch.float32 if options.tiny else torch.bfloat16,
        options.tiny,
    )
    out = options.out or (None if options.tiny else records.FOLDER / "benchmarks.json")
    command = f"python tests/benchmarks/gpu.py --minutes {options.minutes:g}" + " --tiny" * options.tiny
    others = json.loads(out.read_text())["rows"] if out is not None and out.is_file() else []
    start = time.perf_counter()

    def write(figures: list[dict]) -> None:
        if out is None:
            return
        row = {
            "group": "gpu",
            "quick": options.tiny,
            "seconds": round(time.perf_counter() - start, 1),
            "provenance": records.provenance(command) | {"peft": None},
            "figures": figures,
        }
        rows = {each["group"]: each for each in others} | {"gpu": row}
        records.save(out, [rows[name] for name in (*GROUPS, "gpu") if name in rows], command)

    torch.manual_seed(0)
    print(f"== {GPU_GROUP.title}: {command}")
    report = Written(place, write, 60 * options.minutes)
    measure(report)
    report.check_complete()


if __name__ == "__main__":
    main()
