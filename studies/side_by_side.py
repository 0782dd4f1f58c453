#!/usr/bin/env python3
"""Compare the cost of distillation losses with that of the same methods as others compute them.

    python studies/side_by_side.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml \\
        --size 370x1242 --json output/side_by_side.json

Every row compares two training steps with the same student, teacher, images and boxes: one of this
project, and one of side_by_side_losses.py. See docs/performance.md for the measurement.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import add_config_file, add_device, add_json, add_overrides, make_parser
from aid_tools.command import command

# Keys of the losses' papers, where they differ from this project's defaults.
PAPER = ["DISTILLATION.STANDARDIZE", "False", "DISTILLATION.SCALE", "sum"]
AID_PAPER = [*PAPER, "DISTILLATION.ADAPT_EQUAL_WIDTHS", "True"]
AID_PAPER += ["DISTILLATION.NON_LOCAL.TRAIN_TEACHER", "True"]
# {title of a step: (names of its losses, keys)}
STEPS = {
    "AG + NL": (["AttentionGuidedLoss", "NonLocalLoss"], AID_PAPER),
    "AG + NL, all pairs": (["OriginalAttentionGuidedLoss", "OriginalNonLocalLoss"], AID_PAPER),
    "FGD": (["FGDLoss"], PAPER),
    "FGD as in MMRazor": (["OriginalFGDLoss"], PAPER),
    "PKD": (["PKDLoss"], []),
    "PKD as in MMRazor": (["OriginalPKDLoss"], []),
    "ICD": (["ICDLoss"], []),
}
# Steps with the losses of another one: AID by instance, and one that runs backbone and heads of the
# teacher again, for its losses D.
BY_INSTANCE = "AG + NL, AID by instance"
TWO_PASSES = "AG + NL, all pairs, second pass of the teacher for D"
STEPS |= {BY_INSTANCE: STEPS["AG + NL"], TWO_PASSES: STEPS["AG + NL, all pairs"]}
# Added to the title of a step for its losses alone.
LOSSES = ", losses"
ROWS = [
    ("AG + NL", "AG + NL, all pairs"),
    (BY_INSTANCE, TWO_PASSES),
    ("FGD", "FGD as in MMRazor"),
    ("PKD", "PKD as in MMRazor"),
    ("PKD", "ICD"),
]


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config_file(parser, "config of a student with a teacher")
    add("--size", default="370x1242", metavar="HxW", help="of the images (default: %(default)s)")
    add("--batch", type=int, default=2, metavar="N", help="images per step (default: %(default)s)")
    add("--instances", type=int, default=10, metavar="N", help="per image (default: %(default)s)")
    add_device(parser, "cpu")
    add("--threads", type=int, metavar="N", help="number of CPU threads (default: torch's choice)")
    add(
        "--repeat",
        type=int,
        default=10,
        metavar="N",
        help="rounds after the warm-up (default: %(default)s)",
    )
    add("--no-memory", action="store_true", help="do not measure memory")
    add_json(parser)
    add_overrides(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid.utils.files import check_writable
    from aid_tools.benchmark import Settings, parse_size
    from aid_tools.files import write_json

    if args.json:
        check_writable(args.json)
    height, width = parse_size(args.size)
    names = ("config_file", "batch", "instances", "device", "threads")
    common = {name: getattr(args, name) for name in names} | {"height": height, "width": width}
    settings = {
        step: Settings(
            **common,
            opts=("DISTILLATION.LOSSES", str(losses), *keys, *args.opts),
            register=str(Path(__file__).with_name("side_by_side_losses.py")),
        )
        for step, (losses, keys) in STEPS.items()
    }
    seconds, memory = measure(settings, args.repeat, not args.no_memory)
    rows = [compared(ours, other, seconds, memory) for ours, other in ROWS]
    print(table(rows))
    if args.json:
        setup = Settings(**common, opts=tuple(args.opts)).as_dict()
        write_json(args.json, {"rows": rows, "seconds": seconds, "setup": setup}, "--json")


def measure(
    settings: dict, repeat: int, with_memory: bool
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Time steps in one process, in alternation, and measure the memory of each in its own.

    Args:
        settings: {step: settings with its losses}.
        repeat: number of rounds.
        with_memory: whether to measure memory, if this system supports it.

    Returns:
        {step, or step and LOSSES: seconds in each round}, and {step: peak memory in bytes}.
    """
    import gc

    import torch

    from aid_tools.benchmark.cases import AID, PLAIN_DISTILLATION
    from aid_tools.benchmark.measure import random_teacher
    from aid_tools.benchmark.memory import can_measure, measure_memory

    steps = dict.fromkeys(step for row in ROWS for step in row)  # adjacent where compared
    kinds = {step: AID if step == BY_INSTANCE else PLAIN_DISTILLATION for step in steps}
    settings = {step: settings[step] for step in steps}
    some = next(iter(settings.values()))
    with random_teacher(some) as (cfg, batch):
        weights = cfg.TEACHER.WEIGHTS
        rounds = time_steps(settings, kinds, weights, batch, repeat)
        gc.collect()  # for the processes that measure memory
        peaks = {}
        if with_memory and can_measure(torch.device(some.device)):
            # A second pass of the teacher before a step keeps less than the step itself.
            peaks = {
                step: measure_memory(settings[step], weights, (kind,))[kind]
                for step, kind in kinds.items()
            }
    return {name: [x[name] for x in rounds] for name in rounds[0]}, peaks


