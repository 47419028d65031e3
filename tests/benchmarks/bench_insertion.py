"""The insertion operator against other ways to insert: time, memory, operations, exactness.

Times are those of forward and backward with gradients of prompt and weights (the inputs are frozen embeddings). Peak
memory is what the allocator hands out during one forward and backward, in units of the output.
"""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from goals import OTHERS, SHAPES
from torch.utils._python_dispatch import TorchDispatchMode

from dplearn.insertion import insert, insert_weighted


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


WAYS = {
    way.__name__: way
    for way in (operator, fixed_cat, mixing_matrix, all_candidates, careful_loop, papers_loop)
}


# ---- measuring ----------------------------------------------------------------------------------------------


def step(way, case):
    """Forward and backward of one way; returns the output and the gradients."""
    out = way(case)
    return out, torch.autograd.grad(out, case.trained, case.grad, allow_unused=True)


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
    try:
        torch.autograd.grad(compiled(case.prompt, case.inputs, case.mask, case.weights), case.trained)
    except torch._dynamo.exc.TorchDynamoException as error:
        print(error)
        return False
    return True


# ---- the report ---------------------------------------------------------------------------------------------


def values_read():
    """1 where a step looks at a value, which would make the host wait for a device; tensors without values refuse."""
    try:
        step(operator, make_case(2, 64, 20, 8, device="meta"))
    except (RuntimeError, NotImplementedError):
        return 1
    return 0


def report_form(report):
    report.add("error", largest_error())
    shapes = [(2, 64, 4, 8), (32, 64, 4, 8), (2, 64, 100, 8), (2, 17, 4, 8)]
    counts = [extra_operations(*shape) for shape in shapes]
    report.add("operations", max(counts))
    report.add("operations change", max(counts[:3]) - min(counts[:3]))
    report.add("reads", values_read())
    report.add("one graph", float(one_graph()))


def report_times(report, shape, case, pairs):
    runs = {name: lambda way=way: step(way, case) for name, way in WAYS.items()}
    for other in OTHERS:
        # The fixed prefix is the floor, so the operator is measured against it; the other ways against the operator.
        pair = ("operator", other) if other == "fixed_cat" else (other, "operator")
        report.ratio(f"time {pair[0]}/{pair[1]} {shape}", *(runs[name] for name in pair), pairs)


def report_memory(report, shape, case):
    for name, way in WAYS.items():
        report.add(f"peak {name} {shape}", peak_memory(way, case))


def small(shape):
    """A shape for a quick run."""
    batch, seq, length, dim = shape
    return min(batch, 4), seq // 8, length // 4, dim // 8


def measure(report, quick, pairs):
    report_form(report)
    cases = {shape: make_case(*(small(shape) if quick else shape)) for shape in SHAPES}
    for shape, case in cases.items():
        report_times(report, shape, case, pairs)
    for shape, case in cases.items():
        report_memory(report, shape, case)
