"""Checkpoints and proposals that would run code: a one-line error, and no code runs."""

import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from aid.data import build_test_loader, build_train_loader
from aid.engine import AIDTrainer, evaluate
from aid.utils.errors import AIDError
from aid_tools.report.runs import Run


def refused(cfg, resume=False) -> str:
    """Error message of a run that refuses a file."""
    with pytest.raises(AIDError, match="holds posix.mkdir, .* not read") as error:
        AIDTrainer(cfg).resume_or_load(resume=resume)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "TEACHER.WEIGHTS"])
def test_weights_that_would_run_code_are_refused(key, hostile_file, run_config):
    # The weights fit; the pickle also holds code.
    state = torch.load(run_config("fine").TEACHER.WEIGHTS)["model"]
    path, marker = hostile_file("evil.pth", state)
    assert refused(run_config("run", opts=[key, path])).startswith(f"{key} {path}")
    assert not marker.exists()


def test_checkpoint_that_would_run_code_is_not_resumed(hostile_file, run_config):
    cfg = run_config("run")
    path, marker = hostile_file(os.path.join(cfg.OUTPUT_DIR, "evil.pth"))
    with open(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"), "w") as f:
        f.write("evil.pth")
    assert "evil.pth" in refused(cfg, resume=True)
    assert not marker.exists()


def test_invalid_name_in_last_checkpoint_is_refused(run_config):
    cfg = run_config("run")
    trainer, path = AIDTrainer(cfg), os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    message = "/run/last_checkpoint (holds .*: write|cannot be read .*: remove)"
    for name in (b"../x.pth", b"/tmp/x.pth", b"x.pkl", b".", b"", b"x\0.pth", b"\xff"):
        with open(path, "wb") as f:
            f.write(name)
        with pytest.raises(AIDError, match=message) as error:
            trainer.resume_or_load(resume=True)
        assert "\n" not in str(error.value)
    os.remove(path)
    os.mkdir(path)
    with pytest.raises(AIDError, match="last_checkpoint cannot be read .*Is a directory"):
        trainer.resume_or_load(resume=True)


def test_detector_that_would_run_code_is_not_evaluated(hostile_file, run_config):
    path, marker = hostile_file("evil.pkl")
    with pytest.raises(AIDError, match=f"MODEL.WEIGHTS {path} holds posix.mkdir"):
        evaluate(run_config("run", opts=["MODEL.WEIGHTS", path]), False)
    assert not marker.exists()


def test_report_refuses_weights_that_would_run_code(hostile_file, run_config, tmp_path):
    path, marker = hostile_file("model_final.pth")
    run = Run(str(tmp_path), run_config("run"), [])
    with pytest.raises(AIDError, match=f"weights {path} holds posix.mkdir"):
        run.build()
    with pytest.raises(AIDError, match=f"weights {path} holds posix.mkdir"):
        _ = run.weighting_memory
    assert not marker.exists()


def test_proposals_that_would_run_code_are_refused(hostile_file, run_config, toy_dataset, tmp_path):
    """Detectron2 unpickles proposals; files of arrays only are still read."""

    def loaders(path):
        opts = ["MODEL.LOAD_PROPOSALS", True, "DATASETS.PROPOSAL_FILES_TRAIN", (path,)]
        opts += ["DATASETS.PROPOSAL_FILES_TEST", (path,)]
        cfg = run_config("run", opts=opts)
        return lambda: build_train_loader(cfg), lambda: build_test_loader(cfg, toy_dataset)

    path, marker = hostile_file("evil.pkl")
    for key, build in zip(("TRAIN", "TEST"), loaders(path), strict=True):
        with pytest.raises(AIDError, match=f"FILES_{key} {path} holds posix.mkdir, .* not read"):
            build()
    assert not marker.exists()
    ids = [record["image_id"] for record in DatasetCatalog.get(toy_dataset)]
    boxes = np.array([[0, 0, 30, 20], [5, 5, 60, 60]], np.float32)
    content = {"ids": ids, "boxes": [boxes] * len(ids)}
    content["objectness_logits"] = [np.array([1, 2], np.float32)] * len(ids)
    (tmp_path / "fine.pkl").write_bytes(pickle.dumps(content))
    for build in loaders(str(tmp_path / "fine.pkl")):
        assert len(next(iter(build()))[0]["proposals"]) == 2
