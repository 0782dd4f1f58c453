"""Work of tools/load_test.py: a training whose memory and open files are measured."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import asdict

from tqdm import tqdm

from aid.utils.errors import AIDError

from ..files import clear_file_errors
from .growth import Growth
from .processes import usage

__all__ = ["TITLES", "verdict", "watch"]

TAIL = 1 << 16  # bytes, more than a line of metrics.json
TITLES = {"memory": "resident memory / MiB", "descriptors": "open file descriptors"}


def watch(script: str, args: Namespace, max_iter: int) -> list[dict]:
    """Run a training, and sample its processes until it ends.

    Args:
        script: path of train_net.py.
        args: of tools/load_test.py.
        max_iter: number of iterations.

    Raises:
        AIDError: the training failed, or a file cannot be written.
    """
    run = os.path.join(args.output, "run")
    metrics, log = os.path.join(run, "metrics.json"), os.path.join(run, "stdout.txt")
    command = [sys.executable, script, "--config-file", args.config_file]
    command += ["--num-gpus", str(args.num_gpus)]
    if args.register:
        command += ["--register", args.register]
    with clear_file_errors(args.output, "--output"):
        os.makedirs(run, exist_ok=True)
        with suppress(FileNotFoundError):
            os.remove(metrics)  # of an earlier call, to which this run would append
        with open(log, "w") as f:
            process = subprocess.Popen(
                [*command, *args.opts, "OUTPUT_DIR", run], stdout=f, stderr=subprocess.STDOUT
            )
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
