"""Where prompt vectors and input tokens stand at a split, and the checks that all statements share."""


def check_split(split: int, length: int, name: str = "split") -> None:
    """Raise ValueError where a split is not one of a prompt of ``length`` vectors."""
    if length < 1:
        raise ValueError(f"length={length}, expected at least one prompt vector")
    if not 0 <= split <= length:
        raise ValueError(f"{name}={split} is outside 0..{length} (0 is postfix, {length} is prefix)")


def check_seq(seq: int, least: int = 1) -> None:
    """Raise ValueError where there are too few input tokens."""
    if seq < least:
        raise ValueError(f"seq={seq}, expected at least {least} input token{'s' if least > 1 else ''}")


def standing(split: int, length: int, seq: int) -> tuple[list[int], list[int]]:
    """The rows of the l prompt vectors and of the T input tokens in [P_1..P_k; X; P_{k+1}..P_l].

    >>> standing(1, length=3, seq=2)
    ([0, 3, 4], [1, 2])
    """
    return [a if a < split else seq + a for a in range(length)], [split + i for i in range(seq)]


def relative_offsets(split: int, length: int, seq: int) -> list[list[int]]:
    """j - i for each input row i and each column j, prompt first: T rows of l + T."""
    prompt, tokens = standing(split, length, seq)
    return [[place - own for place in prompt + tokens] for own in tokens]
