"""Calls of tools/export_model.py: files, tables and errors."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BoxMode
from PIL import Image

from aid import Predictor
from aid.checkpoint import StudentCheckpointer
from aid_tools.export import tool


@pytest.fixture
def student(student_model, toy_dataset, tmp_path):
    """Options for a student with its teacher and checkpoint."""
    keys = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "DATASETS.TEST", (toy_dataset,)]
    keys += ["DATALOADER.NUM_WORKERS", 0]
    model, cfg = student_model("retinanet", "faster_rcnn", keys)
    StudentCheckpointer(model, str(tmp_path)).save("student")
    (tmp_path / "student.yaml").write_text(cfg.dump())
    weights = str(tmp_path / "student.pth")
    return ["--config-file", str(tmp_path / "student.yaml"), "--weights", weights]


@pytest.fixture
def call(load_script, tmp_path, capsys):
    """A function (arguments) -> (exit status, lines of errors); writes to tmp_path / out.

    Its attribute ``screen`` is the standard output of the last call.
    """
    main = load_script("tools/export_model.py").main

    def run(*args) -> tuple[int, list[str]]:
        options = ["--output", str(tmp_path / "out"), "--num-images", "3", "--repeat", "2"]
        status = 0
        try:
            main([*args, *options, "--threads", "1"])
        except SystemExit as end:
            status = end.code
        run.screen, errors = capsys.readouterr()
        return status, [x for x in errors.splitlines() if x.startswith("error:")]

    return run


def test_student_and_teacher_are_exported_and_measured(student, call, tmp_path):
    assert call(*student) == (0, [])
    names = "contract.json, model_traced.pt, model.onnx, export.md, export.json"
    assert call.screen.splitlines()[-1] == f"Written to {tmp_path / 'out'}: {names}"
    assert sorted(names.split(", ")) == sorted(x.name for x in (tmp_path / "out").iterdir())
    actual = json.loads((tmp_path / "out/export.json").read_text())
    names = ["teacher", "student", "TorchScript", "ONNX"]
    assert [row["name"] for row in actual["rows"]] == names
    teacher, *students = actual["rows"]
    assert len({row["parameters"] for row in students}) == 1
    saved = torch.load(tmp_path / "faster_rcnn_teacher.pth")["model"]
    number = sum(v.numel() for k, v in saved.items() if "running" not in k and "num_b" not in k)
    assert teacher["parameters"] * 1e6 == pytest.approx(number)
    for row, name in zip(students[1:], ("model_traced.pt", "model.onnx"), strict=True):
        assert row["megabytes"] * 1e6 == (tmp_path / "out" / name).stat().st_size
        assert row["difference"]["detections"] > 100
    assert all(row["milliseconds"] > 0 for row in actual["rows"])
    contract = json.loads((tmp_path / "out/contract.json").read_text())
    assert contract["input"]["channels"] == "RGB"
    assert contract["classes"] == [
        {"id": k, "name": name} for k, name in enumerate(["Car", "Pedestrian", "Cyclist"])
    ]
    assert list(contract["outputs"]) == ["boxes", "scores", "classes"]
    page = (tmp_path / "out/export.md").read_text()
    assert ", threads: 1" in page and all(f"| {name} " in page for name in names)


def test_file_with_other_detections_is_not_written(student, call, tmp_path, monkeypatch):
    load = tool.load_exported

    def shifted(*args):
        run = load(*args)
        return lambda image: (run(image)[0] + 1, *run(image)[1:])

    monkeypatch.setattr(tool, "load_exported", shifted)
    (tmp_path / "out").mkdir()
    for name in ("contract.json", "model_traced.pt", "export.md", "export.json"):
        (tmp_path / "out" / name).write_text("of an earlier export")
    status, errors = call(*student, "--no-teacher", "--format", "trace")
    assert status == 2 and "boxes differ from the detector's by 1" in errors[0]
    (contract,) = (tmp_path / "out").iterdir()  # of this detector
    assert json.loads(contract.read_text())["classes"][0] == {"id": 0, "name": "Car"}


def test_file_of_an_interrupted_comparison_is_not_written(student, call, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "compare_detections", interrupted)
    with suppress(KeyboardInterrupt):
        call(*student, "--no-teacher", "--format", "trace")
    assert [x.name for x in (tmp_path / "out").iterdir()] == ["contract.json"]


def test_missing_teacher_has_no_row(student, call, tmp_path):
    """Where a student is deployed, there is no teacher."""
    (tmp_path / "faster_rcnn_teacher.pth").unlink()
    assert call(*student, "--format", "trace") == (0, [])
    rows = json.loads((tmp_path / "out/export.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["detector", "TorchScript"]


def test_unreadable_images_are_reported(student, call, tmp_path):
    status, errors = call(*student, "--no-teacher", "--images", str(tmp_path / "gone.png"))
    assert status == 2 and "gone.png: does not exist" in errors[0]
    content = yaml.safe_load((tmp_path / "student.yaml").read_text())
    content["DATASETS"]["TEST"] = ["registered_by_a_file"]
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(content))
    weights = torch.load(tmp_path / "student.pth")
    weights["classes"] = [{"id": k, "name": name} for k, name in enumerate("abc")]
    torch.save(weights, tmp_path / "student.pth")
    status, errors = call(*student, "--no-teacher")
    assert status == 2 and "add --register FILE, or --images IMAGE" in errors[0]


@pytest.mark.parametrize("fmt", ["trace", "onnx"])
def test_files_are_written_atomically(fmt, student, call, file_limit, tmp_path):
    """TorchScript would abort the process on a full disk."""
    with file_limit(20_000):
        status, errors = call(*student, "--no-teacher", "--format", fmt)
    assert status == 2 and errors[0].endswith("out cannot be written: File too large")
    assert [x.name for x in (tmp_path / "out").iterdir()] == ["contract.json"]


@pytest.fixture
def labeled(student, toy_dataset):
    """A dataset whose labels are the student's own best detections; its AP is high on it."""
    predictor = Predictor(student[1], student[3])
    records = DatasetCatalog.get(toy_dataset)
    for record in records:
        found = predictor(record["file_name"])[:5]
        record["annotations"] = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": k, "iscrowd": 0}
            for box, k in zip(
                found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), strict=True
            )
        ]
    name = f"labeled_{toy_dataset}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=predictor.class_names, evaluator_type="coco")
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