def time_steps(
    settings: dict,
    kinds: dict[str, str],
    teacher_weights: str,
    batch: list[dict],
    repeat: int,
) -> list[dict[str, float]]:
    """Seconds of every step, and of its losses, in each round; see :func:`measure`."""
    from aid_tools.benchmark.cases import TEACHER, TEACHER_HEADS, make_case, make_replays
    from aid_tools.benchmark.nets import Nets
    from aid_tools.benchmark.timing import time_rounds

    nets = {}
    for own in dict.fromkeys(settings.values()):
        cfg = own.apply()
        cfg.TEACHER.WEIGHTS = teacher_weights
        nets[own] = Nets(cfg, batch[:1])
        nets[own].teacher = next(iter(nets.values())).teacher

    def together(parts: Iterable[Callable]) -> Callable:
        parts = list(parts)
        return lambda: [run() for run in parts]

    cases = {}
    for step, kind in kinds.items():
        own = nets[settings[step]]
        whole = (TEACHER, TEACHER_HEADS, kind) if step == TWO_PASSES else (kind,)
        cases[step] = together(make_case(x, own, batch) for x in whole)
        replays = make_replays(own, batch)
        cases[step + LOSSES] = together(replays[x] for x in own.cfg.DISTILLATION.LOSSES)
    return time_rounds(cases, own.device, seed=own.cfg.SEED, repeat=repeat)


def compared(
    ours: str, other: str, seconds: dict[str, list[float]], memory: dict[str, int]
) -> dict[str, object]:
    """Compare two steps: medians over the rounds, and medians of the ratios within a round.

    Args:
        ours, other: titles of the steps.
        seconds, memory: see :func:`measure`.
    """
    row: dict[str, object] = {"steps": [ours, other]}
    for name, end in (("step", ""), ("losses", LOSSES)):
        pair = [seconds[x + end] for x in (ours, other)]
        row[f"{name}_seconds"] = list(map(median, pair))
        row[f"{name}_ratio"] = median(a / b for a, b in zip(*pair, strict=True))
    if memory:
        row["memory_mib"] = [memory[x] / 2**20 for x in (ours, other)]
        row["memory_ratio"] = memory[ours] / memory[other]
    return row


def table(rows: list[dict]) -> str:
    """Format rows of :func:`compared` in Markdown."""
    from tabulate import tabulate

    columns = {"step": "seconds", "losses": "seconds", "memory": "mib"}
    lines = []
    for row in rows:
        line = list(row["steps"])
        for name, unit in columns.items():
            if f"{name}_ratio" in row:
                line += [", ".join(f"{x:.4g}" for x in row[f"{name}_{unit}"])]
                line += [f"{row[f'{name}_ratio']:.2f}"]
        lines.append(line)
    headers = ["ours", "other", "step, s", "ratio", "losses alone, s", "ratio"]
    headers += ["peak, MiB", "ratio"] * ("memory_ratio" in rows[0])
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()
