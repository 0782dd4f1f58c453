"""The frozen teacher: preprocessing, loading of weights and checks against the student."""

import os

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from torch import nn

from aid.config import load_config
from aid.modeling.teacher import Teacher, build_teacher, load_teacher_config
from aid.modeling.teacher_check import check_match, check_teacher
from aid.utils.errors import AIDError


def test_teacher_shares_no_module_or_tensor_with_the_student(student_model):
    model, _ = student_model("faster_rcnn")
    detector = model.teacher.detector
    student_ids = {id(p) for p in model.parameters()} | {id(m) for m in model.modules()}
    assert not student_ids & (
        {id(p) for p in detector.parameters()} | {id(m) for m in detector.modules()}
    )
    teacher_storage = {v.data_ptr() for v in detector.state_dict().values()}
    assert not teacher_storage & {v.data_ptr() for v in model.state_dict().values()}
    model.train()
    assert not any(m.training for m in detector.modules())
    assert not any(p.requires_grad for p in detector.parameters())


@pytest.mark.parametrize("input_format", ["RGB", "BGR"])
def test_view_uses_the_teachers_preprocessing(input_format, tiny_model, tiny_config, make_batch):
    path = tiny_config("faster_rcnn", ["MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]])
    detector = tiny_model("faster_rcnn", ["MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]])
    teacher, batch = Teacher(detector, load_config(path)), make_batch()
    expected = detector.preprocess_image(batch)
    if input_format == "BGR":  # the same images in the channel order of a BGR student
        batch = [{**x, "image": x["image"].flip(0)} for x in batch]
    view = teacher.view(batch, (64, 96), input_format)
    assert torch.equal(view.images.tensor, expected.tensor)
    assert view.images.image_sizes == expected.image_sizes
    with torch.no_grad():
        features = detector.backbone(expected.tensor)
    assert all(torch.equal(view.features[k], v) for k, v in features.items())


@pytest.mark.parametrize(
    "padded, divisibility, expected",
    [((128, 160), 32, (128, 160)), ((100, 160), 32, (128, 160)), ((64, 96), 128, (128, 128))],
)
def test_view_is_padded_to_the_students_size_and_divisibility(
    padded, divisibility, expected, tiny_model, tiny_config, make_batch
):
    teacher = Teacher(tiny_model("faster_rcnn"), load_config(tiny_config("faster_rcnn")))
    teacher.detector.backbone._size_divisibility = divisibility
    view = teacher.view(make_batch(), padded, "RGB")
    assert view.images.tensor.shape[-2:] == expected
    assert view.features["p2"].shape[-2:] == (expected[0] // 4, expected[1] // 4)
    assert (view.images.tensor[:, :, 64:] == 0).all()


def change(cfg, **keys):
    cfg = cfg.clone()
    cfg.merge_from_list([x for k, v in keys.items() for x in (k.replace("__", "."), v)])
    return cfg


def test_missing_config_and_weights_are_reported(student_config, tmp_path):
    cfg = student_config("faster_rcnn")
    with pytest.raises(AIDError, match="TEACHER.CONFIG_FILE is empty"):
        build_teacher(change(cfg, TEACHER__CONFIG_FILE=""))
    with pytest.raises(AIDError, match="TEACHER.WEIGHTS is empty"):
        build_teacher(change(cfg, TEACHER__WEIGHTS=""))
    with pytest.raises(AIDError, match="nowhere.yaml was found neither beside"):
        build_teacher(change(cfg, TEACHER__CONFIG_FILE="nowhere.yaml"))
    gone = str(tmp_path / "gone.pth")
    with pytest.raises(
        AIDError, match=r"gone.pth does not exist: train.*train_net.py --config-file"
    ):
        build_teacher(change(cfg, TEACHER__WEIGHTS=gone))


def test_mismatched_weights_are_refused(student_config, tmp_path):
    cfg = student_config("faster_rcnn")
    state = torch.load(cfg.TEACHER.WEIGHTS)["model"]
    weights = str(tmp_path / "changed.pth")

    def refused(content, message):
        torch.save(content, weights)
        with pytest.raises(AIDError, match=message):
            build_teacher(change(cfg, TEACHER__WEIGHTS=weights))

    incomplete = {k: v for k, v in state.items() if "roi_heads" not in k}
    missing = len(state) - len(incomplete)
    refused({"model": incomplete}, rf"does not fit.*{missing} missing in the file: roi_heads\.")
    refused({"model": {**state, "extra.weight": torch.ones(1)}}, "1 unknown to the model: extra")
    key = "roi_heads.box_predictor.cls_score.weight"
    other = {"model": {**state, key: torch.ones(81, 16)}}
    shapes = "81x16 in the file, 4x16 in the model"
    refused(other, f"config: 1 of another shape: {key} .{shapes}.: name the config of the net")
    old = {**state, "pixel_mean": torch.ones(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    torch.save({"model": old}, weights)  # as in old checkpoints of Detectron2
    build_teacher(change(cfg, TEACHER__WEIGHTS=weights))


def test_config_beside_mismatched_weights_is_named(student_config, tmp_path):
    """Of a teacher that was trained with overrides on the command line."""
    cfg = student_config("faster_rcnn")
    wider = student_config("faster_rcnn", opts=["MODEL.FPN.OUT_CHANNELS", 16])
    (tmp_path / "run").mkdir()
    weights = str(tmp_path / "run/model_final.pth")
    torch.save({"model": build_model(wider).state_dict()}, weights)
    (tmp_path / "run/config.yaml").write_text("")
    expected = f"use {tmp_path}/run/config.yaml, of the run that wrote the file, as TEACHER."
    with pytest.raises(AIDError, match=f"does not fit .*: {expected}CONFIG_FILE$"):
        build_teacher(change(cfg, TEACHER__WEIGHTS=weights))


def test_weights_are_read_through_path_handlers(student_config):
    class Shelf(PathHandler):  # like remote handlers, without an existence check
        def _get_supported_prefixes(self):
            return ["shelf://"]

        def _get_local_path(self, path, force=False, **kwargs):
            if path != "shelf://teacher":
                raise FileNotFoundError("the shelf is empty")
            return cfg.TEACHER.WEIGHTS

    PathManager.register_handler(Shelf(), allow_override=True)
    cfg = student_config("faster_rcnn")
    assert build_teacher(change(cfg, TEACHER__WEIGHTS="shelf://teacher")).num_parameters > 0
    with pytest.raises(AIDError, match="shelf://other cannot be read .*the shelf is empty"):
        build_teacher(change(cfg, TEACHER__WEIGHTS="shelf://other"))


@pytest.mark.parametrize("student", ["retinanet", "faster_rcnn"])
def test_student_checkpoint_as_teacher_is_reported(student, student_config, tmp_path):
    opts = ["MODEL.FPN.OUT_CHANNELS", 4, "MODEL.ROI_BOX_HEAD.FC_DIM", 8]
    cfg = student_config(student, "faster_rcnn", opts)
    weights = str(tmp_path / "of_the_student.pth")
    state = build_model(cfg).state_dict()
    torch.save({"model": state, "distillation": {}}, weights)
    expected = r"student.pth is a checkpoint of the student's own architecture, .*faster_rcnn_teach"
    with pytest.raises(AIDError, match=expected) as error:
        build_teacher(change(cfg, TEACHER__WEIGHTS=weights))
    assert "\n" not in str(error.value)
    state.popitem()
    torch.save({"model": state}, weights)
    with pytest.raises(AIDError, match="does not fit the detector of the config"):
        build_teacher(change(cfg, TEACHER__WEIGHTS=weights))


def test_classes_must_agree(tiny_model, tiny_config, student_config):
    cfg = student_config("faster_rcnn")
    four = ["MODEL.RETINANET.NUM_CLASSES", 4]
    other = Teacher(tiny_model("retinanet", four), load_config(tiny_config("retinanet", four)))
    with pytest.raises(AIDError, match="has 4 classes, the student 3"):
        check_teacher(other, tiny_model("faster_rcnn"), cfg)

    MetadataCatalog.get("order_a").thing_classes = ["Car", "Pedestrian", "Cyclist"]
    MetadataCatalog.get("order_b").thing_classes = ["Pedestrian", "Car", "Cyclist"]
    teacher = build_teacher(cfg)
    teacher.cfg.DATASETS.TRAIN = ("order_a",)
    expected = r"class 0 is Pedestrian in the student's dataset order_b, Car in .*teacher.*order_a"
    for keys in (
        {"DATASETS__TRAIN": ("order_b",)},
        {"DATASETS__TRAIN": ("of no known classes", "order_b")},
        {"DATASETS__TEST": ("order_b",)},
    ):
        with pytest.raises(AIDError, match=f"class lists differ: {expected}"):
            check_teacher(teacher, tiny_model("faster_rcnn"), change(cfg, **keys))
    teacher.cfg.DATASETS.TRAIN = ("of no known classes", "order_a")
    with pytest.raises(AIDError, match=f"class lists differ: {expected}"):
        check_teacher(teacher, tiny_model("faster_rcnn"), change(cfg, DATASETS__TRAIN=("order_b",)))


def test_only_zoo_configs_may_construct_objects(tmp_path, monkeypatch):
    """Only files of Detectron2's zoo may construct objects."""
    anchors = load_teacher_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml").MODEL
    assert anchors.ANCHOR_GENERATOR.SIZES[0] == pytest.approx(
        [32, 32 * 2 ** (1 / 3), 32 * 4 ** (1 / 3)]
    )
    path = tmp_path / "teacher.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir [{tmp_path / 'marker'}]\n")
    zoo = os.path.realpath(os.path.dirname(get_config_file("Base-RetinaNet.yaml")))
    deep = tmp_path.joinpath(*"abcdefghijklmnop")  # too deep for the zoo's relative path to resolve
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    for name in (os.path.relpath(path, zoo), f"COCO-Detection/../{os.path.relpath(path, zoo)}"):
        assert os.path.isfile(os.path.join(zoo, name)) and not os.path.isfile(name)
        with pytest.raises(AIDError, match="was found neither beside"):
            load_teacher_config(name)
    for name in (str(path), "teacher.yaml"):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(AIDError, match="teacher.yaml: not plain YAML.*tags are refused"):
            load_teacher_config(name)
    assert not (tmp_path / "marker").exists()


def test_unknown_class_list_is_warned_about(tiny_model, student_config, caplog):
    MetadataCatalog.get("order_c").thing_classes = ["Car", "Pedestrian", "Cyclist"]
    cfg = change(student_config("faster_rcnn"), DATASETS__TRAIN=("order_c",))
    teacher = build_teacher(cfg)
    for known in ("order_c", ""):  # the same dataset, and a teacher without one
        teacher.cfg.DATASETS.TRAIN = (known,) if known else ()
        check_teacher(teacher, tiny_model("faster_rcnn"), cfg)
    assert "classes" not in caplog.text
    teacher.cfg.DATASETS.TRAIN = ("fleet_train",)
    check_teacher(teacher, tiny_model("faster_rcnn"), cfg)
    assert "classes of the teacher's dataset fleet_train are not known here" in caplog.text


@pytest.mark.parametrize(
    "own, warns", [(800, True), (97, True), (96, False), (43, False), (42, True)]
)
def test_training_at_another_size_than_the_teachers_is_warned_about(
    own, warns, tiny_model, student_config, caplog
):
    cfg = student_config("faster_rcnn")
    teacher = build_teacher(cfg)
    check_teacher(teacher, tiny_model("faster_rcnn"), cfg)
    cfg.INPUT.MIN_SIZE_TEST = 999  # at which nothing is imitated
    for size in (0, 64):  # 0: no resizing
        teacher.cfg.INPUT.MIN_SIZE_TEST = size
        check_teacher(teacher, tiny_model("faster_rcnn"), cfg)
    assert "MIN_SIZE_TEST" not in caplog.text
    teacher.cfg.INPUT.MIN_SIZE_TEST = own
    check_teacher(teacher, tiny_model("faster_rcnn"), cfg)
    assert (f"INPUT.MIN_SIZE_TEST is {own} in TEACHER.CONFIG_FILE" in caplog.text) == warns
    assert ("faster_rcnn_teacher.yaml, INPUT.MIN_SIZE_TRAIN up to 64 in" in caplog.text) == warns


def test_levels_and_strides_must_agree(tiny_model, student_config):
    cfg = student_config("faster_rcnn")
    teacher, student = build_teacher(cfg), tiny_model("faster_rcnn")
    assert check_teacher(teacher, student, cfg) == ("p2", "p3", "p4", "p5", "p6")
    assert check_teacher(teacher, tiny_model("retinanet"), cfg) == ("p3", "p4", "p5", "p6")
    chosen = change(cfg, DISTILLATION__LEVELS=["p4", "p3"])
    assert check_teacher(teacher, student, chosen) == ("p3", "p4")
    with pytest.raises(AIDError, match="no common level p7.*p2, p3, p4, p5, p6"):
        check_teacher(teacher, student, change(cfg, DISTILLATION__LEVELS=["p3", "p7"]))
    with pytest.raises(AIDError, match="no common level 3: "):
        check_teacher(teacher, student, change(cfg, DISTILLATION__LEVELS=[3]))
    teacher.detector.backbone._out_feature_strides["p3"] = 16
    with pytest.raises(AIDError, match="level p3: stride 16 in the teacher, 8 in the student"):
        check_teacher(teacher, student, cfg)


@pytest.mark.parametrize(
    "rpn, rois",
    [
        (["p3", "p4", "p5", "p6"], ["p2", "p3", "p4"]),
        (["p4", "p5", "p6", "p3"], ["p3", "p4", "p5"]),
    ],
)
def test_roi_levels_must_be_levels_of_the_rpn(rpn, rois, tiny_model):
    opts = ["MODEL.RPN.IN_FEATURES", rpn, "MODEL.ROI_HEADS.IN_FEATURES", rois]
    model = tiny_model("faster_rcnn", [*opts, "MODEL.ANCHOR_GENERATOR.SIZES", [[8]] * 4])
    message = f"ROI_HEADS.IN_FEATURES is {', '.join(rois)}, MODEL.RPN.IN_FEATURES p.*: losses"
    with pytest.raises(AIDError, match=message):
        Teacher(model, cfg=None)


def test_teacher_without_fpn_heads_is_refused(tiny_model):
    model = tiny_model("faster_rcnn")
    model.roi_heads = nn.Identity()
    with pytest.raises(AIDError, match="need StandardROIHeads.*has Identity"):
        Teacher(model, cfg=None)


@pytest.mark.parametrize(
    "student, teacher", [("RGB", "L"), ("L", "BGR"), ("RGBA", "RGB"), ("YUV-BT.601", "BGR")]
)
def test_incompatible_image_formats_are_refused(student, teacher, tiny_model, tiny_config):
    channels = {"L": 1, "RGBA": 4}

    def opts(name):
        number = channels.get(name, 3)
        keys = ["INPUT.FORMAT", name, "MODEL.PIXEL_MEAN", [100.0] * number]
        return [*keys, "MODEL.PIXEL_STD", [50.0] * number]

    cfg = load_config(tiny_config("faster_rcnn", opts(teacher)))
    built = Teacher(tiny_model("faster_rcnn", opts(teacher)), cfg, "TEACHER.CONFIG_FILE t.yaml")
    with pytest.raises(
        AIDError, match=f"INPUT.FORMAT is {student} in the student, {teacher} in .*t.yaml: use BGR"
    ):
        check_match(built, tiny_model("faster_rcnn", opts(student)))


@pytest.mark.parametrize("name, number, mean", [("L", 1, 1), ("L", 1, 3), ("RGBA", 4, 4)])
def test_grayscale_and_rgba_images_are_supported(
    name, number, mean, tiny_model, tiny_config, make_batch
):
    keys = ["INPUT.FORMAT", name, "MODEL.PIXEL_MEAN", [100.0] * mean]
    keys += ["MODEL.PIXEL_STD", [50.0] * mean]
    detector = tiny_model("faster_rcnn", keys)
    teacher = Teacher(detector, load_config(tiny_config("faster_rcnn", keys)))
    batch = [{**x, "image": x["image"][[0, 1, 2, 0][:number]]} for x in make_batch()]
    assert check_match(teacher, detector)
    view = teacher.view(batch, (64, 96), name)
    assert torch.equal(view.images.tensor, detector.preprocess_image(batch).tensor)
