"""Fixtures: a tiny detector on disk, and calls of tools/predict.py."""

import json

import pytest
import torch
from detectron2.modeling import build_model

from aid.config import load_config

# Random weights then have detections.
SENSITIVE = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.GFL.SCORE_THRESH_TEST", 0.0]


@pytest.fixture
def saved(tiny_config, tmp_path):
    """A function (kind, opts) -> (config file, file of random weights)."""

    def make(kind: str, opts=()) -> tuple[str, str]:
        config = tiny_config(kind, [*SENSITIVE, *opts])
        torch.manual_seed(5)
        weights = tmp_path / f"{kind}.pth"
        torch.save({"model": build_model(load_config(config)).state_dict()}, weights)
        return config, str(weights)

    return make


@pytest.fixture
def call(load_script, tmp_path, capsys):
    """A function (files of `saved`, arguments) -> (exit status, lines on stderr)."""
    main = load_script("tools/predict.py").main

    def run(files: tuple[str, str], *args, output: str = "out") -> tuple[int, list[str]]:
        options = ["--config-file", files[0], "--weights", files[1], "--output"]
        capsys.readouterr()
        status = 0
        try:
            main([*args, "--score-threshold", "0", *options, str(tmp_path / output)])
        except SystemExit as end:
            status = end.code
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        return status, [x for x in lines if x.startswith(("error:", "skipped:"))]

    return run


@pytest.fixture
def read_detections(tmp_path):
    """A function (output) -> {file name or (file name, frame): detections} in detections.json."""

    def read(output: str = "out") -> dict:
        content = json.loads((tmp_path / output / "detections.json").read_text())
        detections = {x["id"]: [] for x in content["images"]}
        for row in content["annotations"]:
            kept = {k: v for k, v in row.items() if k not in ("id", "image_id", "area", "iscrowd")}
            detections[row["image_id"]].append(kept)
        return {
            (x["file_name"], x["frame"]) if "frame" in x else x["file_name"]: detections[x["id"]]
            for x in content["images"]
        }

    return read
