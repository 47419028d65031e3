"""The zoo's commands: `python -m dplearn.zoo list | card t5-mini | check t5-mini | pretrain vit-mini`."""

import argparse
import sys
from pathlib import Path

from dplearn import packaged
from dplearn.__main__ import reader_may_stop

from . import card, folder_of, names, shipped
from .vision_recipes import RECIPES


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m dplearn.zoo", description="Backbones without a hub.")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names, sizes, and what is installed")
    show = commands.add_parser("card", help="print a model card")
    show.add_argument("name")
    check = commands.add_parser("check", help="recorded figures (text: the gates), and held-out figures now")
    check.add_argument("name")
    check.add_argument("--quick", action="store_true", help="only the recorded figures: run no model")
    check.add_argument(
        "--record", action="store_true", help="text models: first write zero_shot.json beside the weights"
    )
    run = commands.add_parser("pretrain", help="pretrain from nothing, or go on where a run folder stopped")
    run.add_argument("name", choices=["t5-mini", "place-mini", "llama-mini", "vit-mini", "clip-mini"])
    run.add_argument("--folder", help="run folder: checkpoint, log, export and more (default: runs/NAME)")
    run.add_argument("--resume", action="store_true", help="go on with the checkpoint in the run folder")
    run.add_argument(
        "--processes",
        type=int,
        default=2,
        help="t5-mini: data-parallel processes (part of the recipe: 2)",
    )
    return top


def main(arguments=None) -> int:
    """Runs one command; returns the exit status."""
    options = parser().parse_args(arguments)
    name = getattr(options, "name", None)
    if name is not None and name not in names():
        print(f"error: name={name!r} is unknown, expected one of {list(names())}", file=sys.stderr)
        return 2
    if options.command == "list":
        for name in shipped():
            size = (folder_of(name) / "model.safetensors").stat().st_size / 1e6
            print(f"{name}: {size:.1f} MB of weights, {folder_of(name)}")
        for name in names()[len(shipped()) :]:
            print(f"{name}: {packaged.status(name)}")
    elif options.command == "card":
        print(card(options.name))
    elif options.command == "check":
        if options.name in packaged.PACKAGED:
            print(
                f"{folder_of(options.name)}: all files have their recorded SHA-256; no figures are recorded"
            )
            return 0
        if options.name in RECIPES:
            from .vision_probes import figures as report
        elif options.name == "place-mini":
            from .place_figures import report
        else:
            from .gates import record, report

            if options.record:
                print(f"recorded {record(options.name)}")
        print(report(options.name, run=not options.quick))
    else:
        folder = Path(options.folder or f"runs/{options.name}")
        if (folder / "checkpoint.pt").exists() and not options.resume:
            print(
                f"{folder} holds a checkpoint: add --resume to go on, or name another --folder",
                file=sys.stderr,
            )
            return 2
        print(f"exported to {_pretrain(options.name, folder, options.processes)}")
    return 0


def _pretrain(name, folder, processes):
    """Runs the recipe of a backbone to its end; returns the folder of the exported files."""
    if name in RECIPES:
        from . import vision_pretraining

        vision_pretraining.pretrain(name, folder)
        return vision_pretraining.export(name, folder, folder / "export")
    if name == "place-mini":
        from . import place

        place.pretrain(folder)
        return place.export(folder, folder / "export")
    if name == "llama-mini":
        from . import causal

        causal.pretrain(folder)
        return causal.export(folder, folder / "export")
    from .pretraining import export, pretrain

    pretrain(folder, processes)
    return export(folder, folder / "export")


if __name__ == "__main__":
    status = 0
    with reader_may_stop():
        status = main()
    sys.exit(status)
