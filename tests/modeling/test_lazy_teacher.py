"""Teachers of LazyConfigs: translated config, equality with the detector, padding, and errors."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from aid.config import load_config
from aid.data.build import build_test_loader
from aid.modeling.families import per_instance_losses
from aid.modeling.teacher import build_teacher, load_teacher, load_teacher_config
from aid.modeling.teacher_check import check_teacher
from aid.utils.errors import AIDError

HEADER = """
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet


def small_resnet(norm):
    stages = [
        L(ResNet.make_stage)(
            block_class=BasicBlock, num_blocks=1, stride=1 if width == 8 else 2,
            in_channels=max(8, width - 4), out_channels=width, norm=norm,
        )
        for width in (8, 12, 16, 20)
    ]
    stem = L(BasicStem)(in_channels=3, out_channels=8, norm=norm)
    return L(ResNet)(stem=stem, stages=stages, out_features=["res2", "res3", "res4", "res5"])


def shrink(model):
    rpn, heads = model.proposal_generator, model.roi_heads
    model.backbone.out_channels = rpn.head.in_channels = 8
    rpn.anchor_generator.sizes = [[8], [16], [32], [64], [96]]
    rpn.update(pre_nms_topk=(40, 40), post_nms_topk=(20, 20))
    heads.num_classes = 3
    heads.mask_head.update(input_shape=ShapeSpec(channels=8, width=14, height=14), conv_dims=[8, 8])
    for box_head in heads.get("box_heads", None) or [heads.box_head]:
        box_head.update(input_shape=ShapeSpec(channels=8, height=7, width=7), fc_dims=[16])
        box_head.conv_dims = [8] if box_head.conv_dims else []
    for predictor in heads.get("box_predictors", None) or [heads.box_predictor]:
        predictor.input_shape = ShapeSpec(channels=16)
"""
BODIES = {
    # Small version of the model zoo's Mask R-CNN with batch norm.
    "new_baselines": """
zoo = get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")
model, dataloader, train = zoo.model, zoo.dataloader, zoo.train
model.backbone.bottom_up = small_resnet("SyncBN")
shrink(model)
dataloader.train.dataset.names = "lazy_three"
""",
    "cascade": """
model = get_config("common/models/cascade_rcnn.py").model
model.backbone.bottom_up = small_resnet("BN")
shrink(model)
""",
    "fcos": """
model = get_config("common/models/fcos.py").model
model.backbone.bottom_up = small_resnet("BN")
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.backbone.out_channels = 8
model.backbone.top_block.update(in_channels=8, out_channels=8)
model.head.update(input_shape=[ShapeSpec(channels=8)] * 5, conv_dims=[8], norm="")
model.num_classes = 3
dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.dataset.names = "lazy_three"
""",
    "vitdet": """
