"""Feature teachers: input images, output maps, and errors."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from aid.config import load_config
from aid.modeling.feature_teacher import FeatureTeacher, load_feature_teacher
from aid.modeling.teacher import build_teacher
from aid.modeling.teacher_check import check_teacher
from aid.utils.errors import AIDError


class Pyramid(nn.Module):
    """Two maps, of strides 8 and 16."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 8, stride=8)
        self.second = nn.Conv2d(4, 6, 2, stride=2)

    def forward(self, x):
        p3 = self.first(x)
        return [p3, self.second(p3)]


class Tokens(nn.Module):
    """ViT with one block, whose output dict has a map with the stride of its patches."""

    def __init__(self, patch=16):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, patch, stride=patch)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x):
        x = self.embed(x)
        tokens = self.block(x.flatten(2).transpose(1, 2))
        return {"last": tokens.transpose(1, 2).unflatten(2, x.shape[2:]), "tokens": tokens}


def fail():
    raise RuntimeError("no weights")


@pytest.fixture
def foundation(monkeypatch):
    """Importable module with functions that TEACHER.CONFIG_FILE can name."""
    module = SimpleNamespace(build=Tokens, build_words=lambda: "no module", fail=fail)
    monkeypatch.setitem(sys.modules, "foundation", module)


@pytest.fixture
def script(tmp_path):
    """Path of a TorchScript file of a Pyramid."""
    torch.manual_seed(5)
    torch.jit.script(Pyramid()).save(tmp_path / "pyramid.pt")
    return str(tmp_path / "pyramid.pt")


@pytest.fixture
def named(student_config, tmp_path):
    """Function (value of TEACHER.CONFIG_FILE, opts) -> config, as from a command line."""

    def read(source: str, opts=(), family: str = "faster_rcnn"):
        plain = ["DISTILLATION.LOSSES", ["PKDLoss"], "AID.GRANULARITY", "none"]
        path = tmp_path / "named.yaml"
        path.write_text(student_config(family, None, plain).dump())
        return load_config(str(path), ["TEACHER.CONFIG_FILE", source, "TEACHER.WEIGHTS", "", *opts])

    return read


@pytest.fixture
def student(named):
    """Function (value of TEACHER.CONFIG_FILE, opts) -> student with this teacher."""

    def build(source: str, opts=()):
        cfg = named(source, opts)
        torch.manual_seed(0)
        model = build_model(cfg).train()
        model.build_distillation(cfg)
        return model

    return build


TWO = ["TEACHER.FEATURES", "['0: p3', '1: p4']"]


def test_torchscript_maps_are_imitated_on_the_given_levels(student, script, make_batch, storage):
    model, batch = student(script, TWO), make_batch()
    teacher, distiller = model.teacher, model.distillers[0]
    shapes = {k: (x.channels, x.stride) for k, x in teacher.output_shape().items()}
    assert shapes == {"p3": (4, 8), "p4": (6, 16)} and distiller.strides == {"p3": 8, "p4": 16}
    assert "with weights of its own" in str(distiller)
    view = teacher.view(batch, (64, 96), "RGB")
    with torch.no_grad():
        images = model.preprocess_image(batch).tensor  # the student's normalization is ImageNet's
        expected = torch.jit.load(script)(images)
        features = model.backbone(images)
    assert torch.equal(view.images.tensor, images)
    aligned = distiller.aligned(view, features)
    assert torch.equal(aligned["p3"], expected[0]) and torch.equal(aligned["p4"], expected[1])
    before = copy.deepcopy(teacher.detector.state_dict())
    losses = model(batch)
    assert losses["loss_distill_pkd"] > 0
    sum(losses.values()).backward()
    assert all(torch.equal(x, before[k]) for k, x in teacher.detector.state_dict().items())
    assert not any(k.startswith("teacher") for k in model.state_dict())
    adapters = model.distillation.parameters()
    assert all(p.grad is not None for p in adapters)


