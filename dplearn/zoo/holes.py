"""Texts with holes: numbered sentinels in the input, and behind each in the target what belongs there."""

SENTINEL = "<extra_id_{}>"


def answered(rng, text, answer):
    """(input, target) with the answer at the first sentinel; the input shows the sentinel half of the time."""
    shown = f" {SENTINEL.format(0)}" if rng.random() < 0.3 else ""
    return text + shown, f"{SENTINEL.format(0)} {answer}"


def filled(pieces):
    """Joins text pieces and ("?", answer) holes into (input, target) with numbered sentinels."""
    inputs: list[str] = []
    target: list[str] = []
    for piece in pieces:
        if isinstance(piece, tuple):
            mark = SENTINEL.format(len(target))
            target.append(f"{mark} {piece[1]}")
            inputs.append(mark)
        else:
            inputs.append(piece)
    return " ".join(inputs), " ".join(target)


def corrupt(rng, text, share=0.2):
    """T5's span corruption on words: about `share` of the words in spans of one to three."""
    pieces: list = []
    words, position = text.split(), 0
    while position < len(words):
        span = rng.choice((1, 1, 2, 3))
        if rng.random() < share / 1.75 and not (pieces and isinstance(pieces[-1], tuple)):
            pieces.append((None, " ".join(words[position : position + span])))
            position += span
        else:
            pieces.append(words[position])
            position += 1
    if not any(isinstance(piece, tuple) for piece in pieces):
        pieces[-1] = (None, pieces[-1])
    return filled(pieces)
