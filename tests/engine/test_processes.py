"""Training and evaluation in several processes, on the CPU."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from aid.engine import AIDTrainer
from aid.evaluation import build_evaluator
from aid.utils.errors import AIDError


def train(cfg, resume=False):
    """Weights after a run; the processes start with different random states."""
    torch.manual_seed(cfg.SEED + comm.get_rank())
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    model = getattr(trainer.model, "module", trainer.model)
    return dict(model.named_parameters())


@pytest.fixture
def an_image_without_boxes(toy_dataset):
    records = DatasetCatalog.get(toy_dataset)
    records[4]["annotations"] = []
    DatasetCatalog.remove(toy_dataset)
    DatasetCatalog.register(toy_dataset, lambda: copy.deepcopy(records))


@pytest.mark.usefixtures("an_image_without_boxes")
def test_processes_end_with_equal_students_and_adapters(run_config, in_processes):
    opts = ["SOLVER.IMS_PER_BATCH", 4, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]
    cfg = run_config("run", opts=[*opts, "AID.WEIGHTING", "RelativeWeighting"])
    first, *others = in_processes(4, train, cfg)
    early, saved = (
        torch.load(os.path.join(cfg.OUTPUT_DIR, f"model_{name}.pth"))
        for name in ("0000000", "final")
    )
    for name, weight in first.items():
        assert weight.isfinite().all()
        assert all(torch.equal(weight, other[name]) for other in others), name
        section = "distillation" if name.startswith("distillation.") else "model"
        key = name.removeprefix("distillation.")
        assert torch.equal(weight, saved[section][key])
        assert not torch.equal(weight, early[section][key]) or not name.endswith("weight"), name
    assert any(name.startswith("distillation.") for name in first)


# Of dense detectors each process has a running mean; test_unlabeled.py resumes a Faster R-CNN.
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_resumed_run_in_two_processes_has_equal_weights(kind, run_config, in_processes):
    opts = ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION_STEPS", 2]
    cfg = run_config("run", kind, opts=opts)
    expected = in_processes(2, train, cfg)
    with open(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"), "w") as f:
        f.write("model_0000001.pth")
    for actual, weights in zip(in_processes(2, train, cfg, True), expected, strict=True):
        assert all(torch.equal(actual[name], weight) for name, weight in weights.items())


def normalizer_after_resume(cfg, of_process_0):
    """Whether this process resumes with the normalizer of process 0."""
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume=True)
    return trainer.model.module.loss_normalizer == of_process_0


def test_single_normalizer_of_a_checkpoint_is_used_by_all(run_config, in_processes):
    opts = ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 1]
    cfg = run_config("run", "retinanet", opts=opts)
    train(cfg)
    path = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    content = torch.load(path)
    (saved,) = content["trainer"]["hooks"]["SaveNormalizers"]["by_process"]
    assert saved != 100  # the initial value
    assert in_processes(2, normalizer_after_resume, cfg, saved) == [True, True]


def count_images(cfg):
    """Number of images that a process holds at the end of a run."""
    trainer = AIDTrainer(cfg)
    trainer.train()
    return len(trainer.storage._vis_data)


def test_processes_release_the_images_of_a_run(run_config, in_processes):
    """The main process writes the images; the others have no writer."""
    opts = ["SOLVER.IMS_PER_BATCH", 4, "VIS_PERIOD", 1, "DATASETS.TEST", ()]
    assert in_processes(2, count_images, run_config("run", opts=opts)) == [0, 0]


def shifted_detections(records, indices):
    """Detections of the given images: shifted objects, the first one twice."""
    for i in indices:
        boxes = torch.tensor([x["bbox"] for x in records[i]["annotations"]])
        classes = torch.tensor([x["category_id"] for x in records[i]["annotations"]])
        instances = Instances((records[i]["height"], records[i]["width"]))
        instances.pred_boxes = Boxes(torch.cat([boxes + i, boxes[:1]]))
        instances.pred_classes = torch.cat([classes, classes[:1]])
        instances.scores = 1 / (torch.arange(len(instances)) + i + 2)
        yield records[i], {"instances": instances}


def evaluate_share(name, output):
    records = DatasetCatalog.get(name)
    evaluator = build_evaluator(name, output)
    evaluator.reset()
    for record, detections in shifted_detections(records, InferenceSampler(len(records))):
        evaluator.process([record], [detections])
    return evaluator.evaluate()


@pytest.mark.parametrize("processes", [2, 4])
def test_coco_metric_in_several_processes_equals_one(
    processes, toy_dataset, in_processes, tmp_path
):
    expected = evaluate_share(toy_dataset, str(tmp_path / "one"))
    assert 0 < expected["bbox"]["AP"] < 100
    first, *others = in_processes(processes, evaluate_share, toy_dataset, str(tmp_path / "more"))
    np.testing.assert_equal(first["bbox"], expected["bbox"])
    assert others == [{}] * (processes - 1)


def evaluate_with_own_statistics(cfg, model):
    """Evaluate with different BatchNorm statistics in each process."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer += comm.get_rank()
    return AIDTrainer.test(cfg, model)


def test_evaluation_uses_the_statistics_of_the_main_process(
    student_model, run_config, in_processes
):
    model, _ = student_model("faster_rcnn", opts=["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    detections = []
    for processes in (1, 2):
        cfg = run_config(f"in_{processes}")
        in_processes(processes, evaluate_with_own_statistics, cfg, model)
        with open(os.path.join(cfg.OUTPUT_DIR, "inference/coco_instances_results.json")) as f:
            detections.append(json.load(f))
    assert detections[0] == detections[1] and len(detections[0]) > 7


def resume_with_a_checkpoint_in_the_main_process_only(cfg):
    if comm.get_rank() == 0:
        trainer = AIDTrainer(cfg)
        trainer.checkpointer.save("model_0000001", iteration=1)
    else:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR += "_of_another_machine"
        trainer = AIDTrainer(cfg)
    with pytest.raises(AIDError, match="processes find different checkpoints in .*: let all mach"):
        trainer.resume_or_load(resume=True)


def test_machine_without_the_checkpoint_is_reported(run_config, in_processes):
    in_processes(2, resume_with_a_checkpoint_in_the_main_process_only, run_config("run"))


def build_with_torch_sync_bn(cfg):
    with pytest.raises(AIDError, match="SyncBN needs GPUs: .* to naiveSyncBN"):
        AIDTrainer(cfg)


def test_sync_bn_of_torch_is_refused_on_the_cpu(run_config, in_processes):
    cfg = run_config("run", opts=["MODEL.RESNETS.NORM", "SyncBN"])
    AIDTrainer(cfg)  # BatchNorm in a single process
    in_processes(2, build_with_torch_sync_bn, cfg)
