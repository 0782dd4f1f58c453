"""Files of a project: registration of the data, and configs of teacher and students."""

import math
import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.data import load_coco
from aid.data.classes import check_class_lists, class_list
from aid.data.images import in_threads
from aid.data.unlabeled import upright_size
from aid.utils.errors import AIDError
from aid.utils.files import check_folder_name, write_text
from aid.utils.text import counted

from ..files import clear_file_errors
from .coco_classes import CocoClasses, find_coco_classes
from .input_size import InputSize

__all__ = ["DETECTORS", "LIGHT", "Project", "write_project"]


@dataclass(frozen=True)
class Detector:
    """Family of detectors.

    Attributes:
        base: file name of its base config, below configs/.
        distillation: file name of the base config of its students, below configs/AID.
        section: of MODEL that holds NUM_CLASSES.
        rate: SOLVER.BASE_LR for 16 images.
        coco_teacher: TEACHER.CONFIG_FILE and WEIGHTS of a detector in Detectron2's model zoo, or
            None if it has none of the family.
    """

    base: str
    distillation: str
    section: str
    rate: float
    coco_teacher: tuple[str, str] | None = None


_ZOO = "COCO-Detection"
DETECTORS = {
    "faster_rcnn": Detector(
        "Base-RCNN-FPN.yaml",
        "Base-RCNN.yaml",
        "ROI_HEADS",
        0.02,
        (
            f"{_ZOO}/faster_rcnn_R_101_FPN_3x.yaml",
            f"detectron2://{_ZOO}/faster_rcnn_R_101_FPN_3x/137851257/model_final_f6e8b1.pkl",
        ),
    ),
    "retinanet": Detector(
        "Base-RetinaNet.yaml",
        "Base-RetinaNet.yaml",
        "RETINANET",
        0.01,
        (
            f"{_ZOO}/retinanet_R_101_FPN_3x.yaml",
            f"detectron2://{_ZOO}/retinanet_R_101_FPN_3x/190397697/model_final_971ab9.pkl",
        ),
    ),
    "gfl": Detector("Base-GFL.yaml", "Base-GFL.yaml", "GFL", 0.01),
    "fcos": Detector("Base-FCOS.yaml", "Base-FCOS.yaml", "FCOS", 0.01),
}
# Backbones of light students, whose FPN and heads are narrower.
LIGHT = ("MobileNetV3L", "EfficientNetB0", "RegNetY400MF")
# Epochs of the students by default, and iterations that they last at least, for small datasets.
EPOCHS = 12
MIN_ITERATIONS = 1000


