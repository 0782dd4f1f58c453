#!/usr/bin/env python3
"""Run a grid of trainings that a YAML file defines; finished runs are not repeated.

    python tools/study.py studies/weighting.yaml

Run only some of its experiments:

    python tools/study.py studies/weighting.yaml --only features

List finished and unfinished runs:

    python tools/study.py studies/weighting.yaml --list

Write tables and figures of the finished runs:

    python tools/study.py studies/weighting.yaml --report docs/results

Paths in the file, and those that are printed, start at the repository. A run whose settings were
changed in the file after its start is an error.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import make_parser
from aid_tools.command import command

ROOT = Path(__file__).resolve().parents[1]
# Number of training images for the measurement of weights.
NUM_IMAGES = 100
# Number of training batches for the measurement of gradients.
NUM_BATCHES = 5


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("study", metavar="FILE", help="YAML file of the study")
    add(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="number of parallel runs, of one thread each (default: number of cores)",
    )
    add("--list", action="store_true", help="list the runs without starting any")
    add(
        "--report",
        metavar="FOLDER",
        help="write tables and figures to this folder without starting any run",
    )
    add(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of the experiments to run (default: all)",
    )
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from tqdm import tqdm

    from aid.utils.errors import AIDError
    from aid_tools.study import (
        check_settings,
        jobs_to_measure,
        jobs_with_gradients,
        load_study,
        measure_gradients,
        measure_weights,
        read_results,
        run_study,
        write_study,
    )
    from aid_tools.study.runner import is_done

    if args.workers < 1:
        raise AIDError("--workers must be at least 1")
    if Path.cwd() != ROOT:
        args.study, args.report = (x and os.path.abspath(x) for x in (args.study, args.report))
        os.chdir(ROOT)
    study = load_study(args.study, args.only)
    check_settings(study.jobs)
    if args.list:
        for job in study.jobs:
            print("done" if is_done(job) else "    ", job.folder)
        return
    if args.report:
        jobs = tqdm(jobs_to_measure(study.jobs), desc="Weights")
        weights = [x for job in jobs for x in measure_weights(job, NUM_IMAGES)]
        jobs = tqdm(jobs_with_gradients(study.jobs), desc="Gradients")
        gradients = [x for job in jobs for x in measure_gradients(job, NUM_BATCHES)]
        write_study(read_results(study.jobs), weights, gradients, args.report)
        print(f"Tables: {os.path.join(args.report, 'tables.md')}")
        return
    failed = run_study(study, args.workers)
    if failed:
        raise AIDError(
            f"{len(failed)} of {len(study.jobs)} runs failed, first {failed[0].folder}: see its "
            "stdout.txt, and run the study again"
        )


if __name__ == "__main__":
    main()
