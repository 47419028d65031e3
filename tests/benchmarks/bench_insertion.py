"""Benchmark of the insertion operator: python tests/benchmarks/bench_insertion.py [--quick] [--out FILE.json]

Prints each figure next to its goal. Times are process CPU time on one thread, forward and backward with gradients
of prompt and weights (the inputs are frozen embeddings), as ratios of two ways that take turns: medians and
quartiles over the pairs, because a shared machine makes single times meaningless. Peak memory is what the allocator
hands out during one forward and backward, in units of the output. Pytest does not collect this file.
"""

import argparse
import importlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dplearn.insertion import insert, insert_weighted

MAIN = (32, 256, 20, 768)
SHAPES = [MAIN, (8, 128, 20, 512), (8, 480, 20, 1024), (32, 64, 100, 768)]  # (B, T, l, d)


def make_case(batch, seq, length, dim, dtype=torch.float32, device="cpu", inputs_grad=False):
    """Right-padded rows of random length, a shared prompt, one-hot weights, and a gradient for the output."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(seq // 2, seq + 1, (batch, 1), generator=generator)
    split = torch.randint(0, length + 1, (batch,), generator=generator)
    case = {
        "prompt": torch.randn(length, dim, generator=generator, dtype=dtype),
        "inputs": torch.randn(batch, seq, dim, generator=generator, dtype=dtype),
        "weights": torch.eye(length + 1, dtype=dtype)[split],
        "mask": (torch.arange(seq) < real).long(),
        "grad": torch.randn(batch, seq + length, dim, generator=generator, dtype=dtype),
    }
    case = SimpleNamespace(**{name: value.to(device) for name, value in case.items()})
    trained = [case.prompt, case.weights] + [case.inputs] * inputs_grad
    case.trained = [tensor.requires_grad_() for tensor in trained]
    return case


# ---- the ways to insert; each maps a case to the output (B, T+l, d) ------------------------------------------


def operator(case):
    """The package's operator."""
    return insert_weighted(case.prompt, case.inputs, case.mask, case.weights).embeds


def fixed_cat(case):
    """A fixed prefix, the floor: no decision, so no gradient for one."""
    return torch.cat([case.prompt.expand(len(case.inputs), -1, -1), case.inputs], 1)


def sources(case):
    """For every split, where each output row comes from, in rows of [prompt; inputs]: (B, l+1, T+l)."""
    length, cut = len(case.prompt), case.mask.sum(1).view(-1, 1, 1)
    k, row = torch.arange(length + 1).view(1, -1, 1), torch.arange(length + case.inputs.shape[1])
    source = torch.where(row < k, row, torch.where(row < k + cut, row - k + length, row - cut))
    return torch.where(row < length + cut, source, row)


def mixing_matrix(case):
    """One (T+l, T+l) matrix per instance that mixes the rows of [prompt; inputs]."""
    source, rows = sources(case), fixed_cat(case)
    size = rows.shape[1]
    cell = torch.arange(size) * size + source
    spread = case.weights.unsqueeze(2).expand_as(source)
    matrix = rows.new_zeros(len(rows), size * size).scatter_add(1, cell.flatten(1), spread.flatten(1))
    return torch.bmm(matrix.view(len(rows), size, size), rows)


def all_candidates(case):
    """All l+1 sequences of every instance, then their weighted sum."""
    rows = fixed_cat(case)
    instance = torch.arange(len(rows)).view(-1, 1, 1)
    return torch.einsum("bk,bksd->bsd", case.weights, rows[instance, sources(case)])


def careful_loop(case):
    """Instance by instance, the candidates of one at a time."""
    out, length = [], len(case.prompt)
    cuts = case.mask.sum(1).tolist()
    for inputs, weights, cut in zip(case.inputs.unbind(), case.weights.unbind(), cuts):
        before, after = inputs[:cut], inputs[cut:]
        ways = [torch.cat([case.prompt[:k], before, case.prompt[k:], after]) for k in range(length + 1)]
        out.append(torch.einsum("k,ksd->sd", weights, torch.stack(ways)))
    return torch.stack(out)


def papers_loop(case):
    """The structure of the paper's code: two loops, a look at the mask in each, rows written into one tensor."""
    length = len(case.prompt)
    out = torch.zeros_like(case.grad)
    for b in range(len(out)):
        mixed = torch.zeros_like(case.grad[b])
        for k in range(length + 1):
            cut = case.mask[b].sum().item()
            parts = [case.prompt[:k], case.inputs[b, :cut], case.prompt[k:], case.inputs[b, cut:]]
            mixed = mixed + case.weights[b, k] * torch.cat(parts)
        out[b] = mixed
    return out


LOOPS = (careful_loop, papers_loop)
OTHERS = (fixed_cat, mixing_matrix, all_candidates, *LOOPS)


# ---- measuring ----------------------------------------------------------------------------------------------


def step(way, case):
    """Forward and backward of one way; returns the output and the gradients."""
    out = way(case)
    return out, torch.autograd.grad(out, case.trained, case.grad, allow_unused=True)


def cpu_time(way, case):
    start = time.process_time()
    step(way, case)
    return time.process_time() - start


