"""Pages from a config: students, images, omitted maps and errors."""

import os
import re

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from PIL import Image

from aid.checkpoint import StudentCheckpointer
from aid.config import load_config
from aid.engine import AIDTrainer
from aid.utils.errors import AIDError
from aid_tools.visualization.load import build_student, choose_images, load_records, load_trained
from aid_tools.visualization.pages import Pages


@pytest.fixture
def saved(student_config, tmp_path):
    """A function (options) -> checkpoint of a student whose adapter weights are 0.5."""

    def save(opts=()) -> str:
        student = build_student(student_config("faster_rcnn", opts=opts))
        for parameter in student.distillation.parameters():
            torch.nn.init.constant_(parameter, 0.5)
        StudentCheckpointer(student, str(tmp_path)).save("trained")
        return str(tmp_path / "trained.pth")

    return save


def names(records) -> list[str]:
    return [os.path.basename(record["file_name"]) for record in records]


def test_student_equals_the_initial_student_of_training(student_config):
    cfg = student_config("faster_rcnn")
    seed_all_rng(cfg.SEED)
    expected = AIDTrainer.build_model(cfg).state_dict()
    state = build_student(cfg).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in state.items())


def test_initial_weights_are_loaded(student_config, tiny_model, tmp_path):
    plain = tiny_model("faster_rcnn", seed=8).state_dict()
    torch.save({"model": plain}, tmp_path / "plain.pth")
    opts = ["MODEL.WEIGHTS", str(tmp_path / "plain.pth")]
    state = build_student(student_config("faster_rcnn", opts=opts)).state_dict()
    assert all(torch.equal(state[k], v) for k, v in plain.items())


def test_adapters_of_a_checkpoint_are_loaded(student_config, saved):
    student = build_student(student_config("faster_rcnn"))
    assert load_trained(student, saved())
    assert all((p == 0.5).all() for p in student.distillation.parameters())


def test_checkpoint_without_adapters_keeps_the_initial_ones(student_config, tiny_model, tmp_path):
    plain = tiny_model("faster_rcnn", seed=8).state_dict()
    torch.save({"model": plain}, tmp_path / "plain.pth")
    student = build_student(student_config("faster_rcnn"))
    before = {k: v.clone() for k, v in student.distillation.state_dict().items()}
    assert not load_trained(student, str(tmp_path / "plain.pth"))
    state = student.state_dict()
    assert all(torch.equal(state[k], v) for k, v in plain.items())
    assert all(torch.equal(student.distillation.state_dict()[k], v) for k, v in before.items())


def test_checkpoints_of_other_losses_or_detectors_are_refused(student_config, saved):
    path = saved(["DISTILLATION.LOSSES", ["MGDLoss"]])
    student = build_student(student_config("faster_rcnn"))
    with pytest.raises(AIDError, match=r"its adapters are of other teachers or losses \(\d+ te"):
        load_trained(student, path)
    with pytest.raises(AIDError, match="--weights .* does not fit the detector"):
        load_trained(build_student(student_config("retinanet")), path)
    with pytest.raises(AIDError, match="--weights nowhere.pth does not exist"):
        load_trained(student, "nowhere.pth")


def test_detector_without_teacher_is_refused(tiny_config):
    with pytest.raises(AIDError, match="GeneralizedRCNN has no teacher"):
        build_student(load_config(tiny_config("faster_rcnn")))


def test_network_without_heads_is_drawn(student_config, toy_dataset, tmp_path):
    torch.jit.script(torch.nn.Conv2d(3, 5, 16, stride=16)).save(tmp_path / "patches.ts")
    opts = ["DISTILLATION.LOSSES", ["FitNetLoss"], "AID.GRANULARITY", "none"]
    student_config("faster_rcnn", opts=opts)
    network = ["TEACHER.CONFIG_FILE", "patches.ts", "TEACHER.WEIGHTS", ""]
    network += ["TEACHER.FEATURES", "['0: p3', '0: p4']"]
    cfg = load_config(str(tmp_path / "faster_rcnn_student.yaml"), network)
    paths, pages = write(cfg, toy_dataset, str(tmp_path / "pages"))
    assert len(paths) == 1 and "AID.GRANULARITY none does not use the loss D" in pages.notes[-1]
    assert pages._teachers()[0].endswith("patches.ts")


