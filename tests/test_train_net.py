"""train_net.py as a process on rendered scenes, and the report on its runs."""

import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.data.kitti import register_kitti
from aid.utils.errors import AIDError
from aid_tools.report import load_run, load_runs, write_report
from aid_tools.report.runs import roles

TEACHER, PLAIN, STUDENT = "faster_rcnn_R34_FPN", "faster_rcnn_R18_FPN", "faster_rcnn_R18_from_R34"
FEW = ["SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "1", "SOLVER.IMS_PER_BATCH", "2"]
SCORED = [*FEW, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, repository, make_scenes):
    """A folder of rendered scenes, and a function (arguments) -> finished process in it."""
    folder = tmp_path_factory.mktemp("workplace")
    environment = {**os.environ, "DETECTRON2_DATASETS": str(folder / "datasets")}

    def call(script: str, *args: str) -> subprocess.CompletedProcess:
        command = [sys.executable, os.path.join(repository, script), *args]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )

    options = ["--output", str(folder / "datasets/synthetic_kitti"), "--workers", "1"]
    options += ["--train", "8", "--val", "4", "--wrong-class", "0.3", "--jitter", "0.3"]
    make_scenes(options)
    return folder, call


@pytest.fixture(scope="module")
def train(workplace, repository):
    """A function (config, arguments) -> finished process of train_net.py on the CPU."""

    def call(name: str, *args: str) -> subprocess.CompletedProcess:
        config = os.path.join(repository, "configs", f"{name}.yaml")
        return workplace[1]("train_net.py", "--config-file", config, "--num-gpus", "0", *args)

    return call


@pytest.fixture(scope="module")
def runs(workplace, train):
    """Output folders of a teacher, a plain student and an AID student, and the students' logs."""
    logs = {}
    for name in (TEACHER, PLAIN, STUDENT):
        done = train(f"Quickstart/{name}", *SCORED)
        assert done.returncode == 0, done.stderr[-2000:]
        logs[name] = done.stdout
    return {name: str(workplace[0] / "output/quickstart" / name) for name in logs}, logs


