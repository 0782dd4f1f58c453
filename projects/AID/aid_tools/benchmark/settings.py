"""Settings of a measurement: config, size of the input and device."""

from dataclasses import asdict, dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from aid.config import load_config
from aid.data.register import register_from_file
from aid.modeling.meta_arch import DistillationMixin
from aid.modeling.placement import dtype_named
from aid.modeling.teacher_keys import DETECTOR, teacher_kinds
from aid.modeling.weighting import build_weighting
from aid.utils.errors import AIDError
from aid.utils.text import counted

__all__ = ["Settings", "parse_size", "precision_of"]


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        config_file: config of a student with a teacher.
        opts: overrides of config keys, KEY VALUE in turn.
        height: height of the images in pixels; the networks pad them as in training.
        width: width of the images in pixels.
        batch: images per step.
        instances: ground truth boxes per image.
        device: "cpu", "cuda" or "cuda:N".
        threads: number of CPU threads of torch; None for torch's default.
        seed: seed of images, boxes and weights.
        register: Python file that registers losses, rules or detectors.
    """

    config_file: str
    opts: tuple[str, ...] = ()
    height: int = 370
    width: int = 1242
    batch: int = 2
    instances: int = 10
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    register: str | None = None

    def __post_init__(self):
        for name, least in (("height", 1), ("width", 1), ("batch", 1), ("instances", 0)):
            if getattr(self, name) < least:
                raise AIDError(f"--{name}: {getattr(self, name)} is below {least}")
        if self.threads is not None and self.threads < 1:
            raise AIDError(f"--threads: {self.threads} is below 1")
        if self.seed < 0:
            raise AIDError(f"--seed: {self.seed} is negative")
        self._check_device()

    def _check_device(self) -> None:
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            raise AIDError(f"--device: {self.device!r} is not one of cpu, cuda, cuda:N")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise AIDError(
                f"--device {self.device}: torch finds "
                f"{counted(torch.cuda.device_count(), 'GPU')}: choose another device, such as cpu"
            )

    def apply(self) -> CfgNode:
        """Set torch's threads, run the file to register, and load the config.

        Returns:
            The student's config for this device, with changes for measuring: no visualization, no
            schedule of the distillation weight, and a learning rate of 0, so that every round does
            the same work.

        Raises:
            AIDError: see :func:`load_config`; or the config is not that of a student whose
                weighting uses the losses of one detector as teacher.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.register:
            register_from_file(self.register)
        cfg = load_config(self.config_file, list(self.opts))
        name = cfg.MODEL.META_ARCHITECTURE
        student = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else object
        if not issubclass(student, DistillationMixin):
            raise AIDError(
                f"{self.config_file}: MODEL.META_ARCHITECTURE {name} has no teacher: choose a "
                "student's config, such as configs/AID/faster_rcnn_R18_from_R101.yaml"
            )
        if cfg.TEACHER.MORE_CONFIG_FILES:
            raise AIDError(
                f"{self.config_file}: TEACHER.MORE_CONFIG_FILES names further teachers, but only "
                "one can be measured: add TEACHER.MORE_CONFIG_FILES [] TEACHER.MORE_WEIGHTS []"
            )
        (kind,) = teacher_kinds(cfg)
        if kind != DETECTOR:
            raise AIDError(
                f"{self.config_file}: the teacher is {kind}, but a detector is measured: set "
                "TEACHER.CONFIG_FILE to its YAML config"
            )
        cfg.AID.GRANULARITY = "instance"
        if not build_weighting(cfg).requires_stats:
            raise AIDError(
                f"AID.WEIGHTING {cfg.AID.WEIGHTING} does not use the teacher's losses, so there is "
                "no AID step to measure: choose another rule"
            )
        cfg.MODEL.DEVICE = self.device
        cfg.VIS_PERIOD = 0
        schedule = cfg.DISTILLATION.SCHEDULE
        schedule.START_ITER = schedule.END_ITER = schedule.WARMUP_ITERS = 0
        schedule.DECAY = "none"
        cfg.SOLVER.BASE_LR = 0.0
        cfg.SEED = self.seed
        return cfg

    def as_dict(self) -> dict:
        """Content of the JSON file: the settings, and versions and device of the measurement."""
        is_gpu = torch.device(self.device).type == "cuda"
        precision = precision_of(load_config(self.config_file, list(self.opts)))
        return {
            **asdict(self),
            "precision": str(precision).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name(self.device) if is_gpu else None,
        }


def precision_of(cfg: CfgNode) -> torch.dtype:
    """Precision of the student's forward pass in training; float32 without SOLVER.AMP.

    Raises:
        AIDError: SOLVER.AMP.DTYPE is neither float16 nor bfloat16.
    """
    dtype = dtype_named("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, ("float16", "bfloat16"))
    return dtype if cfg.SOLVER.AMP.ENABLED else torch.float32


def parse_size(text: str) -> tuple[int, int]:
    """Parse height and width from a text such as "370x1242".

    Raises:
        AIDError: the text has another form.
    """
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise AIDError(f"--size: {text!r} is not HEIGHTxWIDTH, such as 370x1242") from None
    return height, width
