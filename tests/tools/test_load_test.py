"""tools/load_test.py: counting of resources, detection of growth, and a run."""

import json
import subprocess
import sys

import numpy as np
import pytest

from aid.utils.errors import AIDError
from aid_tools.benchmark.growth import measure_growth, place_in_time, slope
from aid_tools.benchmark.processes import usage

# Holds the given memory and files, as the child of a process.
HOLDER = """
import sys
held = bytearray(int(sys.argv[1]) << 20)
files = [open("/dev/null") for _ in range(int(sys.argv[2]))]
print("ready", flush=True)
sys.stdin.read()  # until stdin is closed
"""
STARTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
# Like train_net.py, it logs every second iteration; each iteration leaks memory and files.
TRAINING = """
import json, os, sys, time
folder = sys.argv[sys.argv.index("OUTPUT_DIR") + 1]
mib, files = int(os.environ["LEAK_MIB"]), int(os.environ["LEAK_FILES"])
if "FAIL" in os.environ:
    sys.exit("error: the loss is gone")
kept = []
for iteration in range(40):
    kept += [bytearray(mib << 20), *(open("/dev/null") for _ in range(files))]
    if iteration % 2:
        with open(folder + "/metrics.json", "a") as f:
            f.write(json.dumps({"iteration": iteration}) + "\\n")
    time.sleep(0.03)
"""


@pytest.fixture
def hold():
    """A function (MiB, files) -> measured usage of a process whose child holds them."""
    started = []

    def start(mib: int, files: int):
        command = [sys.executable, "-c", STARTER, HOLDER, str(mib), str(files)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, **pipes, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return usage(process.pid)

    yield start
    for process in started:
        process.communicate()


def test_usage_includes_child_processes(hold):
    small, large = hold(1, 1), hold(61, 8)
    assert small.processes == large.processes == 2
    assert large.descriptors - small.descriptors == 7
    assert large.memory - small.memory == pytest.approx(60, abs=5)


def test_ended_process_has_no_usage():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert usage(process.pid).processes == 0


def test_slope_is_robust_to_peaks():
    x = np.arange(100.0)
    y = 800 + 0.02 * x
    assert slope(x, y) == pytest.approx((0.02, 0.02, 0.02))
    y[70:95] += 300  # least squares would give 2.1
    assert slope(x, y)[0] == pytest.approx(0.02, abs=0.005)
    many = np.arange(30_000.0)
    assert slope(many, 5 * many)[0] == pytest.approx(5)
    # Pairs of equal x are ignored.
    assert slope(np.array([1.0, 1, 2]), np.array([0.0, 4, 2]))[0] == 0


def test_confidence_interval_covers_the_slope_in_95_percent():
    rng = np.random.default_rng(0)
    x = np.arange(40.0)
    intervals = [slope(x, 0.3 * x + rng.normal(size=40))[1:] for _ in range(400)]
    assert np.mean([low <= 0.3 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)


def test_sample_times_are_interpolated_between_logged_iterations():
    actual = place_in_time([0, 1, 2, 3, 4, 5], [0, 0, 20, 20, 40, 40])
    assert actual.tolist() == [0, 10, 20, 30, 40, 40]


def test_growth_is_measured_within_the_given_iterations():
    iterations = np.arange(400.0)
    memory = np.full(400, 500.0)
    memory[:200] = np.arange(200)  # growing caches
    memory[350:] = 900  # evaluation
    flat = measure_growth(iterations, memory, 200, 350, limit=10)
    assert (flat.rate, flat.last, flat.samples, flat.is_flat) == (0, 500, 150, True)
    memory[200:350] += 0.011 * np.arange(150)
    leak = measure_growth(iterations, memory, 200, 350, limit=10)
    assert leak.rate == pytest.approx(11) and leak.is_growing and not leak.is_flat
    memory += 30 * np.random.default_rng(0).normal(size=400)
    short = measure_growth(iterations, memory, 200, 230, limit=10)
    assert short.low < 10 < short.high and not short.is_growing and not short.is_flat
    with pytest.raises(AIDError, match="9 samples between iteration 341 and 350, too few"):
        measure_growth(iterations, memory, 341, 350, limit=10)


@pytest.fixture
def load_test(load_script, tiny_config, tmp_path, monkeypatch, capsys):
    """A function (MiB, files, options) -> (exit code, output) of a run that leaks them."""
    tool = load_script("tools/load_test.py")
    (tmp_path / "training.py").write_text(TRAINING)
    monkeypatch.setattr(tool, "SCRIPT", str(tmp_path / "training.py"))
    config = tiny_config("faster_rcnn", ["SOLVER.MAX_ITER", 40])

    def call(mib: int, files: int, *options: str) -> tuple[int, str]:
        monkeypatch.setenv("LEAK_MIB", str(mib))
        monkeypatch.setenv("LEAK_FILES", str(files))
        arguments = ["--config-file", config, "--output", str(tmp_path / "out")]
        arguments += ["--from-iteration", "5", "--interval", "0.02"]
        with pytest.raises(SystemExit) as exit:
            tool.main([*arguments, *options])
        output = capsys.readouterr()
        return exit.value.code, output.out + output.err

    return call


def test_leaks_of_memory_and_files_are_detected(load_test, tmp_path):
    code, output = load_test(0, 0)
    assert code == 0 and "memory: flat, " in output and "descriptors: flat, " in output
    code, output = load_test(1, 0)
    assert code == 1 and "memory: GROWS, " in output and "descriptors: flat, " in output
    content = json.loads((tmp_path / "out/load_test.json").read_text())
    assert content["found"]["memory"]["rate"] == pytest.approx(1000, rel=0.3)
    samples = content["samples"]
    assert len(samples["memory"]) == len(samples["iteration"]) > 10
    assert max(samples["iteration"]) == 39 and samples["processes"][-1] == 1
    assert (tmp_path / "out/load_test.png").stat().st_size > 10_000
    code, output = load_test(0, 1)
    assert code == 1 and "memory: flat, " in output and "descriptors: GROWS, " in output


def test_invalid_ranges_and_failed_runs_are_reported(load_test, monkeypatch):
    assert "must be below SOLVER.MAX_ITER 40" in load_test(0, 0, "--from-iteration", "40")[1]
    assert ", too few to measure growth" in load_test(0, 0, "--from-iteration", "39")[1]
    monkeypatch.setenv("FAIL", "1")
    code, output = load_test(0, 0)
    assert code == 2 and "error: the training failed, see " in output
    assert output.endswith("stdout.txt: the loss is gone\n")