def one_error(done: subprocess.CompletedProcess) -> str:
    """The error line of a process, which must be the only report of its failure."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("error: "))
    return line


@pytest.fixture
def start(workplace, repository, load_script, no_handlers, monkeypatch):
    """A function (config, arguments) that calls train_net.py in this process."""
    monkeypatch.chdir(workplace[0])

    def call(name: str, *args: str) -> None:
        config = os.path.join(repository, "configs", f"{name}.yaml")
        load_script("train_net.py").start(["--config-file", config, "--num-gpus", "0", *args])

    return call


@pytest.fixture
def fail(start, capsys):
    """A function (config, arguments) -> error line of train_net.py, called in this process."""

    def call(name: str, *args: str) -> str:
        with pytest.raises(SystemExit) as ended:
            start(name, *args)
        output = capsys.readouterr()
        done = subprocess.CompletedProcess(args, ended.value.code, output.out, output.err)
        return one_error(done)

    return call


def test_missing_kitti_is_a_one_line_error(train):
    done = train("AID/faster_rcnn_R18_from_R101")
    assert "training/image_2 does not exist: unpack the left color images" in one_error(done)
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_missing_teacher_is_reported_before_training(fail):
    output = ["OUTPUT_DIR", "without_teacher"]
    line = fail(f"Quickstart/{STUDENT}", "TEACHER.WEIGHTS", "elsewhere/gone.pth", *output)
    assert "TEACHER.WEIGHTS elsewhere/gone.pth does not exist: train the teacher first" in line
    assert "configs/Quickstart/faster_rcnn_R34_FPN.yaml" in line.split("train_net.py --config-f")[1]
    with open("without_teacher/log.txt") as f:
        *before, last = f.read().splitlines()
    assert last.endswith(f"aid ERROR: {line.removeprefix('error: ')}")
    assert not any("Starting training" in x for x in before)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--eval-only", "--resume", "OUTPUT_DIR", "nowhere"], "--eval-only needs weights"),
        (["--eval-only", "MODEL.WEIGHTS", "gone.pth"], "MODEL.WEIGHTS gone.pth does not exist"),
        (["DATASETS.TEST", "('coco_2017_val',)"], "coco_2017_val cannot be loaded .*annotations"),
        (
            ["DATASETS.TRAIN", "('kiti',)"],
            "'kiti' is not registered.*: add --register FILE.* registers kitti_train",
        ),
    ],
)
def test_invalid_input_is_a_one_line_error(fail, arguments, message):
    assert re.search(message, fail(f"Quickstart/{PLAIN}", *arguments))
    assert not os.path.exists("nowhere")


def test_dry_run_prints_an_estimate_and_leaves_no_files(start, workplace, capsys):
    folder = workplace[0] / "output/only_tried"
    start(f"Quickstart/{PLAIN}", "--dry-run", *FEW, "OUTPUT_DIR", str(folder))
    screen = capsys.readouterr().out
    assert "estimate          3 iterations " in screen and "started now it ends at" in screen
    assert not folder.exists()


@pytest.mark.core
def test_log_describes_the_teacher_before_training(runs):
    log = runs[1][STUDENT]
    before, rest = log.split("Starting training")
    facts = ["configs/Quickstart/faster_rcnn_R34_FPN.yaml", " M parameters", "p2 (stride 4)"]
    facts += ["output/quickstart/faster_rcnn_R34_FPN/model_final.pth", "PKDLoss", "lambda 1,"]
    facts += ["gradient 10 times the task's", "ExponentialWeighting by instance", "alpha 0.1"]
    facts += ["configs/Quickstart/faster_rcnn_R18_from_R34.yaml", "Device cpu; processes: 1"]
    facts += ["AIDGeneralizedRCNN: 11.8 M parameters", "synthetic_kitti_train (8 images)"]
    facts += ["Inherited from the teacher: backbone.fpn_lateral2"]
    for fact in facts:
        assert fact in before
    assert len(before.splitlines()) < 15
    with open(os.path.join(runs[0][STUDENT], "log.txt")) as f:
        whole = f.read()
    for fact in ("Environment info", "Running with full config", "Model:\n", "Serializing"):
        assert fact in whole and fact not in before
    assert "loss_distill_pkd" in rest and "eta: " in rest
    shown = [x for x in rest.splitlines() if x.startswith("[")]
    assert "The first iteration took" in shown[0] and len(shown) <= 12
    assert "copypaste" not in rest and "Average Recall" not in rest
    assert "copypaste" in whole and "Average Recall" in whole


@pytest.mark.core
def test_checkpoint_is_evaluated_without_a_teacher(runs, train, workplace):
    folders, _ = runs
    weights = os.path.join(folders[STUDENT], "model_final.pth")
    hidden = folders[TEACHER] + "_hidden"
    os.rename(folders[TEACHER], hidden)
    done = train(
        f"Quickstart/{PLAIN}", "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", "eval",
        *SCORED,
    )  # fmt: skip
    os.rename(hidden, folders[TEACHER])
    assert done.returncode == 0, done.stderr[-2000:]
    actual = json.loads((workplace[0] / "eval/inference/coco_instances_results.json").read_text())
    with open(os.path.join(folders[STUDENT], "inference/coco_instances_results.json")) as f:
        assert json.load(f) == actual and actual
    figures = json.loads((workplace[0] / "eval/inference/metrics.json").read_text())
    with open(os.path.join(folders[STUDENT], "metrics.json")) as f:
        trained = json.loads(f.read().splitlines()[-1])
    keys = [x for x in figures if "/" in x and figures[x] is not None]
    assert {"bbox/AP", "kitti/AP_R40-Car-easy"} <= set(keys)
    assert {x: figures[x] for x in keys} == {x: trained[x] for x in keys}
    assert "Results: eval/inference/metrics.json" in done.stdout


@pytest.mark.slow
def test_run_with_a_second_teacher_of_another_family(runs, train, workplace):
    done = train("Quickstart/retinanet_R34_FPN", *FEW, "TEST.DETECTIONS_PER_IMAGE", "5")
    assert done.returncode == 0, done.stderr[-2000:]
    late = ["DISTILLATION.SCHEDULE.START_ITER", "1", "DISTILLATION.SCHEDULE.DECAY", "cosine"]
    late += ["DISTILLATION.BALANCE", "0.0"]  # the first iteration of BALANCE only measures
    done = train("Quickstart/faster_rcnn_R18_from_two", *SCORED, *late)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = workplace[0] / "output/quickstart/faster_rcnn_R18_from_two"
    message = next(
        x
        for x in done.stdout.splitlines()
        if "Distillation: lambda 1, losses by their weights" in x
    )
    assert "faster_rcnn_R34_FPN.yaml" in message and "retinanet_R34_FPN.yaml" in message
    (metrics,) = (
        x for x in map(json.loads, (folder / "metrics.json").read_text().splitlines())
        if "total_loss" in x
    )  # fmt: skip
    assert metrics["loss_distill_pkd"] > 0 and metrics["loss_distill_pkd_1"] > 0


@pytest.mark.slow
def test_resumed_process_ends_with_equal_weights(train, workplace):
    """RetinaNet's focal loss is a TorchScript function, which is optimized after some calls."""
    options = [*FEW, "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "3", "DATASETS.TEST", "()"]
    whole, resumed = workplace[0] / "whole", workplace[0] / "resumed"
    done = train("Quickstart/retinanet_R18_FPN", *options, "OUTPUT_DIR", str(whole))
    assert done.returncode == 0, done.stderr[-2000:]
    resumed.mkdir()
    shutil.copy(whole / "config.yaml", resumed)
    shutil.copy(whole / "model_0000002.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000002.pth")
    arguments = ["--resume", *options, "OUTPUT_DIR", str(resumed)]
    done = train("Quickstart/retinanet_R18_FPN", *arguments)
    assert "Starting training from iteration 3" in done.stdout
    expected, actual = (torch.load(run / "model_final.pth")["model"] for run in (whole, resumed))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.fixture
def report(runs, workplace, monkeypatch, tmp_path):
    """Report on the three runs, written in this process."""
    names = {}
    for split in ("train", "val"):
        names[split] = f"workplace_{split}_{tmp_path.name}"
        root = str(workplace[0] / "datasets" / "synthetic_kitti")
        register_kitti(names[split], root, split, "-")
    monkeypatch.chdir(workplace[0])
    loaded = [load_run(runs[0][name]) for name in (TEACHER, PLAIN, STUDENT)]
    for run in loaded:
        run.cfg.DATASETS.TRAIN, run.cfg.DATASETS.TEST = (names["train"],), (names["val"],)
    moved = []
    for run in loaded[:2]:  # the third run has no detections
        actual = os.path.join(run.folder, "inference", "kitti_results")
        moved.append(os.path.join(actual, names["val"]))
        shutil.copytree(os.path.join(actual, "synthetic_kitti_val"), moved[-1])
    lines = ["Left out: output/foo is no run."]
    write_report(loaded, str(tmp_path / "report"), 2, num_train=8, threshold=0.1, missing=lines)
    yield loaded, tmp_path / "report"
    for folder in moved:
        shutil.rmtree(folder)
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_report_contains_the_measurements_and_does_without_the_teacher(report):
    loaded, folder = report
    assert roles(loaded) == ["teacher", "plain", "AID by instance"]
    actual = json.loads((folder / "report.json").read_text())
    for run, row in zip(loaded, actual["runs"], strict=True):
        assert row["AP50"] == run.metrics[-1]["bbox/AP50"] and row["iterations"] == 3
        model = torch.load(run.weights)["model"]
        counted = sum(
            v.numel() for k, v in model.items()
            if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))
        )  # fmt: skip
        assert row["parameters"] == pytest.approx(counted / 1e6)
        assert row["gflops"] > 0 and row["seconds"] > 0
    assert actual["runs"][1]["gflops"] == pytest.approx(actual["runs"][2]["gflops"], rel=0.2)
    assert {"Car", "wrong class", "jittered box"} <= set(actual["instances"])
    text = (folder / "report.md").read_text()
    assert (
        text.splitlines()[2] == actual["outcome"][0]
        and f"(`{STUDENT}`) has " in actual["outcome"][0]
    )
    for phrase in ("teacher", "AID by instance", "repeat the runs with other seeds"):
        assert phrase in text
    official = text.split("KITTI's official metric")[1].split("##")[0]
    objects = loaded[0].metrics[-1]["kitti/objects-Car-easy"]
    assert f"Car-easy: {objects:.0f}" in official and STUDENT in official
    images = {x.split(")")[0] for x in text.split("](")[1:]}
    names = ("curves", "precision_recall", "detections", "instances", "suspicious_labels")
    assert images == {f"{name}.png" for name in names}
    assert all((folder / name).stat().st_size > 10_000 for name in images)
    html = (folder / "report.html").read_text()
    assert html.count('src="data:image/png;base64,') == 5 and "KITTI&#x27;s official" in html
    for page in (text, html):
        missing = page.split("Missing from this report")[-1]
        assert "Left out: output/foo is no run." in missing
        assert f"Precision over recall of {STUDENT}: folder " in missing
    loaded[2].cfg.TEACHER.WEIGHTS = "gone.pth"
    (folder / "instances.png").unlink()
    write_report(loaded, str(folder), num_images=1, num_train=1, threshold=0.1)
    text = (folder / "report.md").read_text()
    assert f"Teacher's loss on the labels, for {STUDENT}: " in text and "gone.pth" in text
    assert "](instances.png)" not in text and "](detections.png)" in text


