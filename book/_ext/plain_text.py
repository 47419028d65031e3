"""Plain text of parts of a page, for descriptions and definitions: mathematics becomes letters and signs, not TeX."""

import re

from docutils import nodes
from sphinx import addnodes

# In pairs: a command and its sign.
SIGNS = dict(pair.split("=") for pair in (
    "alpha=α beta=β gamma=γ delta=δ epsilon=ε varepsilon=ε theta=θ lambda=λ mu=μ pi=π sigma=σ tau=τ psi=ψ Delta=Δ "
    "sum=Σ le=≤ leq=≤ ge=≥ geq=≥ ne=≠ approx=≈ times=× cdot=· pm=± in=∈ to=→ infty=∞ ell=ℓ mid=| colon=: "
    "dots=… ldots=… cdots=…"
).split()) | {name: f"{name} " for name in ("ln", "log", "exp", "max", "min", "tanh")}  # fmt: skip
COMMAND = re.compile(r"\\([A-Za-z]+)\s*")


def plain_mathematics(tex):
    """TeX as text. What has no sign of its own, such as a font, is left out.

    >>> plain_mathematics(r"0 < k \\le l")
    '0 < k ≤ l'
    >>> plain_mathematics(r"\\sum_j \\beta_j P^{(j)}")
    'Σ_j β_j P^(j)'
    >>> plain_mathematics(r"\\mathbf{1}_k + \\frac{a}{b}")
    '1_k + a/b'
    """
    tex = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", tex)

    def sign(match):
        text = SIGNS.get(match[1], "")
        # The blank that ends a command counts where the command became a sign between others.
        return text + (" " if text and match[0].endswith(" ") and not text.endswith(" ") else "")

    tex = COMMAND.sub(sign, tex)
    return " ".join(re.sub(r"[{}$&]|\\.", "", tex).split())


def is_citation(node):
    """True for a citation whose words are not there yet: it holds its key."""
    return isinstance(node, addnodes.pending_xref) and node.get("refdomain") == "cite"


def plain(node):
    """The text of a node, with its mathematics in plain signs without notes of Sphinx and keys of citations."""
    if isinstance(node, (nodes.math, nodes.math_block)):
        return plain_mathematics(node.astext())
    if isinstance(node, (nodes.raw, nodes.system_message, nodes.comment)) or is_citation(node):
        return ""
    if isinstance(node, nodes.Text):
        return node.astext()
    return "".join(map(plain, node.children))


def one_line(node):
    """The same in one line, with single blanks."""
    return re.sub(r" ([.,;:)])", r"\1", " ".join(plain(node).split()))
