#!/usr/bin/env python3
"""Run a grid of trainings from one YAML file; what is done already is not done again.

python tools/study.py studies/weighting.yaml
python tools/study.py studies/weighting.yaml --only reduced        one of its experiments
python tools/study.py studies/weighting.yaml --list                what is done and what is not
python tools/study.py studies/weighting.yaml --report docs/results  tables of what is done
"""

import argparse
import os
from collections.abc import Callable

from tqdm import tqdm

from aid.utils.errors import AIDError, main_with_clear_errors
from aid_tools.study import (
    Job,
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

# Training images on which weights are measured.
NUM_IMAGES = 100
# Batches on which gradients are.
NUM_BATCHES = 5


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", metavar="FILE", help="the study's YAML file")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="runs at a time, of one thread each (default: %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="list the runs, and start none")
    parser.add_argument("--report", metavar="FOLDER", help="write tables there, and start none")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="these experiments of the study"
    )
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise AIDError("--workers must be at least 1")
    study = load_study(args.study, args.only)
    if args.list:
        for job in study.jobs:
            print("done" if is_done(job) else "    ", job.folder)
        return
    if args.report:
        weights = _measure("Weights", jobs_to_measure(study.jobs), measure_weights, NUM_IMAGES)
        gradients = _measure(
            "Gradients", jobs_with_gradients(study.jobs), measure_gradients, NUM_BATCHES
        )
        write_study(read_results(study.jobs), weights, gradients, args.report)
        print(f"Tables: {os.path.join(args.report, 'tables.md')}")
        return
    failed = run_study(study, args.workers)
    if failed:
        raise AIDError(
            f"{len(failed)} of {len(study.jobs)} runs failed, first {failed[0].folder}: see its "
            "stdout.txt, and call again"
        )


def _measure(what: str, jobs: list[Job], measure: Callable, amount: int) -> list[dict]:
    return [x for job in tqdm(jobs, desc=what) for x in measure(job, amount)]


if __name__ == "__main__":
    main()