def test_images_are_chosen_by_number_or_name(toy_dataset):
    records = DatasetCatalog.get(toy_dataset)
    assert names(choose_images(records, "3")) == ["0.png", "2.png", "4.png"]
    assert len(choose_images(records, "100")) == 7
    assert names(choose_images(records, "5.png,1.png")) == ["5.png", "1.png"]
    path = records[6]["file_name"]
    assert choose_images(records, path) == [records[6]]
    with pytest.raises(AIDError, match=r"--images: .* no image '9.png': its names are like 0.png"):
        choose_images(records, "1.png,9.png")
    with pytest.raises(AIDError, match="--images 0: give a number from 1"):
        choose_images(records, "0")


def test_unknown_or_mismatched_datasets_are_refused(student_config, toy_dataset):
    cfg = student_config("faster_rcnn")
    with pytest.raises(AIDError, match="--dataset 'nothing' is not registered: choose"):
        load_records(cfg, "nothing")
    with pytest.raises(AIDError, match=r"'kitti_trian' is .* \(did you mean kitti_train\?\)"):
        load_records(cfg, "kitti_trian")
    assert len(load_records(cfg, toy_dataset)) == 7
    MetadataCatalog.get(toy_dataset).thing_classes.append("Tram")
    with pytest.raises(AIDError, match="has 4 classes"):
        load_records(cfg, toy_dataset)


def write(cfg, dataset, output, weights="", count=2, images="1") -> tuple[list[str], Pages]:
    records = load_records(cfg, dataset)
    pages = Pages(cfg, dataset, weights)
    paths = pages.write(choose_images(records, images), records, count, str(output))
    return [os.path.relpath(path, output) for path in paths], pages


def test_pages_of_a_trained_student_have_two_more_columns(
    student_config, saved, toy_dataset, tmp_path
):
    cfg = student_config("faster_rcnn")
    expected = ["0.png", "contact_sheet.png"]
    written, pages = write(cfg, toy_dataset, tmp_path / "a")
    assert written == expected and pages.notes == []
    written, pages = write(cfg, toy_dataset, tmp_path / "b", saved(), count=1)
    assert written == expected and pages.notes == []
    one, other = (Image.open(tmp_path / folder / "0.png").size for folder in "ab")
    assert one[1] == other[1]  # two more columns
    assert other[0] - one[0] == 664


def test_notes_list_maps_missing_without_adapters(
    student_config, tiny_model, toy_dataset, tmp_path
):
    torch.save({"model": tiny_model("faster_rcnn").state_dict()}, tmp_path / "plain.pth")
    opts = ["AID.WEIGHTING", "RelativeWeighting", "AID.NORMALIZE", True]
    cfg, weights = student_config("faster_rcnn", opts=opts), str(tmp_path / "plain.pth")
    _, pages = write(cfg, toy_dataset, tmp_path / "a", weights, count=0)
    missing, untrained, normalized = pages.notes
    assert re.match(r"Without the trained student's feature difference: .* no adapters", missing)
    assert untrained.startswith("RelativeWeighting uses statistics of training")
    assert normalized.startswith("AID.NORMALIZE divides maps by their mean over a batch")


def test_notes_list_omitted_items(student_config, toy_dataset, tmp_path):
    opts = ["DISTILLATION.LOSSES", ["CWDLoss"], "AID.GRANULARITY", "none"]
    written, pages = write(student_config("retinanet", opts=opts), toy_dataset, tmp_path / "a")
    assert written == ["0.png"]
    assert [note.split(":")[0] for note in pages.notes] == [
        "Without feature differences",
        "Without a contact sheet",
    ]


def test_images_of_equal_names_have_separate_pages(student_config, toy_dataset, tmp_path):
    records = load_records(student_config("faster_rcnn"), toy_dataset)
    pages = Pages(student_config("faster_rcnn"), toy_dataset)
    written = pages.write([records[0], records[0]], [], 0, str(tmp_path / "a"))
    assert [os.path.basename(path) for path in written] == ["0.png", "0_2.png"]


def test_damaged_images_and_folders_are_reported(student_config, toy_dataset, tmp_path):
    cfg = student_config("faster_rcnn")
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(AIDError, match=r"image .*0.png cannot be used"):
        write(cfg, toy_dataset, tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(AIDError, match=r"--output .*file cannot be made"):
        write(cfg, toy_dataset, tmp_path / "file")
