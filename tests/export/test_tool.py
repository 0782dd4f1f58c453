"""Calls of tools/export_model.py: files, tables and errors."""

import json

import pytest
import torch

from aid.checkpoint import StudentCheckpointer
from aid_tools.export import tool


@pytest.fixture
def student(student_model, toy_dataset, tmp_path):
    """Options for a student with its teacher and checkpoint."""
    keys = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "DATASETS.TEST", (toy_dataset,)]
    model, cfg = student_model("retinanet", "faster_rcnn", keys)
    StudentCheckpointer(model, str(tmp_path)).save("student")
    (tmp_path / "student.yaml").write_text(cfg.dump())
    weights = str(tmp_path / "student.pth")
    return ["--config-file", str(tmp_path / "student.yaml"), "--weights", weights]


@pytest.fixture
def call(load_script, tmp_path, capsys):
    """A function (arguments) -> (exit status, lines of errors); writes to tmp_path / out."""
    main = load_script("tools/export_model.py").main

    def run(*args) -> tuple[int, list[str]]:
        options = ["--output", str(tmp_path / "out"), "--num-images", "3", "--repeat", "2"]
        status = 0
        try:
            main([*args, *options, "--threads", "1"])
        except SystemExit as end:
            status = end.code
        return status, [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]

    return run


def test_student_and_teacher_are_exported_and_measured(student, call, tmp_path):
    assert call(*student, "--format", "trace", "script", "onnx") == (0, [])
    actual = json.loads((tmp_path / "out/export.json").read_text())
    names = ["teacher", "student", "TorchScript, traced", "TorchScript, scripted", "ONNX"]
    assert [row["name"] for row in actual["rows"]] == names
    teacher, *students = actual["rows"]
    assert len({row["parameters"] for row in students}) == 1
    saved = torch.load(tmp_path / "faster_rcnn_teacher.pth")["model"]
    number = sum(v.numel() for k, v in saved.items() if "running" not in k and "num_b" not in k)
    assert teacher["parameters"] * 1e6 == pytest.approx(number)
    for row, name in zip(
        students[1:], ("model_traced.pt", "model_scripted.pt", "model.onnx"), strict=True
    ):
        assert row["megabytes"] * 1e6 == (tmp_path / "out" / name).stat().st_size
        assert row["difference"]["detections"] > 100
    assert all(row["milliseconds"] > 0 for row in actual["rows"])
    assert actual["input"]["channels"] == "RGB"
    assert actual["classes"] == ["Car", "Pedestrian", "Cyclist"]
    page = (tmp_path / "out/export.md").read_text()
    assert "threads: 1" in page and all(f"| {name} " in page for name in names)


def test_file_with_other_detections_is_removed(student, call, tmp_path, monkeypatch):
    load = tool.load_exported

    def shifted(*args):
        run = load(*args)
        return lambda image: (run(image)[0] + 1, *run(image)[1:])

    monkeypatch.setattr(tool, "load_exported", shifted)
    status, errors = call(*student, "--no-teacher", "--format", "trace")
    assert status == 2 and "boxes differ from the detector's by 1" in errors[0]
    assert not list((tmp_path / "out").iterdir())


def test_no_teacher_option_omits_a_missing_teacher(student, call, tmp_path):
    (tmp_path / "faster_rcnn_teacher.pth").unlink()
    status, errors = call(*student, "--format", "trace")
    assert status == 2 and "faster_rcnn_teacher.pth does not exist" in errors[0]
    assert call(*student, "--format", "trace", "--no-teacher") == (0, [])
    rows = json.loads((tmp_path / "out/export.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["detector", "TorchScript, traced"]


def test_unreadable_images_are_reported(student, call, tmp_path):
    status, errors = call(*student, "--no-teacher", "--images", str(tmp_path / "gone.png"))
    assert status == 2 and "gone.png: does not exist" in errors[0]


@pytest.mark.parametrize("fmt", ["trace", "script", "onnx"])
def test_files_are_written_atomically(fmt, student, call, file_limit, tmp_path):
    """TorchScript would abort the process on a full disk."""
    with file_limit(20_000):
        status, errors = call(*student, "--no-teacher", "--format", fmt)
    assert status == 2 and errors[0].endswith("out cannot be written: File too large")
    assert not list((tmp_path / "out").iterdir())
