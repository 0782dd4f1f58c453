"""Checkpoints of students: the plain detector, and the state of its distillation."""

import errno
import os
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from aid.checkpoint import StrictCheckpointer, StudentCheckpointer
from aid.engine import evaluate
from aid.inference import load_detector
from aid.modeling.teacher import load_teacher
from aid.utils.errors import AIDError

pytestmark = pytest.mark.core


@pytest.fixture
def saved(student_model, tmp_path):
    """A student with its config, saved as run/model.pth."""
    model, cfg = student_model("faster_rcnn")
    (tmp_path / "run").mkdir()
    StudentCheckpointer(model, str(tmp_path / "run")).save("model", iteration=7)
    return model, cfg, str(tmp_path / "run" / "model.pth")


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_plain_detectron2_loads_the_checkpoint(saved, make_batch):
    model, cfg, path = saved
    plain_cfg = cfg.clone()
    plain_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    torch.manual_seed(42)
    plain = build_model(plain_cfg).eval()
    assert set(torch.load(path)["model"]) == set(plain.state_dict())
    DetectionCheckpointer(plain).load(path)
    with torch.no_grad():
        expected, actual = model.eval()(make_batch()), plain(make_batch())
    for a, b in zip(expected, actual, strict=True):
        a, b = a["instances"], b["instances"]
        assert len(a) > 0 and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)


def test_adapters_are_saved_under_their_own_key_and_restored(saved, student_model):
    model, _, path = saved
    content = torch.load(path)
    assert content["iteration"] == 7
    assert set(content["distillation"]) == set(model.distillation.state_dict())
    other, _ = student_model("faster_rcnn", seed=1)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    StudentCheckpointer(other).load(path)
    state = other.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_initial_weights_do_not_restore_adapters(saved, student_model, caplog):
    model, _, path = saved
    other, _ = student_model("faster_rcnn", seed=1)
    adapters = {k: v.clone() for k, v in other.distillation.state_dict().items()}
    StudentCheckpointer(other, "").resume_or_load(path, resume=False)
    assert all(torch.equal(other.distillation.state_dict()[k], v) for k, v in adapters.items())
    assert torch.equal(other.backbone.fpn_output2.weight, model.backbone.fpn_output2.weight)
    assert "not found in the checkpoint" not in caplog.text


def test_resume_with_adapters_of_another_teacher_is_refused(saved, student_model):
    model, _, path = saved
    content = torch.load(path)
    name = next(k for k, x in content["distillation"].items() if x.dim() > 0)
    content["distillation"][name] = content["distillation"][name][:1]
    torch.save(content, path)
    with pytest.raises(AIDError, match=f"of other teachers or losses .1 tensors, first {name}"):
        StudentCheckpointer(student_model("faster_rcnn")[0]).load(path)


def test_resume_without_adapters_is_refused(saved, student_model):
    model, _, path = saved
    content = torch.load(path)
    del content["distillation"]
    torch.save(content, path)
    with pytest.raises(AIDError, match="model.pth has no distillation adapters"):
        StudentCheckpointer(student_model("faster_rcnn")[0]).load(path)


def test_save_on_a_full_disk_keeps_the_old_files(saved, monkeypatch):
    model, _, path = saved
    folder = os.path.dirname(path)
    before = contents(folder)

    def fail(data, target):
        target.write(b"half a file")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos")  # as torch does

    monkeypatch.setattr(torch, "save", fail)
    for name in ("model", "model_final"):
        with pytest.raises(AIDError, match="run cannot be written: No space left on device; make"):
            StudentCheckpointer(model, folder).save(name)
    assert contents(folder) == before


def test_unexpected_error_in_a_save_keeps_its_traceback(saved, monkeypatch):
    model, _, path = saved
    monkeypatch.setattr(torch, "save", lambda data, target: {}["gone"])
    with pytest.raises(KeyError):
        StudentCheckpointer(model, os.path.dirname(path)).save("model")
    assert sorted(os.listdir(os.path.dirname(path))) == ["last_checkpoint", "model.pth"]


