"""Shared fixtures: tiny detectors of some ten thousand parameters on the CPU, and batches."""

import contextlib
import copy
import functools
import importlib.util
import logging
import os
import pickle
import resource
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger
from PIL import Image

# Those of the caller would move the datasets and the weights that tests expect.
for variable in ("DETECTRON2_DATASETS", "FVCORE_CACHE"):
    os.environ.pop(variable, None)

import aid  # noqa: F401  (registers the project's models)
from aid.config import load_config
from aid.data import register_from_file
from aid.engine.output_folder import LOGGERS

# Threads slow tiny networks down, on a busy machine a hundredfold.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEIGHT, WIDTH = 64, 96
# Registered so that the package's tests of weighting rules include the rules under study.
register_from_file(os.path.join(REPOSITORY, "studies", "rules.py"))


def pytest_collection_modifyitems(items):
    """Start with the tests that are not in a folder, some of which start processes for minutes.

    With ``--dist loadfile`` a worker would end with them, while the others are idle.
    """
    items.sort(key=lambda item: item.path.parent.name != "tests")


TINY = {
    "MODEL": {
        "DEVICE": "cpu",
        "PIXEL_MEAN": [123.675, 116.280, 103.530],
        "PIXEL_STD": [58.395, 57.120, 57.375],
        "BACKBONE": {"FREEZE_AT": 0},
        "RESNETS": {
            "DEPTH": 50,
            "STEM_OUT_CHANNELS": 8,
            "WIDTH_PER_GROUP": 4,
            "RES2_OUT_CHANNELS": 8,
            "NORM": "BN",
            "STRIDE_IN_1X1": False,
        },
        "FPN": {"OUT_CHANNELS": 8},
    },
    "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TRAIN": [HEIGHT], "MIN_SIZE_TEST": HEIGHT},
    "SEED": 3,
    "VERSION": 2,
}
RCNN = {
    "MODEL": {
        "ANCHOR_GENERATOR": {"SIZES": [[8], [16], [32], [64], [96]]},
        "RPN": {
            "PRE_NMS_TOPK_TRAIN": 40,
            "PRE_NMS_TOPK_TEST": 40,
            "POST_NMS_TOPK_TRAIN": 20,
            "POST_NMS_TOPK_TEST": 20,
        },
        "ROI_HEADS": {"NUM_CLASSES": 3, "BATCH_SIZE_PER_IMAGE": 16},
        "ROI_BOX_HEAD": {"FC_DIM": 16},
    }
}
CASCADE = {
    "MODEL": {
        "ROI_HEADS": {"NAME": "CascadeROIHeads"},
        "ROI_BOX_HEAD": {"CLS_AGNOSTIC_BBOX_REG": True},
        "RPN": {"POST_NMS_TOPK_TRAIN": 20},
    }
}
MASK = {
    "MODEL": {
        "MASK_ON": True,
        "ROI_MASK_HEAD": {
            "NAME": "MaskRCNNConvUpsampleHead",
            "NUM_CONV": 1,
            "CONV_DIM": 8,
            "POOLER_RESOLUTION": 4,
        },
    }
}
RETINANET = {
    "MODEL": {
        "ANCHOR_GENERATOR": {"SIZES": [[8, 12], [16, 24], [32, 48], [64, 80], [96, 128]]},
        "RETINANET": {"NUM_CLASSES": 3, "NUM_CONVS": 1},
    }
}
GFL = {"MODEL": {"GFL": {"NUM_CLASSES": 3, "NUM_CONVS": 1, "NORM": "", "ANCHOR_SCALE": 2.0}}}
FCOS = {"MODEL": {"FCOS": {"NUM_CLASSES": 3, "NUM_CONVS": 1, "NORM": "", "PRIOR_DISTANCE": 1.0}}}
# The losses of AID's paper at their original weights: they have adapters, non-local blocks and
# several terms.
PAPER = ["DISTILLATION.LOSSES", ["AttentionGuidedLoss", "NonLocalLoss"]]
PAPER += ["DISTILLATION.BALANCE", 0.0, "DISTILLATION.STANDARDIZE", False]
PAPER += ["DISTILLATION.ADAPT_EQUAL_WIDTHS", True]
PAPER += ["DISTILLATION.NON_LOCAL.TRAIN_TEACHER", True]
KINDS = {
    "faster_rcnn": ("Base-RCNN-FPN.yaml", [RCNN]),
    "mask_rcnn": ("Base-RCNN-FPN.yaml", [RCNN, MASK]),
    "cascade_rcnn": ("Base-RCNN-FPN.yaml", [RCNN, CASCADE]),
    "retinanet": ("Base-RetinaNet.yaml", [RETINANET]),
    "gfl": ("Base-GFL.yaml", [GFL]),
    "fcos": ("Base-FCOS.yaml", [FCOS]),
}