model = get_config("common/models/mask_rcnn_vitdet.py").model
model.backbone.net.update(img_size=128, embed_dim=16, depth=2, num_heads=2, window_size=2)
model.backbone.net.update(window_block_indexes=[0], drop_path_rate=0.0)
model.backbone.square_pad = 128
shrink(model)
""",
}
LEVELS = {kind: ("p2", "p3", "p4", "p5", "p6") for kind in BODIES} | {
    "fcos": ("p3", "p4", "p5", "p6", "p7")
}


class Mlp(nn.Sequential):
    def __init__(self, in_features, hidden_features, act_layer):
        layers = nn.Linear(in_features, hidden_features), nn.Linear(hidden_features, in_features)
        super().__init__(layers[0], act_layer(), layers[1])


@pytest.fixture
def timm(monkeypatch):
    """Stand-in for timm, which Detectron2's ViT imports and this project does not need."""
    for name in ("timm", "timm.models", "timm.models.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["timm.models.layers"].Mlp = Mlp
    sys.modules["timm.models.layers"].DropPath = nn.Identity


@pytest.fixture
def lazy_file(tmp_path):
    """Function (kind or text, more text) -> path of a LazyConfig."""
    MetadataCatalog.get("lazy_three").thing_classes = ["Car", "Pedestrian", "Cyclist"]

    def write(kind: str, more: str = "") -> str:
        path = tmp_path / "lazy.py"
        path.write_text(HEADER + BODIES.get(kind, kind) + more)
        return str(path)

    return write


@pytest.fixture
def lazy_student(student_model, tmp_path, timm, lazy_file):
    """Function (kind, opts) -> student in training mode, with the teacher of this LazyConfig."""

    def build(kind: str, opts=()):
        path = lazy_file(kind)
        torch.manual_seed(1)
        torch.save({"model": instantiate(LazyConfig.load(path).model).state_dict()}, weights)
        keys = ["DISTILLATION.LOSSES", ["PKDLoss"], "INPUT.MAX_SIZE_TRAIN", 128, *opts]
        return student_model("retinanet" if kind == "fcos" else "faster_rcnn", None, keys), path

    weights = tmp_path / "lazy.pth"

    def attach(kind: str, opts=()):
        (model, cfg), path = build(kind, opts)
        named = ["TEACHER.CONFIG_FILE", path, "TEACHER.WEIGHTS", str(weights)]
        cfg_file = tmp_path / "named.yaml"
        cfg_file.write_text(cfg.dump())
        cfg = load_config(str(cfg_file), named)
        model.build_distillation(cfg)
        return model, cfg

    return attach


@pytest.mark.parametrize("kind", BODIES)
def test_teacher_equals_its_detector(kind, lazy_student, make_batch, storage):
    model, _ = lazy_student(kind)
    teacher, batch, distiller = model.teacher, make_batch(), model.distillers[0]
    assert teacher.levels == LEVELS[kind]
    detector = teacher.detector
    assert not any(x.training for x in detector.modules())
    same_format = teacher.cfg.INPUT.FORMAT == "RGB"
    own = batch if same_format else [{**x, "image": x["image"].flip(0)} for x in batch]
    images = detector.preprocess_image(own)
    if kind == "fcos":  # pads to multiples of 32, like the student
        assert images.tensor.shape[-2:] == (64, 96)
    instances = [x["instances"] for x in batch]
    with torch.no_grad():
        features = detector.backbone(images.tensor)
        expected = per_instance_losses(detector, images, features, instances)
    view = teacher.view(batch, (64, 96), "RGB")
    assert torch.equal(view.images.tensor, images.tensor)
    assert all(torch.equal(view.features[k], x) for k, x in features.items())
    actual = distiller.stats(view, instances, None).teacher
    for name, losses in expected.components.items():
        torch.testing.assert_close(actual.components[name], losses)
        assert losses.isfinite().all()
    losses = model(batch)
    assert losses["loss_distill_pkd"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is None for p in detector.parameters())


def test_square_maps_are_cropped_to_the_students_size(lazy_student, make_batch, storage):
    model, _ = lazy_student("vitdet")
    batch, distiller = make_batch(), model.distillers[0]
    view = model.teacher.view(batch, (64, 96), "RGB")
    assert view.images.tensor.shape == (2, 3, 128, 128)
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(batch).tensor)
    aligned = distiller.aligned(view, features)
    assert aligned.keys() == features.keys()
    for level, x in aligned.items():
        height, width = features[level].shape[2:]
        assert x.shape[2:] == (height, width) != view.features[level].shape[2:]
        assert torch.equal(x, view.features[level][:, :, :height, :width])


def test_cache_of_a_program_is_refused(lazy_student, tmp_path):
    with pytest.raises(AIDError, match=r"TEACHER.CACHE is .*lazy.py is a program, .* to ''$"):
        lazy_student("new_baselines", ["TEACHER.CACHE", str(tmp_path / "cache")])


def test_images_larger_than_the_square_are_refused(lazy_student, make_batch):
    with pytest.raises(AIDError, match=r"up to 160x160, .*lazy.py takes squares of 128: lower"):
        lazy_student("vitdet", ["INPUT.MAX_SIZE_TRAIN", 130])
    model, _ = lazy_student("vitdet")
    with pytest.raises(AIDError, match=r"64x160, .* squares of 128"):
        model.teacher.view(make_batch(), (64, 160), "RGB")


def test_loss_by_anchors_with_different_padding_is_refused(student_model):
    opts = ["DISTILLATION.LOSSES", ["ResponseLoss"]]
    model, cfg = student_model("retinanet", None, opts)
    model.teacher.detector.backbone._size_divisibility = 128
    distiller = model.distillers[0]
    parts = (model, model.teacher, distiller.losses, distiller.weighting, ("p3",))
    with pytest.raises(AIDError, match="multiples of 128, the student to 0 and 32: choose a loss"):
        type(distiller)(*parts)


def test_config_has_the_values_of_the_lazyconfig(lazy_file, toy_dataset):
    size = "dataloader.test.mapper.augmentations[0].update(short_edge_length=40, max_size=50)\n"
    path = lazy_file("new_baselines", size + "train.output_dir = 'there'\n")
    with pytest.raises(AIDError, match="lazyconfig_train_net.py --config-file .*there/model_final"):
        load_teacher(path, "gone.pth")
    from aid.modeling.lazy_teacher import read_lazy_config

    cfg, _ = read_lazy_config(path, "lazy.py")
    values = cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.DATASETS.TRAIN
    assert values == ("BGR", 40, 50, ("lazy_three",))
    cfg.DATALOADER.NUM_WORKERS = 0
    mapper = instantiate(LazyConfig.load(path).dataloader.test.mapper)
    records = DatasetCatalog.get(toy_dataset)
    for record, (sample,) in zip(records, build_test_loader(cfg, toy_dataset), strict=True):
        assert torch.equal(sample["image"], mapper(record)["image"])