def test_checkpoint_of_another_detector_is_not_resumed(saved, student_model):
    _, _, path = saved
    other, _ = student_model("faster_rcnn", opts=["MODEL.ROI_BOX_HEAD.FC_DIM", 8])
    with pytest.raises(AIDError, match=r"run/model.pth is a checkpoint of another detector \(.*of"):
        StudentCheckpointer(other).load(path)
    StudentCheckpointer(other).load(path, checkpointables=[])  # initial weights may fit in part


def test_plain_model_is_saved_in_the_format_of_detectron2(tiny_model, tmp_path):
    model = tiny_model("faster_rcnn")
    StudentCheckpointer(model, str(tmp_path)).save("plain")
    content = torch.load(tmp_path / "plain.pth")
    assert set(content) == {"model"} and set(content["model"]) == set(model.state_dict())
    assert (tmp_path / "last_checkpoint").read_text() == "plain.pth"


def test_weights_without_matching_tensors_are_refused(student_model, tmp_path):
    model, _ = student_model("faster_rcnn")
    torch.save({"model": {"foo.weight": torch.ones(3)}}, tmp_path / "other.pth")
    message = (
        r"MODEL.WEIGHTS .*/other.pth has no weights of this detector \(\d+ missing in the file: "
        r"backbone.*; 1 unknown to the model: foo.weight\): append .matching_heuristics=True to a"
    )
    with pytest.raises(AIDError, match=message):
        StudentCheckpointer(model).load(str(tmp_path / "other.pth"), checkpointables=[])


@pytest.mark.parametrize("section", ["model", "distillation", "trainer"])
def test_non_finite_state_is_not_saved(section, saved):
    model, _, path = saved
    folder = os.path.dirname(path)
    before = contents(folder)
    momentum = torch.nn.Linear(2, 2)
    checkpointer = StudentCheckpointer(model, folder, trainer=momentum)
    tensor = {
        "model": model.backbone.fpn_output2.bias,
        "distillation": next(model.distillation.parameters()),
        "trainer": momentum.bias,
    }[section]
    with torch.no_grad():
        tensor.flatten()[0] = torch.inf
    message = (
        rf"diverged: .*bad.pth would hold NaN or infinity in 1 tensor, first {section}\..* is not"
    )
    with pytest.raises(AIDError, match=f"{message}.*is not there yet$"):
        checkpointer.save("bad")
    assert contents(folder) == before
    with torch.no_grad():
        tensor.flatten()[0] = 0
    checkpointer.save("good")
    with torch.no_grad():
        tensor.flatten()[0] = torch.nan
    with pytest.raises(AIDError, match=rf"{message}.*goes on, is {folder}/good.pth$"):
        checkpointer.save("bad")


def test_non_finite_or_damaged_checkpoint_is_not_resumed(saved, student_model):
    model, _, path = saved
    folder = os.path.dirname(path)
    bad = torch.load(path)
    bad["model"]["backbone.fpn_output2.bias"][0] = torch.inf
    torch.save(bad, f"{folder}/bad.pth")
    Path(f"{folder}/damaged.pth").write_bytes(b"no checkpoint")
    message = r"bad.pth holds NaN or infinity in 1 tensor, first model.backbone.fpn_output2.bias: "
    other, _ = student_model("faster_rcnn", seed=1)
    with pytest.raises(AIDError, match=f"--resume: .*{message}.*; write model.pth, the last good"):
        StudentCheckpointer(other, folder).load(f"{folder}/bad.pth")
    with pytest.raises(AIDError, match="damaged.pth cannot be .* kind; write model.pth, the last"):
        StudentCheckpointer(other, folder).load(f"{folder}/damaged.pth")
    os.remove(path)
    with pytest.raises(AIDError, match="no other checkpoint beside it is good: start without"):
        StudentCheckpointer(other, folder).load(f"{folder}/bad.pth")
    with pytest.raises(AIDError, match="^MODEL.WEIGHTS .*bad.pth holds NaN .*, first backbone"):
        StudentCheckpointer(other, folder).load(f"{folder}/bad.pth", checkpointables=[])


