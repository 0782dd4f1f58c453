"""Detections of tools/predict.py, compared with an evaluation."""

import json
import pickle

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model

from aid.checkpoint import StrictCheckpointer, StudentCheckpointer
from aid.config import load_config
from aid.data import build_test_loader, register_kitti
from aid.evaluation import build_evaluator


def evaluate(files, dataset, folder):
    cfg = load_config(files[0])
    model = build_model(cfg).eval()
    StrictCheckpointer(model, "weights").load(files[1])
    loader = build_test_loader(cfg, dataset)
    inference_on_dataset(model, loader, build_evaluator(dataset, str(folder)))


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "gfl"])
def test_detections_equal_those_of_the_evaluator(
    kind, saved, toy_dataset, call, read_detections, tmp_path, monkeypatch
):
    # Twice the size of the images, some of them upright: boxes and masks are scaled back.
    files = saved(kind, ["INPUT.MIN_SIZE_TEST", 128, "DATASETS.TEST", (toy_dataset,)])
    names = {x["image_id"]: x["file_name"] for x in DatasetCatalog.get(toy_dataset)}
    evaluate(files, toy_dataset, tmp_path / "evaluated")
    expected = {name: [] for name in names.values()}
    for row in json.loads((tmp_path / "evaluated/coco_instances_results.json").read_text()):
        expected[names[row.pop("image_id")]].append(row)
    assert call(files, str(tmp_path / "*.png"), "--no-pictures") == (0, [])
    actual = read_detections()
    assert actual == expected
    assert sum(map(len, actual.values())) > 20
    if kind == "mask_rcnn":
        assert all(row["segmentation"]["counts"] for rows in actual.values() for row in rows)


def test_kitti_files_equal_those_of_the_evaluator(saved, kitti, call, tmp_path):
    root = kitti({f"{i:06}": ["Car 0 0 0 10 10 60 60 1 1 1 1 1 1 0"] for i in range(3)})
    register_kitti("predicted_kitti", root, "train", "")
    try:
        files = saved("faster_rcnn", ["DATASETS.TEST", ("predicted_kitti",)])
        evaluate(files, "predicted_kitti", tmp_path / "evaluated")
        images = f"{root}/training/image_2"
        assert call(files, images, "--no-pictures", "--format", "kitti") == (0, [])
    finally:
        DatasetCatalog.remove("predicted_kitti")
        MetadataCatalog.remove("predicted_kitti")
    expected = tmp_path / "evaluated/kitti_results/predicted_kitti"
    assert len(list(expected.iterdir())) == 3
    for path in expected.iterdir():
        text = path.read_text()
        assert (tmp_path / "out/kitti" / path.name).read_text() == text != ""


def test_student_needs_no_teacher(
    student_model, saved, toy_dataset, call, read_detections, tmp_path
):
    """The checkpoint holds adapters, and the config names missing files."""
    student, cfg = student_model("faster_rcnn", opts=["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    StudentCheckpointer(student, str(tmp_path)).save("student")
    cfg.TEACHER.CONFIG_FILE = cfg.TEACHER.WEIGHTS = str(tmp_path / "gone")
    (tmp_path / "student.yaml").write_text(cfg.dump())
    files = (str(tmp_path / "student.yaml"), str(tmp_path / "student.pth"))
    assert call(files, str(tmp_path / "*.png"), "--no-pictures") == (0, [])
    plain = saved("faster_rcnn")
    weights = {k: v for k, v in student.state_dict().items() if not k.startswith("distillation.")}
    torch.save({"model": weights}, plain[1])
    assert call(plain, str(tmp_path / "*.png"), "--no-pictures", output="plain") == (0, [])
    assert read_detections() == read_detections("plain")
    assert any(read_detections().values())


def test_model_zoo_weights_are_supported(saved, toy_dataset, call, read_detections, tmp_path):
    config, weights = saved("retinanet", ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0])
    arrays = {key: value.numpy() for key, value in torch.load(weights)["model"].items()}
    pickled = tmp_path / "model.pkl"
    pickled.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    args = [str(tmp_path / "0.png"), "--no-pictures"]
    assert call((config, str(pickled)), *args) == (0, [])
    assert call((config, weights), *args, output="again") == (0, [])
    assert read_detections() == read_detections("again")
    assert any(read_detections().values())
