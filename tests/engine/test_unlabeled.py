"""Runs with images without labels."""

import os
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase

from aid.data import register_images
from aid.engine import AIDTrainer
from aid.utils.errors import AIDError

KEYS = ["UNLABELED.SHARE", 0.5, "SOLVER.IMS_PER_BATCH", 4]


class Stop(HookBase):
    """Ends a run after the checkpoint of its first iteration."""

    def after_step(self):
        raise KeyboardInterrupt


def train(cfg, stop=False, resume=False):
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume)
    if not stop:
        trainer.train()
        return torch.load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    trainer.register_hooks([Stop()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


# A random teacher of this family is 0.2 sure of many boxes.
@pytest.mark.core
@pytest.mark.parametrize("student", ["faster_rcnn", "retinanet"])
def test_interrupted_it_ends_with_the_same_weights(student, run_config, toy_dataset):
    opts = [*KEYS, "DATASETS.UNLABELED", (toy_dataset,), "DISTILLATION.BALANCE", 2.0]
    opts += ["UNLABELED.SCORE_THRESH", 0.2]
    expected = train(run_config("whole", student, "faster_rcnn", opts))
    train(run_config("stopped", student, "faster_rcnn", opts), stop=True)
    torch.rand(9)
    found = train(run_config("stopped", student, "faster_rcnn", opts), resume=True)
    for part in ("model", "distillation"):
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(found[part][k], v) for k, v in expected[part].items())


def weights_after(cfg, resume=False):
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return dict(trainer.model.module.named_parameters())


def test_two_processes_end_with_the_same_weights_also_if_resumed(
    run_config, toy_dataset, in_processes
):
    opts = [*KEYS, "DATASETS.UNLABELED", (toy_dataset,), "SOLVER.MAX_ITER", 3]
    opts += ["UNLABELED.SCORE_THRESH", 0.2]
    cfg = run_config("run", opts=opts)
    expected = in_processes(2, weights_after, cfg)
    with open(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"), "w") as f:
        f.write("model_0000000.pth")
    found = in_processes(2, weights_after, cfg, True)
    for weights in (expected[1], *found):
        assert all(torch.equal(weights[name], x) for name, x in expected[0].items())


@pytest.mark.parametrize(
    "opts, said",
    [
        (
            ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"],
            "DATASETS.UNLABELED is set, but MODEL.META_ARCHITECTURE GeneralizedRCNN has no teacher",
        ),
        (["MODEL.MASK_ON", True], "DATASETS.UNLABELED is set and MODEL.MASK_ON is on"),
        (["AID.NORMALIZE", True], "DATASETS.UNLABELED is set and AID.NORMALIZE is on"),
        (["UNLABELED.SHARE", 0.0], "UNLABELED.SHARE is 0.0 and DATASETS.UNLABELED names 1"),
    ],
)
def test_refused_before_the_model_is_built(opts, said, run_config, toy_dataset, monkeypatch):
    monkeypatch.setattr(AIDTrainer, "build_model", None)
    cfg = run_config("run", opts=[*KEYS, "DATASETS.UNLABELED", (toy_dataset,), *opts])
    with pytest.raises(AIDError, match=f"^{said}"):
        AIDTrainer(cfg)


def test_a_warning_if_a_student_trains_on_test_images(
    configure, toy_dataset, no_handlers, tmp_path, capsys
):
    """Unlabeled ones also by other paths, as a folder of all images and a split of it have them."""
    others = tmp_path / "others"
    others.mkdir()
    shutil.copy(tmp_path / "0.png", others / "7.png")
    name = f"{toy_dataset}_unlabeled"
    register_images(name, str(others))
    opts = ["DATASETS.UNLABELED", (name,), "UNLABELED.SHARE", 0.5]
    try:
        configure(opts=opts)
        screen = capsys.readouterr().out
        assert f"7 of 7 images of DATASETS.TEST, first {tmp_path}/0.png, are in DATA" in screen
        assert "in DATASETS.TRAIN, too" in screen and "in DATASETS.UNLABELED" not in screen
        os.symlink(tmp_path / "3.png", others / "8.png")
        configure(opts=opts)
        screen = capsys.readouterr().out
        assert f"1 of 7 images of DATASETS.TEST, first {tmp_path}/3.png" in screen
        assert "in DATASETS.UNLABELED, too" in screen
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_dataset_that_is_not_registered(configure):
    with pytest.raises(AIDError, match="^DATASETS.UNLABELED: 'drive' is not registered"):
        configure(opts=["DATASETS.UNLABELED", ("drive",), "UNLABELED.SHARE", 0.5])
