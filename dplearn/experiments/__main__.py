"""Run a study: `python -m dplearn.experiments STUDY`. Finished runs are kept: a stopped study goes on."""

import argparse

from dplearn.experiments import records, studies


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dplearn.experiments", description=__doc__)
    parser.add_argument("study", choices=sorted(studies.STUDIES), help="what to run")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at the same time, one thread each (default 1)"
    )
    parser.add_argument(
        "--bf16", action="store_true", help="bfloat16 matrix products; faster where the processor has them"
    )
    parser.add_argument("--out", help="the record to write; default: the record that ships with the package")
    parser.add_argument("--list", action="store_true", help="print the runs of the study and stop")
    options = parser.parse_args(arguments)
    study = studies.STUDIES[options.study]
    jobs = study()
    if options.list:
        for job in jobs:
            print(job)
        return
    studies.run(jobs, options.out or records.FOLDER / f"{options.study}.json", options.jobs, options.bf16)


if __name__ == "__main__":
    main()
