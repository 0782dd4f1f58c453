"""KITTI's evaluation: equal results from a detector's output and from files."""

import io
import json
import logging
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.structures import Boxes, Instances

from aid.data.kitti import register_kitti, register_kitti_test
from aid.evaluation import KITTIEvaluator, build_evaluator
from aid.utils.errors import AIDError

SIZE = (160, 80)
BOXES = torch.tensor([[10.0, 5.0, 70.0, 55.0], [90.0, 10.0, 150.0, 70.0]])


@pytest.fixture
def dataset(kitti, tmp_path):
    """Name of a dataset of 50 images with a car and a pedestrian each, and its root."""
    labels = [
        f"{kind} 0 0 0 {' '.join(map(str, box.tolist()))} 1 1 1 0 0 9 0"
        for kind, box in zip(("Car", "Pedestrian"), BOXES, strict=True)
    ]
    root = kitti({f"{i:06}": labels for i in range(50)}, SIZE)
    name = f"kitti_{tmp_path.name}"
    register_kitti(name, root, "train", "")
    yield name, root
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def detections(seed: int) -> Instances:
    """Both objects, shifted slightly, and one false car."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances(SIZE[::-1])
    boxes = torch.cat([BOXES, torch.tensor([[0.0, 40.0, 40.0, 79.0]])])
    instances.pred_boxes = Boxes(boxes + 6 * torch.rand(3, 4, generator=generator))
    instances.pred_classes = torch.tensor([0, 1, 0])
    instances.scores = torch.rand(3, generator=generator)
    return instances


def feed(evaluator, records, indices):
    evaluator.reset()
    for i in indices:
        evaluator.process([records[i]], [{"instances": detections(i)}])
    return evaluator.evaluate()


def test_evaluator_and_result_files_agree(dataset, tmp_path, load_script, capsys):
    name, root = dataset
    records = DatasetCatalog.get(name)
    results = feed(build_evaluator(name, str(tmp_path / "out")), records, range(50))
    assert 0 < results["kitti"]["AP_R40-Car-moderate"] < 100
    assert results["kitti"]["mAP50"] == results["bbox"]["AP50"]
    assert results["kitti"]["AP_R11-Cyclist-hard"] == 0
    folder = tmp_path / "out/kitti_results" / name
    assert sorted(os.listdir(folder)) == [f"{i:06}.txt" for i in range(50)]

    labels = os.path.join(root, "training/label_2")
    arguments = ["--labels", labels, "--results", str(folder), "--json", str(tmp_path / "a.json")]
    load_script("tools/evaluate_kitti.py").main(arguments)
    assert "| Car " in capsys.readouterr().out
    figures = json.loads((tmp_path / "a.json").read_text())
    assert list(figures) == ["Car", "Pedestrian", "Cyclist"]
    for kind, metrics in figures.items():
        for metric, values in metrics.items():
            for difficulty, value in values.items():
                assert results["kitti"][f"{metric}-{kind}-{difficulty}"] == value


def test_summary_of_coco_is_in_the_log_only(dataset, tmp_path, monkeypatch, capsys):
    log = io.StringIO()
    monkeypatch.setattr(logging.getLogger("aid"), "handlers", [logging.StreamHandler(log)])
    name, _ = dataset
    feed(build_evaluator(name, str(tmp_path / "out")), DatasetCatalog.get(name), range(50))
    assert capsys.readouterr().out == "" and "Average Recall" in log.getvalue()


def feed_shard(name, records, output):
    return feed(KITTIEvaluator(name, output), records, InferenceSampler(len(records)))


@pytest.mark.parametrize("num_images, processes", [(50, 2), (5, 2), (5, 4), (3, 4)])
def test_evaluation_in_several_processes_equals_one(
    num_images, processes, dataset, in_processes, tmp_path
):
    name, _ = dataset
    records = DatasetCatalog.get(name)[:num_images]
    expected = feed_shard(name, records, str(tmp_path / "one"))
    assert 0 < expected["kitti"]["AP_R40-Car-moderate"] < 100
    first, *others = in_processes(processes, feed_shard, name, records, str(tmp_path / "more"))
    assert others == [None] * (processes - 1)
    assert first["kitti"] == expected["kitti"]
    np.testing.assert_equal(first["bbox"], expected["bbox"])  # NaN for a class without objects
    written = sorted((tmp_path / "one/kitti_results" / name).iterdir())
    assert len(written) == num_images
    for text in written:
        other = tmp_path / "more/kitti_results" / name / text.name
        assert other.read_text() == text.read_text()


def test_images_without_labels_give_result_files_only(kitti, tmp_path):
    kitti({"000000": [], "000001": []})
    (tmp_path / "training").rename(tmp_path / "testing")
    name = f"kitti_test_{tmp_path.name}"
    register_kitti_test(name, str(tmp_path), "")
    stale = tmp_path / "kitti_results" / name / "000009.txt"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier run")
    results = feed(build_evaluator(name, str(tmp_path)), DatasetCatalog.get(name), range(2))
    assert results == {}
    assert sorted(os.listdir(stale.parent)) == ["000000.txt", "000001.txt"]
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_no_detections_give_zero_and_the_evaluator_is_reusable(dataset, tmp_path):
    name, _ = dataset
    records = DatasetCatalog.get(name)
    evaluator = build_evaluator(name, str(tmp_path / "out"))
    first = feed(evaluator, records, range(50))
    evaluator.reset()
    evaluator.process(records, [{"instances": detections(0)[:0]} for _ in records])
    results = evaluator.evaluate()
    empty = results["kitti"]
    assert empty["mAP50"] == empty["AP_R40-Car-easy"] == 0
    # NaN where there is no object: cyclists, and small ones.
    expected = {"AP": 0, "AP50": 0, "AP-Car": 0, "AP-Pedestrian": 0, "AP-Cyclist": np.nan}
    np.testing.assert_equal({k: results["bbox"][k] for k in expected}, expected)
    assert np.isnan(results["bbox"]["APs"]) and results["bbox"]["APm"] == 0
    assert empty["objects-Car-easy"] == 50
    assert feed(evaluator, records, range(50))["kitti"] == first["kitti"]
    evaluator.reset()  # discards earlier images
    evaluator.process([records[7]], [{"instances": detections(7)}])
    assert evaluator.evaluate()["kitti"]["objects-Car-easy"] == 1


def test_unwritable_folder_is_refused(dataset, tmp_path):
    name, _ = dataset
    evaluator = build_evaluator(name, str(tmp_path / "out"))
    (tmp_path / "out/kitti_results").write_text("in the way")
    with pytest.raises(AIDError, match="result files cannot be written to .*kitti_results"):
        feed(evaluator, DatasetCatalog.get(name), range(2))


def test_mismatched_folders_are_refused(tmp_path, load_script, capsys, file_limit):
    main = load_script("tools/evaluate_kitti.py").main
    labels, results = tmp_path / "labels", tmp_path / "results"

    def error() -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["--labels", str(labels), "--results", str(results)])
        assert stopped.value.code == 2
        (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
        return line

    assert "labels does not exist" in error()
    labels.mkdir()
    results.mkdir()
    assert "labels holds no .txt file" in error()
    (labels / "000000.txt").write_text("")
    (results / "000000.txt").write_text("")
    (results / "000001.txt").write_text("")
    assert "000001.txt has no label file in" in error()
    (results / "000001.txt").unlink()
    arguments = ["--labels", str(labels), "--results", str(results)]
    main(arguments)
    with pytest.raises(SystemExit):
        main([*arguments, "--json", str(tmp_path / "gone/a.json")])
    assert "--json " in capsys.readouterr().err
    with pytest.raises(SystemExit), file_limit(10):
        main([*arguments, "--json", str(tmp_path / "a.json")])
    assert "a.json cannot be written: File too large" in capsys.readouterr().err
    assert not [x for x in tmp_path.iterdir() if x.is_file()]
    (results / "000000.txt").write_text("Car 0\n")
    assert "results/000000.txt, line 1: 2 fields" in error()


def test_missing_result_files_are_skipped_and_empty_ones_counted(tmp_path, load_script):
    labels, results = tmp_path / "labels", tmp_path / "results"
    car = "Car 0 0 0 0 0 50 50 1 1 1 0 0 9 0"
    for folder in (labels, results):
        folder.mkdir()
    for i in range(82):
        (labels / f"{i:06}.txt").write_text(car)
    for i in range(41):
        (results / f"{i:06}.txt").write_text(f"{car} 0.{i + 10}")

    def measure() -> float:
        arguments = ["--labels", str(labels), "--results", str(results)]
        load_script("tools/evaluate_kitti.py").main([*arguments, "--json", str(tmp_path / "a")])
        return json.loads((tmp_path / "a").read_text())["Car"]["AP_R40"]["hard"]

    assert measure() == pytest.approx(100)
    for i in range(41, 82):
        (results / f"{i:06}.txt").write_text("")
    assert measure() == pytest.approx(50, abs=2.5)
