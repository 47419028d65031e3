"""`python -m dplearn`: what can be done from the command line, and what is installed; and what all commands share."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

COMMANDS = {
    "python -m dplearn.zoo list": "small pretrained backbones that ship, and real ones by pip",
    "python -m dplearn.zoo card NAME": "how a backbone was made, and what it can show",
    "python -m dplearn.experiments list": "the studies of the book, and what was run of each",
    "python -m dplearn.experiments show STUDY": "what a study compares, before anything runs",
    "python -m dplearn.experiments plan STUDY": "its runs, hours, memory and downloads",
    "python -m dplearn.experiments run STUDY": "run it; stopped, it goes on where it was",
    "python -m dplearn.experiments verdict STUDY": "what its runs allow to say",
}
OPTIONAL = "datasets", "peft", "accelerate", "scikit-learn", "matplotlib"


@contextmanager
def reader_may_stop() -> Iterator[None]:
    """Ends a command in silence where whoever reads its output has read enough, as `| head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def main(arguments: Sequence[str] = ()) -> int:
    """Print the commands and the versions; returns the exit status, 2 where something was asked for beside help."""
    if set(arguments) - {"-h", "--help"}:
        asked = " ".join(arguments)
        print(
            f"error: python -m dplearn {asked}: it takes no arguments and lists the commands", file=sys.stderr
        )
        if arguments[0] in ("zoo", "experiments"):
            print(f"expected python -m dplearn.{asked}", file=sys.stderr)
        return 2
    found = {}
    for name in ("dplearn", "torch", "transformers", *OPTIONAL):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    print("dplearn: prompts that learn where they stand, how long they are and what they say\n")
    width = max(map(len, COMMANDS))
    for command, words in COMMANDS.items():
        print(f"  {command:{width}}  {words}")
    print("\n" + ", ".join(f"{name} {each}" for name, each in found.items()))
    return 0


if __name__ == "__main__":
    status = 0
    with reader_may_stop():
        status = main(sys.argv[1:])
    sys.exit(status)