def test_report_errors_are_one_line(runs, tmp_path):
    (tmp_path / "file").write_text("x")
    loaded = [load_run(runs[0][PLAIN])]
    with pytest.raises(AIDError, match="--output .*file cannot be made: File exists"):
        write_report(loaded, str(tmp_path / "file"), num_images=1, num_train=1, threshold=0.1)
    for name in ("config.yaml", "metrics.json"):
        shutil.copy(os.path.join(runs[0][PLAIN], name), tmp_path)
    torch.save({"model": {"foo.weight": torch.ones(3)}}, tmp_path / "model_final.pth")
    with pytest.raises(AIDError, match="model_final.pth does not fit"):
        load_run(str(tmp_path)).build()
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "bbox/AP": 1.0}\n')
    assert math.isnan(load_run(str(tmp_path)).seconds_per_iteration)


def test_repeated_iterations_of_a_resumed_run_count_once(runs, tmp_path):
    for name in ("config.yaml", "model_final.pth"):
        shutil.copy(os.path.join(runs[0][PLAIN], name), tmp_path)
    lines = [(1, 5.0), (2, 4.0), (1, 3.0), (2, 2.0), (3, 1.0), (900, 9.0)]  # of 3 iterations
    text = [json.dumps({"iteration": i, "bbox/AP": v, "time": v}) for i, v in lines]
    (tmp_path / "metrics.json").write_text("\n".join(text))
    run = load_run(str(tmp_path))
    assert [(x["iteration"], x["time"]) for x in run.metrics] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert run.seconds_per_iteration == 2.0


