"""Config keys of the project, and how its config files are read."""

import os

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .errors import AIDError

__all__ = ["add_aid_config", "load_config"]


def add_aid_config(cfg: CN) -> None:
    """Add the keys of distillation, with their defaults, to a Detectron2 config (in place)."""
    # The teacher. Its config file: an absolute path, a path relative to the config file that names
    # it, or a name in Detectron2's model zoo. Its weights: any path that Detectron2 can read.
    cfg.TEACHER = CN()
    cfg.TEACHER.CONFIG_FILE = ""
    cfg.TEACHER.WEIGHTS = ""
    # Evaluate the teacher on DATASETS.TEST before the student's first iteration.
    cfg.TEACHER.EVAL_FIRST = False
    # Batches of each process, at the start of a run, on which the losses of teacher and student are
    # compared: if the teacher's is larger, there is a warning. 0 for none.
    cfg.TEACHER.COMPARE_BATCHES = 4

    cfg.DISTILLATION = CN()
    # Names in DISTILLATION_LOSS_REGISTRY; their losses are added up.
    cfg.DISTILLATION.LOSSES = ["AttentionGuidedLoss", "NonLocalLoss"]
    # lambda of the paper: multiplies every distillation loss.
    cfg.DISTILLATION.WEIGHT = 1.0
    # FPN levels to imitate, e.g. ["p3", "p4"]. Empty: all levels that teacher and student share.
    cfg.DISTILLATION.LEVELS = []
    # "sum": norms over all elements of a level, as in AID's released code: the weights below then
    # depend on image size and channels. "rms": norms divided by the root of the number of elements.
    cfg.DISTILLATION.SCALE = "sum"

    # Attention-guided distillation (Zhang & Ma, ICLR 2021). Defaults: the two-stage setting in
    # AID's released code; its single-stage one is TEMPERATURE 0.1, 5.6e-4, 2.4e-2, 2.4e-2.
    cfg.DISTILLATION.ATTENTION = CN()
    cfg.DISTILLATION.ATTENTION.TEMPERATURE = 0.5
    cfg.DISTILLATION.ATTENTION.FEATURE_WEIGHT = 4e-5
    cfg.DISTILLATION.ATTENTION.CHANNEL_WEIGHT = 8e-3
    cfg.DISTILLATION.ATTENTION.SPATIAL_WEIGHT = 8e-3

    # Non-local distillation (same paper). Single-stage: WEIGHT 4.9e-4.
    cfg.DISTILLATION.NON_LOCAL = CN()
    cfg.DISTILLATION.NON_LOCAL.WEIGHT = 4e-5
    # Max-pooling of keys and values, finest level first; the last entry serves all further levels.
    cfg.DISTILLATION.NON_LOCAL.SUBSAMPLE = [8, 4, 2, 2, 2]

    # ResponseLoss: the teacher's classes as soft targets (Hinton et al., arXiv 1503.02531), and its
    # boxes. BoxResponseLoss: its classes of the ground-truth boxes, for two-stage detectors alone.
    cfg.DISTILLATION.RESPONSE = CN()
    cfg.DISTILLATION.RESPONSE.TEMPERATURE = 1.0
    # Of BoxResponseLoss.
    cfg.DISTILLATION.RESPONSE.WEIGHT = 1.0
    # Of the two terms of ResponseLoss.
    cfg.DISTILLATION.RESPONSE.CLS_WEIGHT = 1.0
    cfg.DISTILLATION.RESPONSE.BOX_WEIGHT = 1.0
    # Two-stage teachers: their best proposals in each image, beside the ground-truth boxes.
    cfg.DISTILLATION.RESPONSE.NUM_ROIS = 64
    # Dense teachers: where no instance is, they are imitated if the score of a class is above this.
    # Default: Detectron2's SCORE_THRESH_TEST, from which on a score can become a detection.
    cfg.DISTILLATION.RESPONSE.MIN_SCORE = 0.05

    # LocalisationLoss: distributions of box edges. Defaults: LD's code in mmdetection (arXiv
    # 2102.12252), whose sum over positives is a mean here.
    cfg.DISTILLATION.LOCALISATION = CN()
    cfg.DISTILLATION.LOCALISATION.TEMPERATURE = 10.0
    cfg.DISTILLATION.LOCALISATION.WEIGHT = 0.25

    cfg.AID = CN()
    # Name in WEIGHTING_REGISTRY: how the teacher's loss D becomes the weight of imitation.
    cfg.AID.WEIGHTING = "ExponentialWeighting"
    # w = exp(-ALPHA * D); 0.1 in the paper. 0.0 is plain distillation.
    cfg.AID.ALPHA = 0.1
    # Where one weight holds: "instance" (inside a ground-truth box), "level" (image and FPN level,
    # the paper's scale-wise form), "image", or "none" (plain distillation, D is not computed).
    cfg.AID.GRANULARITY = "instance"
    # The rest of the map under "instance": "mean" (the image's mean instance weight), "loss" (from
    # the teacher's loss on the background) or "one". Images without instances use "loss".
    cfg.AID.BACKGROUND = "mean"
    # ConstantWeighting: the weight.
    cfg.AID.CONSTANT = 1.0
    # ClassWeighting: names of the classes that are not to be learned from this teacher.
    cfg.AID.DISTRUSTED_CLASSES = []
    # RelativeWeighting: momentum of the running mean of D, per iteration.
    cfg.AID.MOMENTUM = 0.99
    # Divide each level's map by its mean over the batch: weights then move imitation from place to
    # place and leave its overall strength alone.
    cfg.AID.NORMALIZE = False
    # D = sum of these coefficients times the parts of the teacher's loss on an instance, so that
    # each part has an alpha of its own. A dense teacher has CLS and BOX only.
    cfg.AID.COEFFICIENTS = CN()
    cfg.AID.COEFFICIENTS.CLS = 1.0
    cfg.AID.COEFFICIENTS.BOX = 1.0
    cfg.AID.COEFFICIENTS.RPN_CLS = 1.0
    cfg.AID.COEFFICIENTS.RPN_BOX = 1.0

    # "SGD" as in Detectron2, or "AdamW", with which small nets learn from scratch in a few hundred
    # iterations. The other SOLVER keys apply to both.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Micro-batches of an iteration, whose gradients are averaged: IMS_PER_BATCH images are divided
    # by it and by the number of processes, and take as much less memory.
    cfg.SOLVER.ACCUMULATION_STEPS = 1


