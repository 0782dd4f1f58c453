"""The way of docs/own_data.md: from a folder of labels to the report on a distilled student."""

import json
import os
import re
import shlex
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.config import load_config
from aid.data.unlabeled import num_unlabeled, unlabeled_records

# Narrow networks and few samples, without weights to download.
SMALL = """
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
DATALOADER: {NUM_WORKERS: 0}
MODEL:
  WEIGHTS: ""
  BACKBONE: {FREEZE_AT: 0}
  RESNETS:
    {DEPTH: 50, NORM: "BN", STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8, RES2_OUT_CHANNELS: 16}
  FPN: {OUT_CHANNELS: 16}
  RPN: {POST_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TEST: 50}
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 16}
  ROI_BOX_HEAD: {FC_DIM: 16}
SOLVER: {BASE_LR: 0.001}
"""


@pytest.fixture
def project(load_script, tmp_path, monkeypatch, capsys):
    """Commands that tools/new_project.py prints for converted labels of Pascal VOC, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aid.utils.commands.REGISTERED", files := [])
    monkeypatch.setattr("aid.data.register.REGISTERED", files)
    load_script("tests/own_data/layouts.py").write_voc(tmp_path / "labels")
    for split, name in (("val", "d"), ("test", "e")):
        (tmp_path / f"labels/ImageSets/Main/{split}.txt").write_text(name)
    load_script("tools/convert_dataset.py").main(["labels", "--output", "fleet_data"])
    args = ["fleet", "--data", "fleet_data", "--gpus", "0", "--batch", "2", "--epochs", "2"]
    capsys.readouterr()
    load_script("tools/new_project.py").main(args)
    printed = capsys.readouterr().out.splitlines()
    (tmp_path / "fleet/small.yaml").write_text(SMALL)
    for name in ("teacher.yaml", "student.yaml"):
        text = (tmp_path / "fleet" / name).read_text()
        small = text.replace('"data.yaml"]', '"data.yaml", "small.yaml"]')
        (tmp_path / "fleet" / name).write_text(small)
    yield [x for x in printed if x.startswith("python ")]
    for name in ("fleet_train", "fleet_val", "fleet_test"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_printed_commands_train_and_compare_a_distilled_student(
    project, load_script, no_handlers, tmp_path, capsys
):
    logs = []
    for command in project:
        _, script, *args = shlex.split(command)
        module = load_script(os.path.abspath(script))
        (module.start if hasattr(module, "start") else module.main)(args)
        logs.append(capsys.readouterr().out)
    log = (tmp_path / "output/fleet/aid/log.txt").read_text()
    assert len(logs) == 5 and f"teacher of TEACHER.CONFIG_FILE {tmp_path}/fleet" in log
    folder = tmp_path / "output/fleet/report"
    assert "| aid" in (text := (folder / "report.md").read_text()) and "AID by instance" in text
    assert "| forklift " in text
    assert (folder / "suspicious_labels.csv").read_text().count("\n") == 4
    rows = json.loads((folder / "report.json").read_text())["runs"]
    assert [x["role"] for x in rows] == ["teacher", "plain", "AID by instance"]
    assert [x["iterations"] for x in rows] == [4, 2, 2]
    assert (tmp_path / "output/fleet/test/inference/metrics.json").exists()


@pytest.fixture
def page(repository):
    """Code blocks of the page: {language: [text, ...]}."""
    with open(os.path.join(repository, "docs", "own_data.md")) as f:
        blocks = re.findall(r"```(\w+)\n(.*?)```", f.read(), re.DOTALL)
    return {kind: [text for k, text in blocks if k == kind] for kind in ("python", "sh", "yaml")}


def commands(text: str) -> list[list[str]]:
    """Words of the commands in a code block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return list(filter(None, (shlex.split(line, comments=True) for line in lines)))


def test_commands_of_the_page_are_those_that_are_printed(
    page, load_script, tmp_path, monkeypatch, capsys
):
    (convert,), (new,), run, (predict, export), (detect,) = map(commands, page["sh"])
    for name, command in (
        ("convert_dataset", convert), ("new_project", new), ("predict", predict),
        ("export_model", export), ("predict", detect),
    ):  # fmt: skip
        assert command[:2] == ["python", f"tools/{name}.py"]
        load_script(command[1]).build_parser().parse_args(command[2:])
    monkeypatch.chdir(tmp_path)
    load_script("tests/own_data/layouts.py").write_coco(tmp_path / "LABELS")
    for folder, name in (("images", "{}"), ("annotations", "instances_{}2017.json")):
        source, target = (tmp_path / "LABELS" / folder / name.format(x) for x in ("val", "test"))
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    load_script("tools/convert_dataset.py").main(convert[2:])
    capsys.readouterr()
    load_script("tools/new_project.py").main(new[2:])
    printed = commands(capsys.readouterr().out)
    assert len(run) == 5 and [x[0:1] + x[2:] for x in printed] == [x[0:1] + x[2:] for x in run]
    assert all(a[1].endswith(b[1]) for a, b in zip(printed, run, strict=True))


def test_unlabeled_images_are_added_by_the_file_of_the_page(project, page, tmp_path):
    (unlabeled,) = page["yaml"]
    (tmp_path / "fleet/unlabeled.yaml").write_text(unlabeled)
    cfg = load_config(str(tmp_path / "fleet/unlabeled.yaml"))
    assert cfg.MODEL.META_ARCHITECTURE == "AIDGeneralizedRCNN"
    _, registration, detected = page["python"]
    os.symlink(tmp_path / "labels/JPEGImages", tmp_path / "fleet/unlabeled")
    names = (*cfg.DATASETS.UNLABELED, "fleet_detected")
    try:
        exec(registration + detected)
        assert num_unlabeled(cfg, 2) == 1 and len(unlabeled_records(cfg)) == 5
        assert MetadataCatalog.get("fleet_detected").has_detections
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