def test_weights_that_overflow_the_model_type_are_refused(tiny_model, tmp_path):
    model = tiny_model("faster_rcnn")
    state = {k: v.double() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    state["backbone.fpn_output2.bias"][0] = 1e300
    torch.save({"model": state}, tmp_path / "large.pth")
    with pytest.raises(AIDError, match="weights .*large.pth holds NaN or infinity in 1 tensor"):
        StrictCheckpointer(model, "weights").load(str(tmp_path / "large.pth"))


def test_non_finite_checkpoint_is_neither_evaluated_nor_deployed(saved):
    _, cfg, path = saved
    bad = torch.load(path)
    bad["model"]["backbone.fpn_output2.bias"][0] = torch.nan
    torch.save(bad, path)
    cfg.MODEL.WEIGHTS = path
    for use in (load_detector, lambda cfg: evaluate(cfg, resume=False)):
        with pytest.raises(AIDError, match="model.pth holds NaN or infinity in 1 tensor, .*train"):
            use(cfg)


def test_adapters_of_another_kind_of_dtype_are_not_resumed(saved, student_model):
    _, _, path = saved
    content = torch.load(path)
    name, tensor = next((k, v) for k, v in content["distillation"].items() if "weight" in k)
    content["distillation"][name] = tensor.to(torch.int64)
    torch.save(content, path)
    other, _ = student_model("faster_rcnn", seed=1)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    text = (
        rf"--resume: .*model.pth cannot be read \({name} is torch.int64 in the file, torch.float32"
    )
    with pytest.raises(AIDError, match=text):
        StudentCheckpointer(other).load(path)
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())
    StudentCheckpointer(other).load(path, checkpointables=[])  # the student alone loads


CLASSES = [{"id": k, "name": x} for k, x in enumerate(("Car", "Pedestrian", "Cyclist"))]


def test_run_of_other_classes_is_not_resumed(student_model, tmp_path):
    model, _ = student_model("faster_rcnn")
    StudentCheckpointer(model, str(tmp_path), classes=CLASSES).save("model")
    StudentCheckpointer(model, str(tmp_path), classes=CLASSES).resume_or_load("", resume=True)
    other = StudentCheckpointer(model, str(tmp_path), classes=CLASSES[::-1])
    with pytest.raises(AIDError, match="classes 3, Car, Ped.*, the datasets have 3, Cyclist, Ped"):
        other.resume_or_load("", resume=True)


def test_weights_of_other_classes_are_neither_evaluated_nor_taught(
    student_config, toy_dataset, tmp_path
):
    cfg = student_config("faster_rcnn", opts=["DATASETS.TEST", (toy_dataset,)])
    weights = torch.load(cfg.TEACHER.WEIGHTS)
    torch.save({**weights, "classes": CLASSES[::-1]}, cfg.TEACHER.WEIGHTS)
    cfg.merge_from_list(["MODEL.WEIGHTS", cfg.TEACHER.WEIGHTS, "OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(AIDError, match="^MODEL.WEIGHTS .* Cyclist, .*, DATASETS.TEST has 3, Car"):
        evaluate(cfg, resume=False)
    with open(cfg.TEACHER.CONFIG_FILE, "a") as f:
        f.write(f"DATASETS: {{TRAIN: [{toy_dataset}]}}\n")
    with pytest.raises(AIDError, match="name the config.yaml of the run that wrote the weights"):
        load_teacher(cfg.TEACHER.CONFIG_FILE, cfg.TEACHER.WEIGHTS)
