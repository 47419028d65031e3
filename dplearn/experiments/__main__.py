"""Studies: list, show, plan, run, resume, table, figure, verdict, predict, publish.

A study is a file of the folder `studies`, or a .toml file of your own. Its runs are kept in runs/STUDY, one file for
each, so that a stopped study goes on, and so that several processes or machines on one folder share the work.
"""

import argparse
import sys

from dplearn.__main__ import reader_may_stop
from dplearn.experiments import commands


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dplearn.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, words: str, several: bool = False) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=words, description=words)
        added.add_argument("study", nargs="?" if several else None, help="name of a study, or a .toml file")
        added.add_argument("--scale", help="a scale of the study, such as full (default: the file's own)")
        added.add_argument(
            "--runs", default="runs", help="folder of the runs; STUDY is added (default: runs)"
        )
        return added

    listing = verbs.add_parser("list", help="the studies, with what is recorded of them")
    listing.add_argument("--runs", default="runs", help="folder of the runs (default: runs)")
    verb("show", "what a study compares, and its file")
    planned = verb("plan", "how many runs there are, and about how long they take")
    planned.add_argument(
        "--device", choices=("h100", "h200", "a100", "l40s", "cpu"), default="h100", help="(default: h100)"
    )
    for name, words in (("run", "run what is not done yet"), ("resume", "go on with a study that was begun")):
        _running(verb(name, words))
    table = verb("table", "the tables of a study, in Markdown")
    table.add_argument("--split", help="the split of the scores (default: test, or the study's own)")
    figure = verb("figure", "draw curves and scores over the conditions")
    figure.add_argument("--out", default="figures", help="folder of the images (default: figures)")
    figure.add_argument(
        "--format", choices=("svg", "pdf", "png"), default="svg", help="of the images (default: svg)"
    )
    verb("verdict", "what the runs allow to say, with the evidence of learning", several=True)
    prediction = verb(
        "predict", "whether a probe of fixed prompts says what a learned position gains", several=True
    )
    prediction.add_argument("--out", help="a file for the figure: figures/predict.svg, .pdf or .png")
    verb("publish", "merge the runs into the study's record: in the package, or beside a file of your own")
    return parser


def _running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--jobs", type=int, default=1, help="processes on this machine, one thread each (default 1)")
    add("--scheduler", metavar="ADDRESS", help="send the runs to this Dask scheduler instead")
    for name, shown, words in (
        ("--only", "METHOD/TASK/SEED", "these runs alone; patterns as of files, METHOD alone: all"),
        ("--condition", "CONDITION", "runs of this condition alone (a pattern)"),
        ("--backbone", "BACKBONE", "runs of this backbone alone (a pattern)"),
    ):
        add(name, metavar=shown, action="append", help=f"{words}; may be given again, for several")
    add("--purpose", choices=("choice", "report"), help="choices or reports alone")
    add("--published", action="store_true", help="the runs of the record that ships are done: add to them")
    add("--again", action="store_true", help="run what is recorded again and compare; writes nothing")
    add(
        "--try", dest="trial", type=int, metavar="STEPS",
        help="see that everything runs: each method and each table once, so many steps; nothing is kept",
    )  # fmt: skip
    add("--bf16", action="store_true", help="bfloat16 matrix products; faster where the processor has them")


def main(arguments=None) -> None:
    options = _parser().parse_args(arguments)
    try:
        status = commands.COMMANDS[options.verb](options)
    except BrokenPipeError:
        raise  # whoever reads has read enough
    except (ValueError, ModuleNotFoundError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped; finished runs are kept, `resume` goes on", file=sys.stderr)
        status = 130
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    with reader_may_stop():
        main()