@pytest.fixture(autouse=True)
def log_handlers():
    """Removes the log handlers that a test adds, whose streams end with it."""
    loggers = list(map(logging.getLogger, LOGGERS))
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
    setup_logger.cache_clear()


@pytest.fixture(scope="session")
def repository():
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def load_script():
    """A function (path in the repository) -> the script as a module."""

    def load(path: str):
        spec = importlib.util.spec_from_file_location(
            os.path.splitext(os.path.basename(path))[0], os.path.join(REPOSITORY, path)
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where worker processes look up its functions
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def make_scenes(load_script):
    """A function (arguments) that calls datasets/make_synthetic_kitti.py in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(os.path.join(REPOSITORY, "datasets"))
        yield load_script("datasets/make_synthetic_kitti.py").main


@pytest.fixture
def in_processes(load_script, tmp_path):
    """A function (number of processes, function, arguments) -> result of each process."""
    return functools.partial(load_script("tests/processes.py").run, tmp_path)


def nested(key: str, value) -> dict:
    """The dict {"A": {"B": value}} of the key "A.B"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merged(keys: dict, other: dict) -> dict:
    """Nested dict with the values of both, and of ``other`` where both have one."""
    both = {k: merged(keys[k], other[k]) for k in keys if isinstance(other.get(k), dict)}
    return {**keys, **other, **both}


@pytest.fixture
def tiny_config(tmp_path):
    """A function (kind, opts) -> path of a config file of a tiny detector."""

    def write(kind: str, opts=(), name: str | None = None) -> str:
        base, parts = KINDS[kind]
        # Only what differs from the base: parsing all keys would take longer than a training step.
        keys = {"_BASE_": os.path.join(REPOSITORY, "configs", base)}
        for part in [TINY, *parts, *map(nested, opts[::2], opts[1::2])]:
            keys = merged(keys, part)
        path = tmp_path / f"{name or kind}.yaml"
        path.write_text(yaml.safe_dump(keys))
        return str(path)

    return write


@pytest.fixture
def tiny_model(tiny_config):
    """A function (kind, opts, seed) -> a tiny detector with random weights, in eval mode."""

    def build(kind: str, opts=(), seed: int = 0):
        cfg = load_config(tiny_config(kind, opts))
        torch.manual_seed(seed)
        return build_model(cfg).eval()

    return build


@pytest.fixture(scope="session")
def saved_teacher(tmp_path_factory):
    """A function (kind, its config file) -> path of its random weights, made once per session."""
    folder = tmp_path_factory.mktemp("teachers")

    def save(kind: str, path: str):
        weights = folder / f"{kind}.pth"
        if not weights.exists():
            torch.manual_seed(17)
            torch.save({"model": build_model(load_config(path)).state_dict()}, weights)
        torch.manual_seed(17)
        return weights

    return save


@functools.cache
def architecture(base: str) -> str:
    return load_config(os.path.join(REPOSITORY, "configs", base)).MODEL.META_ARCHITECTURE


@pytest.fixture
def student_config(tiny_config, saved_teacher, tmp_path):
    """A function (student, teacher, opts) -> config of a student with a teacher on disk."""

    def make(student: str, teacher: str | None = None, opts=()):
        teacher = teacher or student
        path = tiny_config(teacher, name=f"{teacher}_teacher")
        weights = tmp_path / f"{teacher}_teacher.pth"
        if not weights.exists():
            shutil.copyfile(saved_teacher(teacher, path), weights)
        arch = "AID" + architecture(KINDS[student][0])
        keys = ["MODEL.META_ARCHITECTURE", arch, *PAPER]
        keys += ["TEACHER.CONFIG_FILE", path, "TEACHER.WEIGHTS", str(weights)]
        return load_config(tiny_config(student, [*keys, *opts], name=f"{student}_student"))

    return make


@pytest.fixture
def further(tiny_config, tmp_path):
    """A function (kinds or (kind, opts)) -> options that add teachers, saved on disk."""

    def make(*kinds) -> list:
        files, paths = [], []
        for k, kind in enumerate(kinds, 1):
            kind, opts = (kind, []) if isinstance(kind, str) else kind
            files.append(tiny_config(kind, opts, name=f"further_{k}"))
            paths.append(str(tmp_path / f"further_{k}.pth"))
            torch.manual_seed(100 + k)
            torch.save({"model": build_model(load_config(files[-1])).state_dict()}, paths[-1])
        return ["TEACHER.MORE_CONFIG_FILES", files, "TEACHER.MORE_WEIGHTS", paths]

    return make


@pytest.fixture
def student_model(student_config):
    """A function (student, teacher, opts, seed) -> (student with its teacher, config)."""

    def build(student: str, teacher: str | None = None, opts=(), seed: int = 0):
        cfg = student_config(student, teacher, opts)
        torch.manual_seed(seed)
        model = build_model(cfg)
        model.build_distillation(cfg)
        return model.train(), cfg

    return build


@pytest.fixture
def make_batch():
    """A function (numbers of instances, seed) -> a batch with images, boxes, classes and masks."""

    def make(num_instances=(2, 3), seed: int = 0, masks: bool = False) -> list[dict]:
        generator = torch.Generator().manual_seed(seed)
        batch = []
        for n in num_instances:
            corner = torch.rand(n, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) * 0.6
            size = 6 + torch.rand(n, 2, generator=generator) * 24
            instances = Instances((HEIGHT, WIDTH))
            instances.gt_boxes = Boxes(torch.cat([corner, corner + size], dim=1))
            instances.gt_classes = torch.randint(3, (n,), generator=generator)
            if masks:
                instances.gt_masks = BitMasks(torch.ones(n, HEIGHT, WIDTH, dtype=torch.bool))
            image = torch.randint(256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
            batch.append({"image": image, "instances": instances, "height": HEIGHT, "width": WIDTH})
        return batch

    return make


class _Marks:
    """Object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def hostile_file(tmp_path):
    """A function (file name, weights) -> (checkpoint, path made if its pickle is executed)."""

    def make(name: str, state=None):
        marker = tmp_path / "marker"
        content = {"model": state or {}, "__author__": _Marks(marker)}
        if name.endswith(".pkl"):
            content["model"] = {key: value.numpy() for key, value in content["model"].items()}
            (tmp_path / name).write_bytes(pickle.dumps(content))
        else:
            torch.save(content, tmp_path / name)
        return str(tmp_path / name), marker

    return make


@pytest.fixture
def kitti(tmp_path):
    """A function {image: label lines} -> root of a KITTI folder with split "train"."""

    def make(labels: dict[str, list[str]], size=(160, 80)) -> str:
        for folder in ("training/image_2", "training/label_2", "ImageSets"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, lines in labels.items():
            pixels = np.zeros((size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "training/image_2" / f"{name}.png")
            (tmp_path / "training/label_2" / f"{name}.txt").write_text("\n".join(lines))
        (tmp_path / "ImageSets/train.txt").write_text("\n".join(labels) + "\n")
        return str(tmp_path)

    return make


@pytest.fixture
def storage():
    """An event storage at the last iteration before Detectron2 writes its log."""
    with EventStorage(19) as entered:
        yield entered


@pytest.fixture
def no_handlers(monkeypatch):
    """Loggers without the handlers of earlier tests, whose streams are closed."""
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])


@pytest.fixture
def toy_dataset(tmp_path, make_batch):
    """Name of a registered dataset of 7 images on disk, two of them upright."""
    name, dicts = f"toy_{tmp_path.name}", []
    for i, sample in enumerate(make_batch((2, 3, 1, 4, 2, 1, 3))):
        image = sample["image"].permute(1, 2, 0).numpy()
        boxes = sample["instances"].gt_boxes.tensor.clamp(max=HEIGHT).tolist()
        if i in (2, 5):
            image, boxes = image.transpose(1, 0, 2), [[b[1], b[0], b[3], b[2]] for b in boxes]
        path = str(tmp_path / f"{i}.png")
        Image.fromarray(image).save(path)
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": c, "iscrowd": 0}
            for box, c in zip(boxes, sample["instances"].gt_classes.tolist(), strict=True)
        ]
        dicts.append(
            {
                "file_name": path,
                "image_id": i,
                "height": image.shape[0],
                "width": image.shape[1],
                "annotations": annotations,
            }
        )
    DatasetCatalog.register(name, lambda: copy.deepcopy(dicts))
    MetadataCatalog.get(name).set(
        thing_classes=["Car", "Pedestrian", "Cyclist"], evaluator_type="coco"
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def file_limit():
    """A context manager (bytes) in which writing a larger file fails, as on a full disk."""

    @contextlib.contextmanager
    def limit(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