def test_one_vit_map_serves_several_levels(student, make_batch, storage, foundation):
    opts = ["TEACHER.FEATURES", "['last: p5', 'last: p3', 'last: p4']"]
    model, batch = student("python:foundation:build", opts), make_batch()
    distiller = model.distillers[0]
    assert distiller.strides == {"p3": 8, "p4": 16, "p5": 32}
    view = model.teacher.view(batch, (64, 96), "RGB")
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(batch).tensor)
    aligned = distiller.aligned(view, features)
    assert {k: tuple(x.shape[1:]) for k, x in aligned.items()} == {
        "p3": (8, 8, 12),
        "p4": (8, 4, 6),
        "p5": (8, 2, 3),
    }
    last = view.features["p4"]
    assert torch.equal(aligned["p4"], last)
    torch.testing.assert_close(aligned["p5"], nn.functional.avg_pool2d(last, 2))
    sum(model(batch).values()).backward()


class Means(nn.Module):
    """Mean color of each patch."""

    def __init__(self, patch):
        super().__init__()
        self.patch = patch

    def forward(self, x):
        return nn.functional.avg_pool2d(x, self.patch)


@pytest.mark.parametrize("input_format", ["RGB", "BGR"])
def test_images_are_normalized_with_the_configured_values(input_format, make_batch):
    mean, std = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    teacher = FeatureTeacher(
        Means(16), ["0: p4"], pixel_mean=mean, pixel_std=std, input_format=input_format
    )
    batch = make_batch()
    view = teacher.view(batch, (64, 96), "RGB")
    corner = batch[1]["image"][:, :16, :16].float().mean(dim=(1, 2))
    corner = corner if input_format == "RGB" else corner.flip(0)
    expected = (corner - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(view.features["p4"][1, :, 0, 0], expected)


def test_images_are_padded_to_whole_patches(make_batch):
    teacher = FeatureTeacher(Means(14), ["0: p4"])
    view = teacher.view(make_batch(), (64, 96), "RGB")
    assert view.images.tensor.shape == (2, 3, 70, 98)
    assert (view.images.tensor[:, :, 64:] == 0).all()
    padded, plain = (
        FeatureTeacher(Means(16), ["0: p4"]).view(make_batch(), size, "RGB").features["p4"]
        for size in ((128, 160), (64, 96))
    )
    assert torch.equal(padded[:, :, :4, :6], plain)  # the cells of the image are equal


class Named(Pyramid):
    """Dict of maps, whose keys are given."""

    def __init__(self, *levels):
        super().__init__()
        self.levels = levels

    def forward(self, x):
        return dict(zip(self.levels, super().forward(x), strict=True))


def test_dict_keys_are_level_names(named, tiny_model):
    assert FeatureTeacher(Named("p3", "p4")).levels == ("p3", "p4")
    cfg, student = named("python:a:b"), tiny_model("faster_rcnn")
    assert check_teacher(FeatureTeacher(Named("p3", "stem")), student, cfg) == ("p3",)
    with pytest.raises(AIDError, match=r"FEATURES is \[\]: .* no level C3, C4: name one of"):
        check_teacher(FeatureTeacher(Named("C3", "C4")), student, cfg)


def test_weighting_by_labels_alone_works(student, script, make_batch, storage, toy_dataset):
    opts = [*TWO, "AID.GRANULARITY", "instance", "AID.WEIGHTING", "ClassWeighting"]
    opts += ["DATASETS.TRAIN", f"('{toy_dataset}',)"]
    model, batch = student(script, opts), make_batch((4, 0))
    view = model.teacher.view(batch, (64, 96), "RGB")
    instances = [x["instances"] for x in batch]
    distiller = model.distillers[0]
    stats = distiller.stats(view, instances, None)
    weights = distiller.weights(stats, instances, {"p3": ((8, 12), 8)})
    assert torch.equal(weights.instance, (instances[0].gt_classes != 2).float())
    assert 0 in weights.instance and 1 in weights.instance
    assert all(x.isfinite() for x in model(batch).values())


def test_weights_of_a_callable_are_loaded_strictly(tmp_path, foundation):
    state = Tokens().state_dict()
    torch.save({"model": state}, tmp_path / "tokens.pth")
    source = "python:foundation:build"
    teacher = load_feature_teacher(source, str(tmp_path / "tokens.pth"), features=["last: p4"])
    assert all(torch.equal(x, state[k]) for k, x in teacher.detector.state_dict().items())
    state.popitem()
    torch.save({"model": state}, tmp_path / "tokens.pth")
    with pytest.raises(AIDError, match="does not fit .*1 missing in the file"):
        load_feature_teacher(source, str(tmp_path / "tokens.pth"), features=["last: p4"])


ON = ["AID.GRANULARITY", "instance"]


@pytest.mark.parametrize(
    "opts, message",
    [
        (ON, "pyramid.pt has no heads: ExponentialWeighting needs the teacher's loss D or detec"),
        (["DISTILLATION.LOSSES", "['ResponseLoss']"], "heads: ResponseLoss needs predictions; na"),
        (["TEACHER.WEIGHTS", "x.pth"], "TEACHER.WEIGHTS is x.pth, but the TorchScript file"),
        (["TEACHER.FEATURES", "[]"], r"FEATURES is \[\], .* are 0, 1: name one of these"),
        (["TEACHER.FEATURES", "['p3']"], r"FEATURES is \['p3'\]"),
        (["TEACHER.FEATURES", "['2: p3']"], "are 0, 1: name one"),
        (["TEACHER.FEATURES", "['0: p3', '1: p3']"], "name one of these for each level"),
        (
            ["TEACHER.FEATURES", "['0: p9']"],
            r"^TEACHER.FEATURES is .*: .* no level p9: name",
        ),
        (
            ["TEACHER.FEATURES", "['0: p3', '1: p9']"],
            "no level p9: .* p2, p3, p4, p5, p6, for",
        ),
        (
            ["DISTILLATION.LEVELS", "['p5']"],
            "no common level p5: the teacher's features are on",
        ),
        (["TEACHER.PIXEL_STD", "[1.0]"], "give both a number for each channel"),
        (["TEACHER.PIXEL_STD", "[1.0, 0.0, 1.0]"], "above 0 for PIXEL_STD"),
        (["TEACHER.FORMAT", "L"], "INPUT.FORMAT is RGB in the student, L in the teacher"),
        (["TEACHER.PIXEL_MEAN", "[1.0]", "TEACHER.PIXEL_STD", "[1.0]"], r"on images of \(1, 1, 4"),
    ],
)
def test_settings_that_need_more_than_features_are_refused(opts, message, student, script):
    with pytest.raises(AIDError, match=message) as error:
        student(script, [*TWO, *opts])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source, message",
    [
        ("python:foundation", "write it as python:package.module:attribute"),
        ("python:no.such.module:build", "ModuleNotFoundError: No module named 'no'"),
        ("python:foundation:nothing", "AttributeError: .*nothing"),
        ("python:foundation:build_words", "returns a str: return an nn.Module"),
        ("python:foundation:fail", "RuntimeError: no weights .test_feature_teacher.py, line"),
        ("gone.ts", "gone.ts does not exist: name a TorchScript file"),
        ("weights.pt", "weights.pt is no TorchScript file: RuntimeError"),
    ],
)
def test_invalid_source_is_a_one_line_error(source, message, tmp_path, monkeypatch, foundation):
    torch.save({"model": {}}, tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AIDError, match=message) as error:
        load_feature_teacher(source)
    assert "\n" not in str(error.value)