@pytest.mark.parametrize(
    "augmentations", ["T.RandomFlip()", "T.ResizeShortestEdge([4, 5], 9)", "T.Resize((8, 8))"]
)
def test_evaluation_with_an_unsupported_test_mapper_is_refused(
    augmentations, lazy_file, tiny_model
):
    from aid.modeling.lazy_teacher import read_lazy_config

    path = lazy_file("new_baselines", f"dataloader.test.mapper.augmentations = [{augmentations}]\n")
    teacher_cfg, _ = read_lazy_config(path, "lazy.py")
    teacher = SimpleNamespace(cfg=teacher_cfg, name="lazy.py", has_heads=False)
    cfg = load_config_with(EVAL_FIRST=True)
    with pytest.raises(AIDError, match=r"EVAL_FIRST is on, but dataloader.test.mapper in lazy.py"):
        check_teacher(teacher, tiny_model("faster_rcnn"), cfg)


def load_config_with(**keys):
    from detectron2.config import get_cfg

    from aid.config import add_aid_config

    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.TEACHER.update(keys)
    return cfg


@pytest.mark.parametrize(
    "text, message",
    [
        ("model = (", r"SyntaxError: .*lazy.py"),
        ("import no_such_module", r"lazy.py: ModuleNotFoundError: .*no_such_module.*line \d+"),
        ("train = dict()", "defines no `model`: name"),
        ("model = dict(input_format='RGB')\ndataloader = dict(test=dict(mapper=None))", "gone.pth"),
        ("model = dict(no=1)", "mapper.image_format are missing: set"),
    ],
)
def test_invalid_lazyconfig_is_a_one_line_error(text, message, lazy_file):
    with pytest.raises(AIDError, match=message) as error:
        load_teacher(lazy_file(text), "gone.pth")
    assert "\n" not in str(error.value)


def test_contradicting_channel_orders_are_refused(lazy_file):
    path = lazy_file("new_baselines", "dataloader.train.mapper.image_format = 'RGB'\n")
    with pytest.raises(AIDError, match="are BGR and RGB: set"):
        load_teacher(path, "gone.pth")


def test_unexpected_model_argument_is_a_one_line_error(lazy_file, tmp_path):
    (tmp_path / "any.pth").touch()
    with pytest.raises(AIDError, match="lazy.py: TypeError: .*depth_of_field"):
        path = lazy_file("fcos", "model.depth_of_field = 1\n")
        load_teacher(path, str(tmp_path / "any.pth"))


def test_config_file_cannot_name_a_program(lazy_file, student_config, tmp_path):
    marker = tmp_path / "marker"
    path = lazy_file(f"import os\nos.mkdir({str(marker)!r})\n")
    cfg = student_config("faster_rcnn")
    for key, value in (("CONFIG_FILE", "lazy.py"), ("MORE_CONFIG_FILES", ["lazy.py"])):
        other = cfg.clone()
        other.TEACHER[key] = value
        other.TEACHER.MORE_WEIGHTS = [cfg.TEACHER.WEIGHTS] * len(other.TEACHER.MORE_CONFIG_FILES)
        student = tmp_path / "student.yaml"
        student.write_text(other.dump())
        read = load_config(str(student))
        number = len(other.TEACHER.MORE_CONFIG_FILES)
        with pytest.raises(AIDError, match=rf"{key}.*lazy.py is a program.*add TEACHER.{key} with"):
            build_teacher(read, number)
        assert not marker.exists()
    read = load_config(str(student), ["TEACHER.MORE_CONFIG_FILES", "['lazy.py']"])
    assert read.TEACHER.MORE_CONFIG_FILES == [path]
    with pytest.raises(AIDError, match="defines no `model`"):
        build_teacher(read, 1)
    assert marker.exists()


def test_config_file_may_name_a_lazyconfig_of_the_model_zoo(student_config):
    cfg = student_config("faster_rcnn", None, ["TEACHER.WEIGHTS", "gone.pth"])
    cfg.TEACHER.CONFIG_FILE = "COCO-Detection/fcos_R_50_FPN_1x.py"
    assert not os.path.exists(cfg.TEACHER.CONFIG_FILE)
    with pytest.raises(AIDError, match="gone.pth does not exist"):
        build_teacher(cfg)
    with pytest.raises(AIDError, match="fcos_R_50_FPN_1x.py is a program: name a YAML config"):
        load_teacher_config(cfg.TEACHER.CONFIG_FILE)