def test_unfinished_run_is_refused(runs, tmp_path):
    with pytest.raises(AIDError, match="config.yaml does not exist: .* is not a finished run"):
        load_run(str(tmp_path))
    for name in ("config.yaml", "model_final.pth"):
        shutil.copy(os.path.join(runs[0][PLAIN], name), tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "metrics.json").write_text('{"iteration": 0}\n')
    (tmp_path / "config.yaml").write_text(text.replace("synthetic_kitti_val", "fleet_val"))
    with pytest.raises(AIDError, match="config.yaml: dataset 'fleet_val' is not registered: add"):
        load_run(str(tmp_path))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(AIDError, match="no evaluation: run `python train_net.py .* --resume`"):
        load_run(str(tmp_path))


def test_incomparable_folders_are_skipped_with_a_message(runs, tmp_path):
    first = runs[0][PLAIN]
    bare, other = tmp_path / "bare", tmp_path / "other"
    bare.mkdir()
    shutil.copytree(first, other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("synthetic_kitti_val", "kitti_val"))
    actual, lines = load_runs([str(bare), first, str(other)])
    assert [run.folder for run in actual] == [first]
    assert len(lines) == 2 and "bare/config.yaml does not exist" in lines[0]
    assert "other was tested on kitti_val" in lines[1] and "on synthetic_kitti_val" in lines[1]
    with pytest.raises(AIDError, match="bare/config.yaml does not exist"):
        load_runs([str(bare)])
    with pytest.raises(AIDError, match="folder .*nowhere does not exist"):
        load_runs([first, str(tmp_path / "nowhere")])
