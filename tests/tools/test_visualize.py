"""tools/visualize.py as a process, on rendered scenes."""

import os
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from aid.checkpoint import StudentCheckpointer
from aid.config import load_config
from aid_tools.visualization.load import build_student

CONFIG = "configs/Quickstart/retinanet_R18_from_R34.yaml"


@pytest.fixture(scope="module")
def call(tmp_path_factory, repository, make_scenes):
    """A function (arguments) -> (finished process, its folder), with scenes and a teacher."""
    folder = tmp_path_factory.mktemp("visualize")
    root = str(folder / "synthetic_kitti")
    make_scenes(["--output", root, "--train", "1", "--val", "3", "--workers", "1"])
    cfg = load_config(os.path.join(repository, "configs/Quickstart/retinanet_R34_FPN.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    torch.save({"model": build_model(cfg).state_dict()}, folder / "teacher.pth")

    def visualize(*args: str):
        command = [sys.executable, "tools/visualize.py", "--config-file", CONFIG, "--num-gpus", "0"]
        command += ["--output", str(folder / "pictures"), *args]
        command += ["TEACHER.WEIGHTS", str(folder / "teacher.pth")]
        environment = {**os.environ, "DETECTRON2_DATASETS": str(folder)}
        options = {"cwd": repository, "env": environment, "capture_output": True, "text": True}
        return subprocess.run(command, timeout=300, **options), folder

    return visualize


def test_pages_and_contact_sheet_are_written(call):
    done, folder = call("--images", "2", "--contact-sheet", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Drawing pages: 100%" in done.stderr
    written = sorted(os.listdir(folder / "pictures"))
    assert written == ["000001.png", "000002.png", "contact_sheet.png"]
    assert done.stdout.split() == [str(folder / "pictures" / name) for name in written]
    sizes = {name: Image.open(folder / "pictures" / name).size for name in written}
    # 4 maps of 3.2 inches in five rows of levels, below the scene.
    assert sizes["000001.png"] == sizes["000002.png"] == (1461, 1369)
    assert sizes["contact_sheet.png"] == (1130, 835)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--dataset", "nothing"], "--dataset 'nothing' is not registered"),
        (
            ["--dataset", "nothing", "TEACHER.DETECTIONS", "found.json"],
            "TEACHER.DETECTIONS found.json has no features to draw: choose",
        ),
        (["--images", "9.png"], "--images: the dataset has no image '9.png'"),
        (["--weights", "nowhere.pth"], "--weights nowhere.pth does not exist"),
        (["--contact-sheet", "-1"], "--contact-sheet -1: give a number from 0"),
        (["--register", "nowhere.py"], "--register nowhere.py does not exist"),
        (["DATASETS.TEST", "[]", "DATASETS.TRAIN", "[]"], "DATASETS.TEST is empty"),
        (["TEACHER.WEIGHTS", "nowhere.pth"], "TEACHER.WEIGHTS nowhere.pth does not exist"),
        (["--config-file", "nowhere.yaml"], "--config-file nowhere.yaml does not exist"),
    ],
)
def test_invalid_options_are_one_line_errors(
    args, message, load_script, student_config, toy_dataset, tmp_path, capsys
):
    student_config("faster_rcnn", opts=["DATASETS.TEST", [toy_dataset]])
    config = ["--config-file", str(tmp_path / "faster_rcnn_student.yaml")]
    with pytest.raises(SystemExit) as ended:
        main = load_script("tools/visualize.py").main
        main([*config, "--num-gpus", "0", "--output", str(tmp_path / "pictures"), *args])
    assert ended.value.code == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and errors[0].removeprefix("error: ").startswith(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_reported_with_instructions(
    load_script, student_config, toy_dataset, tmp_path, capsys
):
    student_config("faster_rcnn", opts=["DATASETS.TEST", [toy_dataset], "MODEL.DEVICE", "cuda"])
    config = ["--config-file", str(tmp_path / "faster_rcnn_student.yaml")]
    with pytest.raises(SystemExit):
        load_script("tools/visualize.py").main([*config, "--output", str(tmp_path / "pictures")])
    assert "torch finds no GPU here: add --num-gpus 0" in capsys.readouterr().err


def test_output_folder_stands_for_its_config_and_last_checkpoint(
    load_script, student_config, toy_dataset, tmp_path
):
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = student_config("faster_rcnn", opts=["DATASETS.TEST", [toy_dataset]])
    (folder / "config.yaml").write_text(cfg.dump())
    StudentCheckpointer(build_student(cfg), str(folder)).save("model_0000009")
    main, sizes = load_script("tools/visualize.py").main, []
    for config_file in (folder, folder / "config.yaml"):
        output = tmp_path / f"pictures_{len(sizes)}"
        options = ["--num-gpus", "0", "--images", "1", "--output", str(output)]
        main(["--config-file", str(config_file), *options])
        sizes.append(Image.open(output / "0.png").width)
    assert sizes[0] > sizes[1]  # columns of the trained student


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "holds no config.yaml: name the output folder"),
        (["config.yaml"], "model_final.pth does not exist: train"),
    ],
)
def test_incomplete_output_folders_are_refused(
    files, message, load_script, student_config, toy_dataset, tmp_path, capsys
):
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = student_config("faster_rcnn", opts=["DATASETS.TEST", [toy_dataset]])
    for name in files:
        (folder / name).write_text(cfg.dump())
    with pytest.raises(SystemExit):
        main = load_script("tools/visualize.py").main
        main(["--config-file", str(folder), "--num-gpus", "0", "--output", str(tmp_path / "p")])
    (error,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert message in error
