#!/usr/bin/env python3
"""Train for a while, and say whether memory or open files grow; on Linux.

    python tools/load_test.py --config-file configs/Quickstart/faster_rcnn_R18_from_R34.yaml \
        SOLVER.MAX_ITER 2000

Runs train_net.py as a process and looks at it, and at its loader's workers, once a second: resident
memory, less mapped files such as libraries, and open file descriptors. Both are flat if the line
through their samples (Theil and Sen's, which peaks do not tilt) rises by no more than a limit, with
95 % confidence. What comes before --from-iteration, while caches fill, does not count, nor does the
evaluation at the end. Writes load_test.json, load_test.png, and the run's own folder. The exit code
is 1 if not both are flat.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict

import numpy as np
from tqdm import tqdm

import aid  # noqa: F401  (before Detectron2, and says where that is missing)
from aid.config import load_config
from aid.utils.errors import AIDError, main_with_clear_errors
from aid_tools.benchmark.growth import Growth, draw_growth, measure_growth, place_in_time
from aid_tools.benchmark.processes import can_count, usage

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train_net.py")
TAIL = 1 << 16  # bytes that hold a line of metrics.json
# The most by which a quantity may rise in 1000 iterations. Detectron2 itself keeps every scalar
# that it logs, about 2.4 MiB in those of a run with a teacher.
LIMITS = {"memory": 10.0, "descriptors": 0.5}
TITLES = {"memory": "resident memory / MiB", "descriptors": "open file descriptors"}


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    max_iter = load_config(args.config_file, args.opts).SOLVER.MAX_ITER
    if not 0 <= args.from_iteration < max_iter or args.interval <= 0:
        raise AIDError(
            f"--from-iteration {args.from_iteration} must be below SOLVER.MAX_ITER {max_iter}, and "
            f"--interval {args.interval:g} above 0"
        )
    if not can_count():
        raise AIDError(
            "this system does not say what a process holds: Linux 5.4 or later is needed"
        )
    samples = watch(args, max_iter)
    columns = {key: np.array([x[key] for x in samples]) for key in samples[0]}
    iterations = place_in_time(columns["seconds"], columns["logged"])
    start, end = args.from_iteration, max_iter - 1
    found = {
        k: measure_growth(iterations, columns[k], start, end, limit) for k, limit in LIMITS.items()
    }
    panels = {TITLES[key]: (columns[key], growth) for key, growth in found.items()}
    draw_growth(iterations, panels, start).savefig(os.path.join(args.output, "load_test.png"))
    content = {
        "config": args.config_file,
        "overrides": args.opts,
        "from_iteration": start,
        "found": {key: {**asdict(x), "is_flat": x.is_flat} for key, x in found.items()},
        "samples": {
            "iteration": iterations.tolist(),
            **{k: v.tolist() for k, v in columns.items()},
        },
    }
    with open(os.path.join(args.output, "load_test.json"), "w") as f:
        json.dump(content, f, indent=1)
    print(verdict(found, start))
    sys.exit(not all(x.is_flat for x in found.values()))


def watch(args: argparse.Namespace, max_iter: int) -> list[dict]:
    """Run the training, and sample it until it ends.

    Raises:
        AIDError: it failed, or a file cannot be written.
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
            os.remove(metrics)  # of an earlier call, to which this run would add
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
                found, logged = usage(process.pid), last_iteration(metrics)
                if found.processes:
                    seconds = time.monotonic() - begin
                    samples.append({"seconds": seconds, "logged": logged, **asdict(found)})
                bar.update(logged - bar.n)
                time.sleep(args.interval)
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        with open(log, errors="replace") as f:
            said = f.read().split("error: ")[-1].strip().splitlines() or ["nothing"]
        raise AIDError(f"the training failed, see {log}: {said[-1]}")
    return samples


def last_iteration(metrics: str) -> int:
    """The last iteration in a metrics.json that may be growing; 0 before there is one."""
    with suppress(FileNotFoundError), open(metrics, "rb") as f:
        f.seek(max(0, os.path.getsize(metrics) - TAIL))
        *lines, _ = f.read().split(b"\n")  # the last may be half a line
        return json.loads(lines[-1])["iteration"] if lines else 0
    return 0


def verdict(found: dict[str, Growth], start: int) -> str:
    """What was found, in a line."""
    said = []
    for key, x in found.items():
        what = "flat" if x.is_flat else "GROWS" if x.is_growing else "NOT CLEAR, train longer"
        said.append(
            f"{TITLES[key].split(' / ')[0]}: {what}, {x.rate:+.2f} ({x.low:+.2f} to {x.high:+.2f})"
            f"{' MiB' if key == 'memory' else ''} per 1000 iterations, limit {x.limit:g}, "
            f"{x.last:.0f} at the end"
        )
    samples = found["memory"].samples
    return f"from iteration {start} on ({samples} samples): {'; '.join(said)}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--config-file", required=True, metavar="FILE", help="of a training")
    add("--num-gpus", type=int, default=0, metavar="N", help="default: %(default)s, on the CPU")
    add("--output", default="output/reliability", metavar="FOLDER", help="default: %(default)s")
    add(
        "--from-iteration",
        type=int,
        default=200,
        metavar="N",
        help="the first that counts (default: %(default)s)",
    )
    add("--interval", type=float, default=1.0, metavar="SECONDS", help="default: %(default)g")
    add("--register", metavar="FILE", help="Python file that registers your own datasets")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return made


if __name__ == "__main__":
    main()
