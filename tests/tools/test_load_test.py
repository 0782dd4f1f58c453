"""tools/load_test.py: counting of resources, detection of growth, and a run."""

import json
import subprocess
import sys

import numpy as np
import pytest

from aid.utils.errors import AIDError
from aid_tools.benchmark.growth import measure_growth, place_in_time, slope
from aid_tools.benchmark.processes import usage

# Holds what its parent asks for, in a process that it starts itself.
HOLDER = """
import sys
held = bytearray(int(sys.argv[1]) << 20)
files = [open("/dev/null") for _ in range(int(sys.argv[2]))]
print("ready", flush=True)
sys.stdin.read()  # until its end
"""
STARTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
# As train_net.py: logs every second iteration. It keeps what it is told to at each of them.
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
    """A function (MiB, files) -> what a process whose child holds so much is seen to use."""
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


def test_what_processes_hold_is_counted_with_their_children(hold):
    little, much = hold(1, 1), hold(61, 8)
    assert little.processes == much.processes == 2
    assert much.descriptors - little.descriptors == 7
    assert much.memory - little.memory == pytest.approx(60, abs=5)


def test_a_process_that_has_ended_holds_nothing():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert usage(process.pid).processes == 0


def test_the_line_is_the_samples_own_and_peaks_do_not_tilt_it():
    x = np.arange(100.0)
    y = 800 + 0.02 * x
    assert slope(x, y) == pytest.approx((0.02, 0.02, 0.02))
    y[70:95] += 300  # least squares would say 2.1
    assert slope(x, y)[0] == pytest.approx(0.02, abs=0.005)
    many = np.arange(30_000.0)
    assert slope(many, 5 * many)[0] == pytest.approx(5)
    assert slope(np.array([1.0, 1, 2]), np.array([0.0, 4, 2]))[0] == 0  # none of equal places


def test_the_interval_holds_the_slope_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    x = np.arange(40.0)
    intervals = [slope(x, 0.3 * x + rng.normal(size=40))[1:] for _ in range(400)]
    assert np.mean([low <= 0.3 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)


def test_samples_lie_between_the_iterations_that_were_logged():
    found = place_in_time([0, 1, 2, 3, 4, 5], [0, 0, 20, 20, 40, 40])
    assert found.tolist() == [0, 10, 20, 30, 40, 40]


def test_only_the_iterations_in_between_are_judged():
    iterations = np.arange(400.0)
    memory = np.full(400, 500.0)
    memory[:200] = np.arange(200)  # caches fill
    memory[350:] = 900  # the evaluation
    flat = measure_growth(iterations, memory, 200, 350, limit=10)
    assert (flat.rate, flat.last, flat.samples, flat.is_flat) == (0, 500, 150, True)
    memory[200:350] += 0.011 * np.arange(150)
    leak = measure_growth(iterations, memory, 200, 350, limit=10)
    assert leak.rate == pytest.approx(11) and leak.is_growing and not leak.is_flat
    memory += 30 * np.random.default_rng(0).normal(size=400)
    short = measure_growth(iterations, memory, 200, 230, limit=10)
    assert short.low < 10 < short.high and not short.is_growing and not short.is_flat
    with pytest.raises(AIDError, match="9 samples between iteration 341 and 350 are too few"):
        measure_growth(iterations, memory, 341, 350, limit=10)


@pytest.fixture
def load_test(load_script, tiny_config, tmp_path, monkeypatch, capsys):
    """A function (MiB, files, environment) -> (exit code, output) of a run that leaks so much."""
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


def test_a_run_is_told_from_one_that_leaks(load_test, tmp_path):
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


def test_what_cannot_be_tested(load_test, monkeypatch):
    assert "must be below SOLVER.MAX_ITER 40" in load_test(0, 0, "--from-iteration", "40")[1]
    assert "are too few to measure growth" in load_test(0, 0, "--from-iteration", "39")[1]
    monkeypatch.setenv("FAIL", "1")
    code, output = load_test(0, 0)
    assert code == 2 and "error: the training failed, see " in output
    assert output.endswith("stdout.txt: the loss is gone\n")
