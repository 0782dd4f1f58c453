"""Results as text tables."""

from collections.abc import Callable

from tabulate import tabulate

from aid.modeling.balance import PERIOD
from aid.utils.text import counted

from .cases import (
    AID_STEPS,
    BALANCE,
    INSTANCE_LOSSES,
    PLAIN_DISTILLATION,
    STUDENT,
    TEACHER,
    TEACHER_HEADS,
    WEIGHTING,
)
from .results import Results
from .settings import Settings
from .sweep import Sweep

__all__ = ["costs_page", "results_page", "sweep_page"]

TITLES = {
    STUDENT: "plain student's step",
    TEACHER: "teacher: backbone and FPN",
    TEACHER_HEADS: "teacher: heads only",
    INSTANCE_LOSSES: "teacher: per-instance losses, with heads",
    WEIGHTING: "weighting",
    "plain_distillation_floor": "floor of plain distillation",
    PLAIN_DISTILLATION: "plain distillation's step",
    BALANCE: "plain distillation's step, measuring gradients",
    "aid_floor": "floor of AID",
    **{name: f"AID's step, by {granularity}" for name, granularity in AID_STEPS.items()},
}
RATIOS = {
    "plain_distillation_to_floor": "plain distillation / its floor",
    "aid_to_floor": "AID / its floor",
    "aid_level_to_floor": "AID by level / floor of AID",
    "aid_image_to_floor": "AID by image / floor of AID",
    "balance_overhead": f"overhead of DISTILLATION.BALANCE, measuring at every {PERIOD}th step",
    "aid_to_plain_distillation": "AID / plain distillation",
    "instance_losses_to_teacher": "per-instance losses / teacher's backbone and FPN",
    "instance_losses_to_heads": "per-instance losses / teacher's heads",
    "memory_overhead": "AID's memory above student's + teacher's",
    "memory_overhead_to_weights": "AID's memory above student's + teacher's weights",
}


def costs_page(costs: dict[str, dict[str, float]], settings: Settings) -> str:
    """Format parameters and multiply-adds, see :func:`~aid_tools.benchmark.costs.count_costs`."""
    rows = [[name, x["parameters"], x["gflops"]] for name, x in costs.items()]
    headers = ["", "M parameters", f"GFLOPs, {settings.height}x{settings.width} pixels"]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f")


def results_page(results: Results, settings: Settings) -> str:
    """Format cases, ratios and shares of one measurement."""
    seconds = results.seconds()
    rows = []
    for name in sorted(seconds, key=_order(results)):
        values = [x[name] for x in results.rounds if name in x]
        rows.append(
            [
                _title(name),
                seconds[name],
                f"{min(values):.3g} to {max(values):.3g}" if values else None,
                results.batch / seconds[name],
                results.memory[name] / 2**20 if name in results.memory else None,
            ]
        )
    headers = ["", "seconds", "range", "images / s", "peak memory, MiB"]
    cases = tabulate(rows, headers, floatfmt=("", ".4f", "", ".2f", ".0f"))
    ratios = [
        [RATIOS[name], f"{value:+.1%}" if "overhead" in name else f"{value:.3f}"]
        for name, value in results.ratios().items()
        if value is not None
    ]
    shares = [[_title(name), f"{value:.1%}"] for name, value in results.shares().items()]
    return "\n\n".join(
        [
            f"{_setting(settings)}; medians of {len(results.rounds)} rounds",
            cases,
            tabulate(ratios, ["ratio", ""], disable_numparse=True, colalign=("left", "right")),
            tabulate(
                shares,
                ["share of the time that AID adds to a plain step", ""],
                disable_numparse=True,
                colalign=("left", "right"),
            ),
        ]
    )


def sweep_page(sweeps: list[Sweep], settings: Settings) -> str:
    """Format one table per sweep."""
    tables = [_setting(settings)]
    for sweep in sweeps:
        names = list(sweep.seconds)
        rows = [
            [label, *(sweep.seconds[name][i] for name in names), sweep.aid_to_floor[i]]
            for i, label in enumerate(sweep.labels)
        ]
        headers = [sweep.title, *(name.replace("_", " ") for name in names), "aid / floor"]
        tables.append(tabulate(rows, headers, floatfmt=".4f", colalign=("right",) * len(headers)))
    return "\n\n".join(tables)


def _setting(settings: Settings) -> str:
    facts = settings.as_dict()
    where = facts["gpu"] or f"CPU, {counted(facts['threads'], 'thread')}"
    return (
        f"{settings.config_file} {' '.join(settings.opts)}".strip()
        + f": {counted(settings.batch, 'image')} of {settings.height}x{settings.width}, "
        f"{counted(settings.instances, 'instance')} each; {where}, {facts['precision']}; "
        f"torch {facts['torch']}"
    )


def _title(name: str) -> str:
    return TITLES.get(name, name)


def _order(results: Results) -> Callable[[str], int]:
    """Sort key of case names: components first, then the steps, each after its floor."""
    parts = [STUDENT, TEACHER, TEACHER_HEADS, INSTANCE_LOSSES, WEIGHTING, *results.losses]
    order = [*parts, *(name for name in TITLES if name not in parts)]
    return order.index