@dataclass(frozen=True)
class Project:
    """Settings of a project.

    Attributes:
        folder: to write; its name is the prefix of the datasets.
        train_json, val_json: annotations in COCO's format.
        images: folder of the images.
        detector: one of DETECTORS.
        student: backbone of the students, the name of a file in configs/backbones. A teacher of its
            own has the FPN and heads of a light student, so that the student can inherit them.
        coco_teacher: whether the teacher is a COCO detector of Detectron2's model zoo.
        epochs: of the students; a teacher is trained twice as long. None for EPOCHS, or as many as
            make MIN_ITERATIONS.
        gpus: number of GPUs; 0 for the CPU.
        batch: images per iteration of all GPUs; None for the smallest multiple of their number
            from 8 on.
        test_json: annotations of the test images; None without.
    """

    folder: str
    train_json: str
    val_json: str
    images: str
    detector: str = "faster_rcnn"
    student: str = "R18"
    coco_teacher: bool = False
    epochs: int | None = None
    gpus: int = 1
    batch: int | None = None
    test_json: str | None = None

    @property
    def name(self) -> str:
        return os.path.basename(os.path.normpath(self.folder))

    @property
    def annotations(self) -> dict[str, str]:
        """{split: its annotations}"""
        paths = {"train": self.train_json, "val": self.val_json, "test": self.test_json}
        return {split: path for split, path in paths.items() if path}

    @property
    def batch_size(self) -> int:
        workers = max(self.gpus, 1)
        return -(-8 // workers) * workers if self.batch is None else self.batch


def write_project(project: Project, repository: Path) -> tuple[list[str], list[str]]:
    """Write register.py, data.yaml, teacher.yaml, student.yaml and aid.yaml.

    Args:
        project: settings.
        repository: folder that contains configs/ and train_net.py.

    Returns:
        Lines for a shell: commands that train and compare, with comments; and warnings.

    Raises:
        AIDError: the folder exists or cannot be written, a setting or the data cannot be used.
    """
    _check(project)
    records, classes = _read_data(project)
    train, warnings = records["train"], []
    if project.test_json and not records["test"]:
        warnings.append(f"{project.test_json} has no object: it is left out")
        project = replace(project, test_json=None)
    outputs = _output(project)
    if os.path.lexists(outputs):
        warnings.append(
            f"{outputs} exists, perhaps of another project called {project.name}: move it away, or "
            "choose another name, so that their runs are not mixed"
        )
    epoch = max(1, round(len(train) / project.batch_size))
    enough = -(-MIN_ITERATIONS // epoch)
    if project.epochs is None:
        project = replace(project, epochs=max(EPOCHS, enough))
    iterations = project.epochs * epoch
    files = {
        "register.py": _registration(project),
        "data.yaml": _data(project, train, classes, epoch),
        "student.yaml": _plain(project, repository, project.student, "student"),
    }
    if project.coco_teacher:
        found = find_coco_classes(classes)
        warnings += _coco_warnings(project, found)
        files["aid.yaml"] = _distilled(project, repository, _coco_teacher(project, found))
    else:
        schedule = f"SOLVER:  # twice as long as the students\n{_schedule(2 * iterations)}"
        files["teacher.yaml"] = _plain(project, repository, "R101", "teacher", schedule)
        files["aid.yaml"] = _distilled(project, repository, _own_teacher(project))
    with clear_file_errors(project.folder):
        os.makedirs(project.folder)
        for name, text in files.items():
            write_text(os.path.join(project.folder, name), text)
    if iterations < MIN_ITERATIONS:
        warnings.append(
            f"the schedule has {counted(iterations, 'iteration')}, "
            f"{counted(project.epochs, 'epoch')} of {counted(len(train), 'image')}, which is short "
            f"for a detector: consider --epochs {enough} or more"
        )
    return _commands(project, repository), warnings


def _check(project: Project) -> None:
    check_folder_name("NAME", project.folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", project.name, re.ASCII):
        raise AIDError(f"NAME {project.name}: it may have letters, digits and . _ - only")
    if os.path.lexists(project.folder):
        raise AIDError(f"{project.folder} exists: choose a new name, or remove it")
    for split in project.annotations:
        if f"{project.name}_{split}" in DatasetCatalog.list():
            raise AIDError(f"{project.name}_{split} is a dataset already: choose another name")
    epochs = EPOCHS if project.epochs is None else project.epochs
    if min(epochs, project.batch_size) < 1 or project.gpus < 0:
        raise AIDError("--epochs and --batch must be 1 or more, --gpus 0 or more")
    if project.batch_size % max(project.gpus, 1):
        raise AIDError(
            f"--batch {project.batch_size} is not divisible by --gpus {project.gpus}: change one"
        )
    if project.coco_teacher and not DETECTORS[project.detector].coco_teacher:
        raise AIDError(
            f"--teacher coco: Detectron2's model zoo has no {project.detector} detector: choose "
            "faster_rcnn or retinanet, or train a teacher"
        )


def _read_data(project: Project) -> tuple[dict[str, list[dict]], list[str]]:
    """Records of the images with objects of each split, and the names of the classes."""
    names = [f"{project.name}_{split}" for split in project.annotations]
    paths = list(project.annotations.values())
    try:
        records = [
            load_coco(name, path, project.images, "convert the labels, or correct the path")
            for name, path in zip(names, paths, strict=True)
        ]
        for path, of_split in zip(paths, records, strict=True):
            _check_sizes(path, of_split)
        check_class_lists(zip(paths, names, strict=True))
        classes = class_list(names[0])
    finally:
        for name in names:
            MetadataCatalog.pop(name, None)
    _check_apart(paths, records)
    usable = {
        split: [x for x in of_split if any(not a["iscrowd"] for a in x["annotations"])]
        for split, of_split in zip(project.annotations, records, strict=True)
    }
    for split, purpose in (("train", "train on"), ("val", "evaluate")):
        if not usable[split]:
            raise AIDError(f"{project.annotations[split]} has no object to {purpose}: add some")
    return usable, classes


def _check_apart(paths: list[str], records: list[list[dict]]) -> None:
    """Check that no image to evaluate is one to train on: the results would be too good."""
    train = {os.path.normpath(x["file_name"]) for x in records[0]}
    for path, of_split in zip(paths[1:], records[1:], strict=True):
        shared = [x["file_name"] for x in of_split if os.path.normpath(x["file_name"]) in train]
        if shared:
            raise AIDError(
                f"{len(shared)} of {counted(len(of_split), 'image')} in {path} are in {paths[0]}, "
                f"too, first {shared[0]}: take them out of one"
            )


def _check_sizes(path: str, records: list[dict]) -> None:
    """Check that the images have the sizes that their labels say.

    Training checks each image when it reads it, which for the last one may be hours later.
    """
    sizes = in_threads(upright_size, [x["file_name"] for x in records])
    for record, size in zip(records, sizes, strict=True):
        if size != (record["width"], record["height"]):
            raise AIDError(
                f"{path}: {record['file_name']} has {record['width']}x{record['height']} pixels, "
                "in the file {}x{}: correct the sizes and boxes, or give the images that were "
                "labeled".format(*size)
            )


def _registration(project: Project) -> str:
    lines = [
        f'register_coco("{project.name}_{split}", path({_from_folder(project, x)!r}), images)\n'
        for split, x in project.annotations.items()
    ]
    return f'''"""Registers the datasets; paths start at the folder of this file."""

import os

from aid.data import register_coco

HERE = os.path.dirname(os.path.realpath(__file__))


def path(relative):
    return os.path.normpath(os.path.join(HERE, relative))


images = path({_from_folder(project, project.images)!r})
{"".join(lines)}'''


def _data(project: Project, train: list[dict], classes: list[str], epoch: int) -> str:
    detector, batch = DETECTORS[project.detector], project.batch_size
    size = InputSize([(x["width"], x["height"]) for x in train])
    iterations = project.epochs * epoch
    checkpoint, evaluation = max(epoch, iterations // 12), max(1, project.epochs // 4) * epoch
    return f"""\
# Data and schedule of all detectors of this project.
DATASETS:
  TRAIN: ["{project.name}_train"]
  TEST: ["{project.name}_val"]
INPUT:
  # The shorter side is that of the median training image, but at most 800, as for COCO, and doubled
  # up to 480 if it is smaller. Each training image gets one of the sizes listed, from 0.8 of it on.
  # The limit of the longer side is 1333, as for COCO, or that of the median image at this size if
  # that is more, and more than twice the shorter side.
  MIN_SIZE_TRAIN: {list(size.min_train)}
  MAX_SIZE_TRAIN: {size.longest}
  MIN_SIZE_TEST: {size.min_test}
  MAX_SIZE_TEST: {size.longest}
MODEL:
  {detector.section}:
    NUM_CLASSES: {len(classes)}
SOLVER:
  IMS_PER_BATCH: {batch}  # of all GPUs together
  BASE_LR: {detector.rate * batch / 16:g}  # {detector.rate:g} for 16 images, in proportion
  # {counted(project.epochs, "epoch")} of {counted(len(train), "image")} with objects; an epoch is \
{counted(epoch, "iteration")}.
  # The learning rate falls after 2/3 and 11/12 of them.
{_schedule(iterations)}
  WARMUP_ITERS: {min(500, iterations // 10)}
  # Iterations between checkpoints: a twelfth of the schedule, but at least an epoch. A run that is
  # stopped loses the iterations since the last one.
  CHECKPOINT_PERIOD: {checkpoint}
TEST:
  # Iterations between evaluations: a quarter of the schedule in whole epochs, but at least one.
  EVAL_PERIOD: {evaluation}
"""


def _schedule(iterations: int) -> str:
    steps = sorted({iterations * 2 // 3, iterations * 11 // 12} - {0})
    return f"  MAX_ITER: {iterations}\n  STEPS: {steps}"


def _plain(project: Project, repository: Path, backbone: str, name: str, schedule: str = "") -> str:
    configs = repository / "configs"
    files = [DETECTORS[project.detector].base, f"backbones/{backbone}.yaml"]
    if project.student in LIGHT:
        files.insert(1, "Base-Light.yaml")
    bases = [configs / x for x in files]
    bases = [*(_from_folder(project, x) for x in bases), "data.yaml"]
    text = f"_BASE_: {_quoted(bases)}\n"
    text += f"{schedule}\n" if schedule else ""
    return f"{text}OUTPUT_DIR: {_quoted(_output(project, name))}\n"


def _distilled(project: Project, repository: Path, teacher: str) -> str:
    base = repository / "configs/AID" / DETECTORS[project.detector].distillation
    bases = ["student.yaml", _from_folder(project, base)]
    return f"_BASE_: {_quoted(bases)}\n{teacher}OUTPUT_DIR: {_quoted(_output(project, 'aid'))}\n"


def _own_teacher(project: Project) -> str:
    weights = os.path.join(_output(project, "teacher"), "model_final.pth")
    return f'TEACHER:\n  CONFIG_FILE: "teacher.yaml"\n  WEIGHTS: {_quoted(weights)}\n'


def _coco_warnings(project: Project, found: CocoClasses) -> list[str]:
    """Warnings of classes that the teacher does not know."""
    warnings = []
    if found.unknown:
        warnings.append(
            f"the teacher does not know: {', '.join(found.unknown)}. If a class of COCO means the "
            f"same, add it to TEACHER.CLASS_MAP in {os.path.join(project.folder, 'aid.yaml')} as "
            'in "person: pedestrian", COCO\'s name first'
        )
    if found.repeated:
        warnings.append(
            f"the teacher does not know: {', '.join(found.repeated)}. Another class has the same "
            "class of COCO: if they are one class, correct the labels"
        )
    return warnings


def _coco_teacher(project: Project, found: CocoClasses) -> str:
    """Keys of a COCO detector as teacher, with a map of the classes that COCO has, too."""
    config_file, weights = DETECTORS[project.detector].coco_teacher
    width = "  INHERIT: False  # its FPN and heads are wider\n" if project.student in LIGHT else ""
    note = ""
    if found.unknown:
        note += f"  # No class of COCO was found for: {_quoted(found.unknown)}\n"
    if found.repeated:
        note += f"  # Left out for one with the same class of COCO: {_quoted(found.repeated)}\n"
    entries = [f"{match}: {x}" for x, match in found.mapped.items()]
    return (
        f"TEACHER:\n  CONFIG_FILE: {_quoted(config_file)}\n  WEIGHTS: {_quoted(weights)}\n"
        f"{width}{note}  CLASS_MAP: {_quoted(entries)}\n"
        "  EVAL_FIRST: True  # its AP on the validation set is in the log\n"
    )


def _quoted(value: str | list[str]) -> str:
    """Value in YAML, in one line of ASCII."""
    text = yaml.safe_dump(value, default_style='"', default_flow_style=True, width=math.inf)
    return text.strip()


def _output(project: Project, *name: str) -> str:
    return os.path.join("output", project.name, *name)


def _from_folder(project: Project, path: str | Path) -> str:
    """Path from the folder of the project. A link at its end is not resolved."""
    folder, name = os.path.split(os.path.normpath(path))
    target = os.path.join(os.path.realpath(folder), name)
    return os.path.relpath(target, os.path.realpath(project.folder))


def _commands(project: Project, repository: Path) -> list[str]:
    def run(script: str, *arguments: str) -> str:
        path = os.path.relpath(repository / script)
        return shlex.join(["python", path, *arguments])

    register = ("--register", os.path.join(project.folder, "register.py"))
    names = ["student", "aid"] if project.coco_teacher else ["teacher", "student", "aid"]
    of_aid = "" if project.coco_teacher else ", which needs the teacher's weights"
    comments = {
        "teacher": "Train the teacher",
        "student": "Train the plain student, for comparison",
        "aid": f"Train the distilled student{of_aid}",
    }
    lines = [
        f"# The files of the project are in {project.folder}.",
        "# With --dry-run at its end, a training command shows the time and memory that it needs.",
    ]
    trainings = {}
    for name in names:
        config = ("--config-file", os.path.join(project.folder, f"{name}.yaml"))
        training = run("train_net.py", *register, *config, "--num-gpus", str(project.gpus))
        trainings[name] = training
        lines += [f"# {comments[name]}:", training]
    outputs = [_output(project, name) for name in names]
    report = ("--output", _output(project, "report"))
    lines += ["# Compare them:", run("tools/report.py", *outputs, *register, *report)]
    if project.test_json:
        # A folder of its own keeps the detections of validation, which the report reads.
        options = ("MODEL.WEIGHTS", os.path.join(_output(project, "aid"), "model_final.pth"))
        options += ("DATASETS.TEST", f'("{project.name}_test",)')
        options += ("OUTPUT_DIR", _output(project, "test"))
        test = f"{trainings['aid']} --eval-only {shlex.join(options)}"
        lines += ["# Evaluate the distilled student on the test split:", test]
    return lines
