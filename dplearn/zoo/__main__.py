"""The zoo's commands: `python -m dplearn.zoo list | check t5-mini | pretrain t5-mini`."""

import argparse
import sys
from pathlib import Path

from . import card, folder_of, names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m dplearn.zoo", description="Small backbones that ship with the package."
    )
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names and sizes")
    show = commands.add_parser("card", help="print a model card")
    show.add_argument("name")
    check = commands.add_parser("check", help="the gate table from recorded runs, and zero-shot accuracy now")
    check.add_argument("name")
    check.add_argument("--quick", action="store_true", help="only the recorded figures: run no model")
    run = commands.add_parser("pretrain", help="pretrain from nothing, or go on where a run folder stopped")
    run.add_argument("name", choices=["t5-mini"])
    run.add_argument(
        "--folder", default="runs/t5-mini", help="run folder: tokenizer, checkpoint, log, export"
    )
    run.add_argument("--resume", action="store_true", help="go on with the checkpoint in the run folder")
    run.add_argument(
        "--processes", type=int, default=2, help="data-parallel processes (part of the recipe: 2)"
    )
    return top


def main(arguments=None) -> int:
    """Runs one command; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.command == "list":
        for name in names():
            size = (folder_of(name) / "model.safetensors").stat().st_size / 1e6
            print(f"{name}: {size:.1f} MB of weights, {folder_of(name)}")
    elif options.command == "card":
        print(card(options.name))
    elif options.command == "check":
        from .gates import report

        print(report(options.name, run=not options.quick))
    else:
        from .pretraining import export, pretrain

        folder = Path(options.folder)
        if (folder / "checkpoint.pt").exists() and not options.resume:
            print(
                f"{folder} holds a checkpoint: add --resume to go on, or name another --folder",
                file=sys.stderr,
            )
            return 2
        pretrain(folder, options.processes)
        print(f"exported to {export(folder, folder / 'export')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
