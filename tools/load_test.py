#!/usr/bin/env python3
"""Check that the memory and the open files of a training do not grow. Needs Linux.

    python tools/load_test.py --config-file configs/Quickstart/faster_rcnn_R18_from_R34.yaml \\
        SOLVER.MAX_ITER 2000

The tool runs train_net.py as a process and samples it, with its loader workers, once per second:
resident memory without mapped files such as libraries, and open file descriptors. Each is flat if
the slope through its samples (Theil-Sen, robust against peaks) is within a limit with 95 %
confidence. Iterations before --from-iteration, while caches fill, and the final evaluation are
excluded. The output folder contains load_test.json, load_test.png and the output folder of the run.
The exit code is 1 if memory or descriptors are not flat.
"""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from dataclasses import asdict

import numpy as np
from tqdm import tqdm

import aid  # noqa: F401  (before Detectron2, with a clear error if that is missing)
from aid.config import load_config
from aid.utils.errors import AIDError, main_with_clear_errors
from aid.utils.files import output_folder, write_json
from aid_tools.arguments import (
    add_config_file,
    add_num_gpus,
    add_output,
    add_overrides,
    add_register,
    make_parser,
)
from aid_tools.benchmark.growth import Growth, draw_growth, measure_growth, place_in_time
from aid_tools.benchmark.processes import can_count, usage
from aid_tools.report.figures import save

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train_net.py")
TAIL = 1 << 16  # bytes, more than a line of metrics.json
# Maximum growth in 1000 iterations. Detectron2 itself keeps all logged scalars in memory, about
# 2.4 MiB per 1000 iterations of a run with a teacher.
LIMITS = {"memory": 10.0, "descriptors": 0.5}
TITLES = {"memory": "resident memory / MiB", "descriptors": "open file descriptors"}


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    max_iter = load_config(args.config_file, args.opts).SOLVER.MAX_ITER
    if not 0 <= args.from_iteration < max_iter or args.interval <= 0:
        raise AIDError(
            f"--from-iteration {args.from_iteration} must be below SOLVER.MAX_ITER {max_iter}, and "
            f"--interval {args.interval:g} above 0"
        )
    if not can_count():
        raise AIDError(
            "this system does not report the memory of processes: Linux 5.4 or later is needed"
        )
    samples = watch(args, max_iter)
    columns = {key: np.array([x[key] for x in samples]) for key in samples[0]}
    iterations = place_in_time(columns["seconds"], columns["logged"])
    start, end = args.from_iteration, max_iter - 1
    growths = {
        k: measure_growth(iterations, columns[k], start, end, limit) for k, limit in LIMITS.items()
    }
    panels = {TITLES[key]: (columns[key], growth) for key, growth in growths.items()}
    content = {
        "config": args.config_file,
        "overrides": args.opts,
        "from_iteration": start,
        "found": {key: {**asdict(x), "is_flat": x.is_flat} for key, x in growths.items()},
        "samples": {
            "iteration": iterations.tolist(),
            **{k: v.tolist() for k, v in columns.items()},
        },
    }
    with output_folder(args.output):
        save(draw_growth(iterations, panels, start), os.path.join(args.output, "load_test.png"))
        write_json(os.path.join(args.output, "load_test.json"), content)
    print(verdict(growths, start))
    sys.exit(not all(x.is_flat for x in growths.values()))


def watch(args: Namespace, max_iter: int) -> list[dict]:
    """Run the training, and sample its processes until it ends.

    Raises:
        AIDError: the training failed, or a file cannot be written.
    """
    run = os.path.join(args.output, "run")
    metrics, log = os.path.join(run, "metrics.json"), os.path.join(run, "stdout.txt")
    command = [sys.executable, SCRIPT, "--config-file", args.config_file]
    command += ["--num-gpus", str(args.num_gpus)]
    if args.register:
        command += ["--register", args.register]
    try:
        os.makedirs(run, exist_ok=True)
        with suppress(FileNotFoundError):
            os.remove(metrics)  # of an earlier call, to which this run would append
        with open(log, "w") as f:
            process = subprocess.Popen(
                [*command, *args.opts, "OUTPUT_DIR", run], stdout=f, stderr=subprocess.STDOUT
            )
    except OSError as error:
        raise AIDError(f"--output {args.output} cannot be written: {error.strerror}") from error
    samples, begin = [], time.monotonic()
    try:
        with tqdm(total=max_iter, unit="it", desc="Training") as bar:
            while process.poll() is None:
                sample, logged = usage(process.pid), last_iteration(metrics)
                if sample.processes:
                    seconds = time.monotonic() - begin
                    samples.append({"seconds": seconds, "logged": logged, **asdict(sample)})
                bar.update(logged - bar.n)
                time.sleep(args.interval)
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        with open(log, errors="replace") as f:
            lines = f.read().split("error: ")[-1].strip().splitlines() or ["no output"]
        raise AIDError(f"the training failed, see {log}: {lines[-1]}")
    return samples


def last_iteration(metrics: str) -> int:
    """Last iteration in a metrics.json that is being written; 0 if there is none yet."""
    with suppress(FileNotFoundError), open(metrics, "rb") as f:
        f.seek(max(0, os.path.getsize(metrics) - TAIL))
        *lines, _ = f.read().split(b"\n")  # the last line may be incomplete
        return json.loads(lines[-1])["iteration"] if lines else 0
    return 0


def verdict(growths: dict[str, Growth], start: int) -> str:
    """Result of the test in one line."""
    results = []
    for key, x in growths.items():
        result = "flat" if x.is_flat else "GROWS" if x.is_growing else "NOT CLEAR, train longer"
        unit = " MiB" if key == "memory" else ""
        results.append(
            f"{TITLES[key].split(' / ')[0]}: {result}, {x.rate:+.2f} "
            f"({x.low:+.2f} to {x.high:+.2f}){unit} per 1000 iterations, limit {x.limit:g}, "
            f"{x.last:.0f} at the end"
        )
    samples = growths["memory"].samples
    return f"from iteration {start} on ({samples} samples): {'; '.join(results)}"


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config_file(parser, "config of a training")
    add_num_gpus(parser, 0)
    add_output(parser, "output folder", "output/reliability")
    add(
        "--from-iteration",
        type=int,
        default=200,
        metavar="N",
        help="first iteration of the measurement (default: %(default)s)",
    )
    add(
        "--interval",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="time between two samples (default: %(default)g)",
    )
    add_register(parser)
    add_overrides(parser)
    return parser


if __name__ == "__main__":
    main()
