"""Cost over image size, batch size and number of instances."""

from dataclasses import dataclass, replace
from statistics import median

import torch

from .cases import AID, PLAIN_DISTILLATION, make_cases
from .inputs import random_batch
from .nets import Nets
from .results import aid_floor
from .settings import Settings
from .timing import time_rounds

__all__ = ["Sweep", "measure_sweeps"]

# Factors of the image's sides.
SCALES = (0.5, 0.75, 1.0, 1.5)
BATCHES = (1, 2, 4)
INSTANCES = (0, 10, 100, 500)


@dataclass
class Sweep:
    """Measurement over the values of one quantity.

    Attributes:
        title: name of the quantity.
        labels: its values as text.
        values: its values as numbers: cells of all levels of an image, images, or instances.
        seconds: {case: median seconds at each value}.
        aid_to_floor: median ratio of AID's step to its floor, at each value.
    """

    title: str
    labels: list[str]
    values: list[float]
    seconds: dict[str, list[float]]
    aid_to_floor: list[float]


def measure_sweeps(
    settings: Settings, nets: Nets, *, repeat: int, seconds: float | None
) -> list[Sweep]:
    """Vary image size, batch size and number of instances, one at a time.

    The cases of all values are interleaved.

    Args:
        settings: values of the quantities that do not vary.
        nets: students and teacher.
        repeat: see :func:`~aid_tools.benchmark.timing.time_rounds`.
        seconds: see :func:`~aid_tools.benchmark.timing.time_rounds`.

    Returns:
        Sweeps of image size, batch size and number of instances.
    """
    axes = {
        "image": [
            replace(settings, height=round(x * settings.height), width=round(x * settings.width))
            for x in SCALES
        ],
        "batch": [replace(settings, batch=x) for x in BATCHES],
        "instances": [replace(settings, instances=x) for x in INSTANCES],
    }
    points = dict.fromkeys(point for axis in axes.values() for point in axis)
    batches = {point: random_batch(point, nets.cfg) for point in points}
    cases = {
        (point, name): case
        for point, batch in batches.items()
        for name, case in make_cases(nets, batch, (PLAIN_DISTILLATION, AID)).items()
    }
    rounds = time_rounds(cases, nets.device, seed=settings.seed, repeat=repeat, seconds=seconds)
    by_point = {
        point: [{name: x[p, name] for p, name in x if p == point} for x in rounds]
        for point in points
    }
    cells = {point: count_cells(nets, batches[point]) for point in axes["image"]}
    return [
        _sweep(
            "image (cells of all levels)",
            [f"{p.height}x{p.width} ({cells[p]})" for p in axes["image"]],
            [cells[p] for p in axes["image"]],
            [by_point[p] for p in axes["image"]],
        ),
        *(
            _sweep(
                title,
                [str(getattr(p, name)) for p in axes[name]],
                [getattr(p, name) for p in axes[name]],
                [by_point[p] for p in axes[name]],
            )
            for title, name in (("images per step", "batch"), ("instances per image", "instances"))
        ),
    ]


def _sweep(title: str, labels: list[str], values: list, times: list[list[dict]]) -> Sweep:
    """Make a sweep from ``times``: for each value and each round, the seconds of each case."""
    return Sweep(
        title,
        labels,
        values,
        {name: [median(x[name] for x in rounds) for rounds in times] for name in times[0][0]},
        [median(x[AID] / aid_floor(x) for x in rounds) for rounds in times],
    )


def count_cells(nets: Nets, batch: list[dict]) -> int:
    """Number of cells of one image on all imitated levels."""
    model = nets.distilled.model
    with torch.no_grad():
        height, width = model.preprocess_image(batch).tensor.shape[-2:]
    return sum(-(-height // x) * -(-width // x) for x in model.distillers[0].strides.values())
