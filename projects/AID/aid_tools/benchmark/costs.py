"""Parameters and multiply-adds of a student and its teacher."""

import torch
from detectron2.config import CfgNode

from aid.modeling.meta_arch import plain_architecture
from aid.modeling.teacher import load_teacher_config

from ..cost import count_gflops, num_parameters
from .inputs import random_batch
from .nets import random_detector
from .settings import Settings

__all__ = ["count_costs"]


def count_costs(settings: Settings) -> dict[str, dict[str, float]]:
    """Count parameters in millions, and multiply-adds for one image in units of 1e9.

    The box heads of an R-CNN see MODEL.RPN.POST_NMS_TOPK_TEST proposals: none is suppressed.

    Args:
        settings: config, and size of the image.

    Returns:
        {"student" and "teacher": {"parameters" and "gflops": number}}

    Raises:
        AIDError: the config cannot be used.
    """
    cfg = settings.apply()
    sample = random_batch(settings, cfg)[:1]
    teacher = load_teacher_config(cfg.TEACHER.CONFIG_FILE)
    teacher.MODEL.DEVICE, teacher.SEED = cfg.MODEL.DEVICE, cfg.SEED
    return {"student": _count(cfg, sample), "teacher": _count(teacher, sample)}


@torch.no_grad()
def _count(cfg: CfgNode, sample: list[dict]) -> dict[str, float]:
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = plain_architecture(cfg.MODEL.META_ARCHITECTURE)
    cfg.MODEL.RPN.NMS_THRESH = 1.0
    detector = random_detector(cfg, sample).eval()
    return {
        "parameters": num_parameters(detector),
        "gflops": count_gflops(detector, sample[0]),
    }