class _Reader(CN):
    """Reads a file and its bases; a teacher's relative path belongs to the one that names it."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        loaded = super().load_yaml_with_base(filename, allow_unsafe)  # calls this for every base
        teacher = loaded.get("TEACHER")
        if isinstance(teacher, dict) and isinstance(teacher.get("CONFIG_FILE"), str):
            teacher["CONFIG_FILE"] = _beside(filename, teacher["CONFIG_FILE"])
        return loaded


def load_config(config_file: str, opts: list[str] = (), *, allow_unsafe: bool = False) -> CN:
    """Read a config file with the project's keys.

    The YAML is read without object construction, unless told otherwise: a config is data.
    TEACHER.CONFIG_FILE, where it is a path relative to the file that names it, becomes absolute, so
    that the result can be dumped anywhere.

    Args:
        config_file: path of the YAML file.
        opts: ``KEY VALUE`` pairs that override the file, as on the command line.
        allow_unsafe: let YAML tags construct objects; for files that come with Detectron2 only.

    Raises:
        AIDError: the file is missing or malformed, or a key or value does not fit.
    """
    cfg = get_cfg()
    add_aid_config(cfg)
    if not os.path.isfile(config_file):
        raise AIDError(f"config file {config_file} does not exist: check --config-file")
    try:
        cfg.merge_from_file(config_file, allow_unsafe=allow_unsafe)
        read = _Reader.load_yaml_with_base(config_file, allow_unsafe=allow_unsafe)
    except yaml.YAMLError as error:
        raise AIDError(
            f"{config_file}: not plain YAML: {_one_line(error)}; object tags are refused"
        ) from error
    except (AssertionError, KeyError, TypeError, ValueError, OSError) as error:
        raise AIDError(f"{config_file}: {_one_line(error)}") from error
    cfg.TEACHER.CONFIG_FILE = read.get("TEACHER", {}).get("CONFIG_FILE", "")
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise AIDError(f"command line options: {_one_line(error)}") from error
    cfg.TEACHER.CONFIG_FILE = _beside(config_file, cfg.TEACHER.CONFIG_FILE)
    return cfg


def _beside(config_file: str, path: str) -> str:
    """``path``, made absolute if it is a file relative to the folder of ``config_file``."""
    found = os.path.join(os.path.dirname(os.path.abspath(config_file)), path)
    return os.path.normpath(found) if path and os.path.isfile(found) else path


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split()).strip("'\"")
    if "<class 'float'> vs. <class 'int'>" in said:
        said += "; write a whole number as 1.0"
    return said
