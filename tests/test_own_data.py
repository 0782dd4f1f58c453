"""Commands and files of docs/own_data.md, run on small datasets."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from detectron2.data.datasets.coco import convert_to_coco_dict

from aid.data import load_coco, register_kitti

# Small networks and short runs, without weights to download.
SMALL = """
INPUT: {MIN_SIZE_TRAIN: [96], MIN_SIZE_TEST: 96}
MODEL:
  WEIGHTS: ""
  BACKBONE: {FREEZE_AT: 0}
  RESNETS: {NORM: "BN"}
  FPN: {OUT_CHANNELS: 32}
  RPN: {POST_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TEST: 50}
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 32}
SOLVER: {IMS_PER_BATCH: 2, BASE_LR: 0.001}
"""
FEW = "--num-gpus 0 SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 1"


@pytest.fixture(scope="module")
def page(repository):
    """Code blocks of the page: {language: [text, ...]}."""
    with open(os.path.join(repository, "docs", "own_data.md")) as f:
        blocks = re.findall(r"```(\w+)\n(.*?)```", f.read(), re.DOTALL)
    return {kind: [text for k, text in blocks if k == kind] for kind in ("python", "sh", "yaml")}


@pytest.fixture
def shell(repository, tmp_path):
    """A function (commands of the page) -> output, run beside links to the repository."""
    for name in ("configs", "datasets", "tools", "train_net.py"):
        os.symlink(os.path.join(repository, name), tmp_path / name)
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]

    def run(commands: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", commands],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def write_coco(folder, classes):
    """Write the scenes in ``folder`` as two json files and one folder of images."""
    for split in ("train", "val"):
        name = f"{folder}_{split}"
        register_kitti(name, str(folder), split, "")
        coco = convert_to_coco_dict(name)
        coco["images"] = [
            {**image, "file_name": os.path.basename(image["file_name"])} for image in coco["images"]
        ]
        coco["categories"] = [
            {**c, "name": n} for c, n in zip(coco["categories"], classes, strict=True)
        ]
        (folder / f"{split}.json").write_text(json.dumps(coco))
    shutil.move(folder / "training/image_2", folder / "images")


@pytest.mark.parametrize("kind", ["coco", "kitti"])
def test_commands_of_the_page_train_a_distilled_student(kind, page, shell, tmp_path):
    fleet = tmp_path / "fleet"
    shell(f"python datasets/make_synthetic_kitti.py --output {fleet} --train 8 --val 4 --workers 1")
    draw, train, report, detect = page["sh"]
    if kind == "coco":
        write_coco(fleet, ("forklift", "person", "pallet"))
        registration = page["python"][0]
    else:
        shutil.rmtree(fleet / "ImageSets")
        assert "train.txt" in shell(draw)
        registration = page["python"][1]
    (fleet / "register.py").write_text(registration)
    names = ("data.yaml", "teacher.yaml", "student.yaml", "aid.yaml")
    *configs, unlabeled = page["yaml"]
    for name, text in zip(names, configs, strict=True):
        (fleet / name).write_text(text)
    # A base after data.yaml reduces sizes.
    (fleet / "small.yaml").write_text(SMALL)
    for name in ("teacher.yaml", "student.yaml"):
        text = (fleet / name).read_text()
        (fleet / name).write_text(text.replace('"data.yaml"]', '"data.yaml", "small.yaml"]'))

    log = shell(re.sub(r"--num-gpus 4", FEW, train))
    assert f"teacher of TEACHER.CONFIG_FILE {fleet}/teacher.yaml" in log
    assert ("KITTI's official metric" in log) == (kind == "kitti")
    text = shell(report) and (tmp_path / "output/fleet/report/report.md").read_text()
    assert "| aid" in text and "AID by instance" in text
    assert ("| forklift " in text) == (kind == "coco")
    if kind == "coco":
        shutil.copytree(fleet / "images", fleet / "unlabeled")
        (fleet / "register.py").write_text("".join([registration, *page["python"][2:]]))
        (fleet / "unlabeled.yaml").write_text(unlabeled)
        assert shell(detect).splitlines()[-1] == "12 images: output/fleet/detections"
        command = train.splitlines()[-1].replace("aid.yaml", "unlabeled.yaml")
        shell(re.sub(r"--num-gpus 4", FEW, command))
        path = tmp_path / "output/fleet/detections/detections.json"
        assert len(load_coco("fleet_detected", str(path), str(tmp_path), "", 0.5)) == 12