def compare_times(way, other, case, pairs):
    """Ratios time(other) / time(way) of runs that take turns: quartiles, and the median time of ``way`` in ms."""
    step(way, case), step(other, case)  # the first run pays for allocation and dispatch
    times = [(cpu_time(way, case), cpu_time(other, case)) for _ in range(pairs)]
    low, middle, high = statistics.quantiles([b / a for a, b in times], n=4, method="inclusive")
    best = min(b for _, b in times) / min(a for a, _ in times)  # least disturbed by other work on the machine
    ms = 1e3 * statistics.median(a for a, _ in times)
    return {"median": middle, "low": low, "high": high, "best": best, "pairs": pairs, "ms": ms}


def peak_memory(way, case):
    """Highest number of bytes held at once during a step, above what was held before, in units of the output."""
    step(way, case)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step(way, case)
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak / (case.grad.numel() * case.grad.element_size())


class CountOps(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def extra_operations(batch, seq, length, dim):
    """Dispatched operations, views included, beyond those of the fixed cat; on tensors without values."""
    case = make_case(batch, seq, length, dim, device="meta")
    counts = []
    for way in (operator, fixed_cat):
        with CountOps() as ops:
            step(way, case)
        counts.append(ops.count)
    return counts[0] - counts[1]


def largest_error():
    """Largest difference to the loop in float64, relative to the largest entry: output and all gradients."""
    case = make_case(8, 128, 20, 64, dtype=torch.float64, inputs_grad=True)
    ours, loop = (step(way, case) for way in (operator, careful_loop))
    pairs = [(a.detach(), b.detach()) for a, b in zip((ours[0], *ours[1]), (loop[0], *loop[1]))]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def one_graph():
    """Whether both functions compile with fullgraph=True, forward and backward."""
    case = make_case(2, 64, 4, 8)

    def both(prompt, inputs, mask, weights):
        hard = insert(prompt, inputs, mask, weights.argmax(1)).embeds
        return (hard + insert_weighted(prompt, inputs, mask, weights).embeds).sum()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.autograd.grad(compiled(case.prompt, case.inputs, case.mask, case.weights), case.trained)
    return True


# ---- the report ---------------------------------------------------------------------------------------------


class Report:
    """Prints each figure as it comes, with goal and verdict, and keeps it for the JSON file."""

    def __init__(self):
        self.figures = []

    def add(self, name, value, goal=None, at_least=False, detail="", **more):
        holds = None if goal is None else bool(value >= goal if at_least else value <= goal)
        self.figures.append(
            {"name": name, "value": value, "goal": goal, "at_least": at_least, "holds": holds, **more}
        )
        sign = ">=" if at_least else "<="
        verdict = "" if goal is None else f"goal {sign} {goal:g}: {'pass' if holds else 'FAIL'}"
        print(f"{name:<58} {value:>10.3g}  {verdict:<22} {detail}", flush=True)


def report_times(report, shape, pairs, quick):
    case, is_main = make_case(*shape), shape == MAIN
    for other in OTHERS:
        if quick and other is papers_loop:
            continue  # minutes
        found = compare_times(
            operator, other, case, pairs if is_main or other not in LOOPS else min(pairs, 3)
        )
        goal, name = None, f"time {shape}: {other.__name__} / operator"
        if other is fixed_cat:  # the floor, so the other way round: how many times longer the operator takes
            low, high = found["low"], found["high"]
            found |= {
                "median": 1 / found["median"],
                "low": 1 / high,
                "high": 1 / low,
                "best": 1 / found["best"],
            }
            goal, name = 6, f"time {shape}: operator / fixed cat"
        elif other in (all_candidates, careful_loop):
            goal = 15
        detail = "quartiles {low:.3g}..{high:.3g} of {pairs}, best {best:.3g}, operator {ms:.1f} ms".format(
            **found
        )
        report.add(name, found["median"], goal if is_main else None, other is not fixed_cat, detail, **found)


def report_memory(report, shape, quick):
    case = make_case(*shape)
    for way in (operator, *OTHERS):
        if quick and way in LOOPS:
            continue
        goal = (1.35 if shape[2] == 20 else 2.5) if way is operator else None
        report.add(f"peak {shape}: {way.__name__}", peak_memory(way, case), goal, detail="outputs")


def report_form(report):
    report.add("float64: relative difference to the loop, all gradients", largest_error(), 1e-12)
    counts = [
        extra_operations(*shape) for shape in [(2, 64, 4, 8), (32, 64, 4, 8), (2, 64, 100, 8), (2, 17, 4, 8)]
    ]
    report.add("extra operations at T <= 64 (no value looked at)", max(counts), 80)
    report.add("extra operations: change with B and l at T = 64", max(counts[:3]) - min(counts[:3]), 0)
    report.add("one graph under torch.compile(fullgraph=True)", float(one_graph()), 1, at_least=True)


def provenance():
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    blas = "mkl" if torch.backends.mkl.is_available() else "other"
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit or None,
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, BLAS {blas}, 1 thread",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the main shape, without the slowest way")
    parser.add_argument(
        "--pairs", type=int, default=11, help="pairs of runs per ratio, at least 9 for a verdict"
    )
    parser.add_argument("--out", type=Path, help="write the figures and their provenance to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Report()
    print(" ".join(f"{k}={v}" for k, v in provenance().items()))
    report_form(report)
    for shape in SHAPES[:1] if options.quick else SHAPES:
        report_memory(report, shape, options.quick)
        report_times(report, shape, options.pairs, options.quick)
    missed = [figure["name"] for figure in report.figures if figure["holds"] is False]
    print("all goals hold" if not missed else f"missed: {'; '.join(missed)}")
    if options.out:
        options.out.write_text(
            json.dumps({"provenance": provenance(), "figures": report.figures}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