INT8 = ["--no-teacher", "--format", "onnx", "--int8"]


def test_int8_file_is_kept_and_runs_without_the_project(
    student, labeled, call, repository, tmp_path
):
    options = ["--calibrate", str(tmp_path), "--evaluate", labeled, "--max-ap-drop", "100"]
    assert call(*student, *INT8, *options) == (0, [])
    assert "model.onnx, model_int8.onnx, export.md" in call.screen
    rows = json.loads((tmp_path / "out/export.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["detector", "ONNX", "ONNX, INT8"]
    assert all(row["ap"]["bbox"] > 50 for row in rows[:2]) and "bbox" in rows[2]["ap"]
    assert round(rows[2]["megabytes"] * 1e6) == (tmp_path / "out/model_int8.onnx").stat().st_size
    image = str(tmp_path / "2.png")
    expected = Predictor(student[1], student[3])(image)
    for name in ("model.onnx", "model_int8.onnx"):
        program = (
            f"import runpy, sys\nsys.argv = ['', {str(tmp_path / 'out' / name)!r}, {image!r}]\n"
            f"runpy.run_path({repository + '/tools/run_onnx.py'!r}, run_name='__main__')\n"
            "assert not {'torch', 'detectron2', 'aid', 'cv2'} & set(sys.modules)\n"
        )
        run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        found = json.loads(run.stdout)
        assert len(found) > 10 and {x["name"] for x in found} <= {"Car", "Pedestrian", "Cyclist"}
        if name == "model.onnx":
            boxes, scores = [x["box"] for x in found], [x["score"] for x in found]
            assert np.allclose(boxes, expected.pred_boxes.tensor, atol=1e-2)
            assert np.allclose(scores, expected.scores, atol=1e-4)


def test_baselines_and_teacher_are_in_the_table(student, labeled, call, repository, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    shutil.copy(tmp_path / "student.pth", folder / "model_final.pth")
    shutil.copy(tmp_path / "student.yaml", folder / "config.yaml")
    options = ["--format", "onnx", "--baselines", str(folder), "--evaluate", labeled]
    assert call(*student, *options) == (0, [])
    rows = json.loads((tmp_path / "out/export.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "plain", "student", "ONNX"]
    teacher, plain, own, file = ({**row, "milliseconds": 0} for row in rows)
    assert {**plain, "name": "student"} == own and own["ap"]["bbox"] > 50
    assert own["gflops"] == file["gflops"] != teacher["gflops"] > 0
    assert teacher["ap"]["bbox"] < own["ap"]["bbox"] == pytest.approx(file["ap"]["bbox"], abs=1)
    assert f"AP on {labeled}" in (tmp_path / "out/export.md").read_text()


def test_rows_beside_baselines_are_named_by_their_folders(student, call, tmp_path, monkeypatch):
    """The plain student of tools/new_project.py is in a folder "student"."""
    for name in ("student", "aid"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "student.pth", tmp_path / name / "model_final.pth")
        shutil.copy(tmp_path / "student.yaml", tmp_path / name / "config.yaml")
    monkeypatch.chdir(tmp_path / "aid")
    options = ["--config-file", ".", "--format", "trace", "--baselines", "../student"]
    assert call(*options) == (0, [])
    rows = json.loads((tmp_path / "out/export.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "student", "aid", "TorchScript"]


def test_baselines_of_other_classes_are_refused(student, labeled, call, tmp_path):
    options = [*student, "--no-teacher", "--format", "trace", "--baselines"]
    assert call(*options, str(tmp_path / "gone"))[1][0].startswith("error: ")
    other = tmp_path / "other"
    other.mkdir()
    content = torch.load(tmp_path / "student.pth")
    content["classes"] = [{"id": k, "name": x} for k, x in enumerate("abc")]
    torch.save(content, other / "model_final.pth")
    shutil.copy(tmp_path / "student.yaml", other / "config.yaml")
    status, errors = call(*options, str(other), "--evaluate", labeled)
    assert status == 2 and "those of the detector a, b, c" in errors[0]
    assert not (tmp_path / "out").exists()


def test_int8_file_with_a_low_ap_is_not_kept(student, labeled, call, tmp_path, monkeypatch):
    aps = iter([{"bbox": 30.0}, {"bbox": 28.5}])
    monkeypatch.setattr(tool, "quantized", lambda path, images: Path(path).read_bytes())
    monkeypatch.setattr(tool, "average_precision", lambda *args: next(aps))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model_int8.onnx").write_text("of an earlier export")
    status, errors = call(*student, *INT8, "--calibrate", str(tmp_path), "--evaluate", labeled)
    assert status == 2 and "its bbox AP on labeled_" in errors[0] and "28.5" in errors[0]
    assert not (tmp_path / "out/model_int8.onnx").exists()


@pytest.mark.parametrize("name", ["model_int8.onnx", "model_scripted.pt"])
def test_files_of_an_earlier_export_do_not_stay(name, call, tmp_path):
    (tmp_path / "out").mkdir()
    for file in ("model_traced.pt", name):
        (tmp_path / "out" / file).write_text("")
    status, errors = call("--config-file", str(tmp_path), "--format", "trace", "onnx")
    assert status == 2 and f"out holds {name} of another export: remove it" in errors[0]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--int8", "--format", "trace", "--calibrate", "."], "add onnx to --format"),
        (["--int8"], "add --calibrate FOLDER"),
        (["--calibrate", "."], "--calibrate is an option of --int8"),
        (["--int8", "--calibrate", ".", "--max-ap-drop", "nan"], "--max-ap-drop is nan"),
        (["--int8", "--calibrate", "EMPTY"], "empty holds neither an image nor a video"),
        (["--int8", "--calibrate", "gone.png"], "--calibrate gone.png does not exist"),
        (["--int8", "--calibrate", "TEXT"], "text.png cannot be used: it is no image that Pillow"),
    ],
)
def test_invalid_options_of_int8_are_refused(options, message, call, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    places = {"EMPTY": str(tmp_path / "empty"), "TEXT": str(tmp_path / "text.png")}
    options = [places.get(x, x) for x in options]
    status, errors = call("--config-file", str(tmp_path), *options)
    assert status == 2 and message in errors[0]
    assert not (tmp_path / "out").exists()


def test_datasets_without_the_labels_for_int8_are_refused(student, call, toy_dataset, tmp_path):
    options = [*student, *INT8, "--calibrate", str(tmp_path), "--evaluate"]
    status, errors = call(*options, "nowhere")
    assert status == 2 and "'nowhere' is not registered" in errors[0]
    MetadataCatalog.get("other").set(thing_classes=["a", "b", "c"], evaluator_type="coco")
    DatasetCatalog.register("other", lambda: DatasetCatalog.get(toy_dataset))
    try:
        status, errors = call(*options, "other")
    finally:
        DatasetCatalog.remove("other")
        MetadataCatalog.remove("other")
    assert status == 2 and "classes of other are a, b, c, those of the detector Car," in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shorter, longest", [(96, 320), (800, 1333), (100, 100), (0, 1333)])
def test_example_resizes_as_detectron2(shorter, longest, load_script):
    resized = load_script("tools/run_onnx.py").resized
    rng = np.random.default_rng(0)
    for height, width in [(375, 1242), (64, 64), *rng.integers(20, 2000, (200, 2)).tolist()]:
        expected = (height, width)
        if shorter:
            expected = ResizeShortestEdge.get_output_shape(height, width, shorter, longest)
        assert resized(width, height, shorter, longest) == expected[::-1]


def test_example_reports_mistakes_in_one_line(repository, tmp_path, monkeypatch, capsys):
    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["run_onnx.py", *args])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(f"{repository}/tools/run_onnx.py", run_name="__main__")
        assert capsys.readouterr().out == ""
        return ended.value.code

    model, image = str(tmp_path / "model.onnx"), str(tmp_path / "a.png")
    assert "python tools/run_onnx.py output/export/model.onnx IMAGE" in run(model)
    assert re.fullmatch(r"error: .*No such file.*contract.json'", run(model, image))
    (tmp_path / "contract.json").write_text('{"input": {"shorter_side": 8, "longest_side": 9}}')
    assert re.fullmatch("error: .*NO_SUCHFILE.*model.onnx.*", run(model, image))
    (tmp_path / "model.onnx").write_text("no model")
    assert re.fullmatch("error: .*INVALID_PROTOBUF.*", run(model, image))


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_example_has_help(option, repository, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_onnx.py", option])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(f"{repository}/tools/run_onnx.py", run_name="__main__")
    assert not ended.value.code and "run_onnx.py output/export/model.onnx IMAGE" in (
        capsys.readouterr().out
    )


def test_example_returns_an_empty_list_without_objects(load_script, tmp_path, monkeypatch):
    contract = {"input": {"shorter_side": 8, "longest_side": 9, "channels": "RGB", "name": "image"}}
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    Image.new("RGB", (16, 8)).save(tmp_path / "a.png")
    empty = [np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)]
    monkeypatch.setattr(
        "onnxruntime.InferenceSession",
        lambda *args, **options: SimpleNamespace(run=lambda names, inputs: empty),
    )
    example = load_script("tools/run_onnx.py")
    assert example.detect(str(tmp_path / "model.onnx"), str(tmp_path / "a.png")) == []