def test_maps_of_invalid_shape_are_refused():
    with pytest.raises(AIDError, match=r"output tokens of no file is \(1, 1568, 8\): a map"):
        FeatureTeacher(Tokens(), ["tokens: p4"])
    with pytest.raises(AIDError, match="has 40x81 cells for an image of 448x896: a map with a s"):
        FeatureTeacher(Means(11), ["0: p4"])


def test_maps_that_are_not_finite_are_refused():
    network = Pyramid()
    nn.init.constant_(network.second.bias, torch.nan)
    assert FeatureTeacher(network, ["0: p3"])
    with pytest.raises(AIDError, match="the output 1 of no file is NaN or infinite on a uniform"):
        FeatureTeacher(network, ["0: p3", "1: p4"])


def test_config_file_cannot_name_a_network(script, student_config):
    cfg = student_config("faster_rcnn")
    for source in (script, "python:os:getcwd"):
        cfg.TEACHER.CONFIG_FILE = source
        with pytest.raises(AIDError, match=f"{source} is a program, which no config file can name"):
            build_teacher(cfg)


class Resizing(nn.Module):
    """A network that resizes its images."""

    def forward(self, x):
        return nn.functional.interpolate(x, (56, 112))


def test_network_that_resizes_its_images_is_refused(make_batch):
    teacher = FeatureTeacher(Resizing(), ["0: p3"])  # stride 8 of the probe
    with pytest.raises(AIDError, match="56x112 cells for images of 64x96, its stride was 8"):
        teacher.view(make_batch(), (64, 96), "RGB")
