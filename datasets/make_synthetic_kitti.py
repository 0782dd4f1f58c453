#!/usr/bin/env python3
"""Render labeled driving scenes in KITTI's folder and label format.

    python datasets/make_synthetic_kitti.py
    python datasets/make_synthetic_kitti.py --output data/night --conditions day=0.5 night=0.5
    python datasets/make_synthetic_kitti.py --wrong-class 0.1 --jitter 0.1 --missing 0.05

Label noise applies to the training split only; validation labels are correct. The side file
training/scenes.json holds, for each image, its condition, its missing labels and, for each line of
the label file, the visible share, the true type and box and the kind of label noise.
"""

import argparse
import json
import math
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from synthetic.labels import LabelNoise, label_objects, spoil
from synthetic.render import render_scene
from synthetic.scene import CONDITIONS
from tqdm import tqdm

from aid.data.builtin import datasets_root
from aid.utils.errors import AIDError, main_with_clear_errors

MIN_SIDE = 48


@dataclass(frozen=True)
class Settings:
    """Settings that determine the content of a rendered folder.

    Attributes:
        train, val: number of scenes.
        height, width: image size in pixels.
        seed: seed of all random numbers.
        conditions: share of each condition.
        noise: label noise of the training split.
    """

    train: int
    val: int
    height: int
    width: int
    seed: int
    conditions: dict[str, float]
    noise: LabelNoise


def render_one(settings: Settings, index: int, training: str) -> dict:
    """Render scene ``index`` into the folder ``training``; returns its entry in the side file."""
    # Separate streams, so that label noise and conditions do not change the scene geometry.
    streams = [np.random.default_rng([settings.seed, index, stream]) for stream in range(3)]
    shares = np.array([settings.conditions.get(name, 0.0) for name in CONDITIONS])
    condition = CONDITIONS[int(np.searchsorted(np.cumsum(shares), streams[0].random(), "right"))]
    height, width = settings.height, settings.width
    image, camera, seen = render_scene(streams[1], height, width, condition)
    noise = settings.noise if index < settings.train else LabelNoise()
    labels, missing = spoil(
        label_objects(seen, camera, height, width), noise, streams[2], height, width
    )
    name = f"{index:06}"
    if not cv2.imwrite(os.path.join(training, "image_2", f"{name}.png"), image[..., ::-1]):
        raise OSError(f"{training}/image_2/{name}.png cannot be written")
    with open(os.path.join(training, "label_2", f"{name}.txt"), "w") as f:
        f.writelines(f"{label.line}\n" for label in labels)
    return {
        "condition": condition,
        "objects": [label.record for label in labels],
        "missing": [label.record for label in missing],
    }


def render_folder(settings: Settings, output: str, workers: int) -> None:
    """Render all scenes; the folder gets its final name when it is complete."""
    part = f"{output.rstrip(os.sep)}.part"
    shutil.rmtree(part, ignore_errors=True)  # of an interrupted call
    training = os.path.join(part, "training")
    for folder in ("training/image_2", "training/label_2", "ImageSets"):
        os.makedirs(os.path.join(part, folder))
    total = settings.train + settings.val
    names = [f"{index:06}" for index in range(total)]
    with ProcessPoolExecutor(workers) as pool:
        entries = pool.map(
            render_one, [settings] * total, range(total), [training] * total, chunksize=8
        )
        scenes = list(tqdm(entries, total=total, desc="Rendering", unit="scene"))
    splits = {"train": names[: settings.train], "val": names[settings.train :], "trainval": names}
    for split, members in splits.items():
        with open(os.path.join(part, "ImageSets", f"{split}.txt"), "w") as f:
            f.writelines(f"{name}\n" for name in members)
    with open(os.path.join(training, "scenes.json"), "w") as f:
        json.dump(
            {"settings": asdict(settings), "scenes": dict(zip(names, scenes, strict=True))}, f
        )
    shutil.rmtree(output, ignore_errors=True)
    os.replace(part, output)


def find_rendered(output: str, settings: Settings, force: bool) -> bool:
    """Whether ``output`` already holds the scenes of ``settings``.

    Raises:
        AIDError: the folder holds scenes with other settings and ``force`` is off, or it was not
            rendered by this script.
    """
    if not os.path.exists(output):
        return False
    side_file = os.path.join(output, "training", "scenes.json")
    if not os.path.isfile(side_file):
        raise AIDError(f"{output} exists and holds no rendered scenes: choose another --output")
    if force:
        return False
    try:
        with open(side_file) as f:
            existing = json.load(f)["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AIDError(f"{side_file} is damaged: delete {output} and render it again") from error
    expected = asdict(settings)
    different = [key for key in expected if existing.get(key) != expected[key]]
    if different:
        raise AIDError(
            f"{output} holds scenes with other settings ({', '.join(different)}): --force renders "
            "them again, --output keeps them"
        )
    return True


def parse_conditions(items: list[str]) -> dict[str, float]:
    """Parse condition shares such as ``["day=0.7", "fog=0.3"]``, and normalize their sum to 1.

    Raises:
        AIDError: a condition is unknown, or a share is not a finite number of at least 0.
    """
    shares = {}
    for item in items:
        name, _, share = item.partition("=")
        try:
            shares[name] = float(share or "nan")
        except ValueError:
            shares[name] = math.nan
        if name not in CONDITIONS or not 0 <= shares[name] < math.inf:
            raise AIDError(
                f"--conditions {item}: write {', '.join(f'{c}=SHARE' for c in CONDITIONS)} with "
                "shares of 0 or more"
            )
    total = sum(shares.values())
    if not total:
        raise AIDError("--conditions: all shares are 0")
    return {name: share / total for name, share in shares.items()}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = os.path.join(datasets_root(), "synthetic_kitti")
    parser.add_argument("--output", default=root, help="output folder (default: %(default)s)")
    parser.add_argument("--train", type=int, default=600, metavar="N", help="default: %(default)s")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--height", type=int, default=96, metavar="PIXELS", help="default: 96")
    parser.add_argument("--width", type=int, default=320, metavar="PIXELS", help="default: 320")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--conditions",
        nargs="+",
        default=["day=1"],
        metavar="NAME=SHARE",
        help="shares of " + ", ".join(CONDITIONS) + " (default: day=1)",
    )
    noise = parser.add_argument_group(
        "label noise", "shares of the training objects, from 0 to 1; default: 0"
    )
    for option, help in (
        ("--wrong-class", "objects with another of the three classes"),
        ("--jitter", "objects with a box shifted by a quarter or more of its size"),
        ("--missing", "objects without a label"),
        ("--cyclist-as-pedestrian", "cyclists labeled as pedestrians"),
    ):
        noise.add_argument(option, type=float, default=0.0, metavar="SHARE", help=help)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="number of processes"
    )
    parser.add_argument("--force", action="store_true", help="replace existing scenes")
    return parser.parse_args(argv)


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    shares = (args.wrong_class, args.jitter, args.missing)
    noise = LabelNoise(*shares, args.cyclist_as_pedestrian)
    if not (min(shares) >= 0 and sum(shares) <= 1 and 0 <= args.cyclist_as_pedestrian <= 1):
        raise AIDError(
            "--wrong-class, --jitter and --missing must be from 0 to 1, and so must their sum and "
            "--cyclist-as-pedestrian"
        )
    if min(args.train, args.val, args.workers) < 1 or args.seed < 0:
        raise AIDError("--train, --val and --workers must be at least 1, --seed at least 0")
    if min(args.height, args.width) < MIN_SIDE:
        raise AIDError(f"--height and --width must be at least {MIN_SIDE}")
    if not args.output:
        raise AIDError("--output is empty: name an output folder")
    settings = Settings(
        args.train, args.val, args.height, args.width, args.seed,
        parse_conditions(args.conditions), noise,
    )  # fmt: skip
    if find_rendered(args.output, settings, args.force):
        print(f"{args.output}: scenes with these settings exist and are kept")
        return
    try:
        render_folder(settings, args.output, args.workers)
    except OSError as error:
        raise AIDError(f"--output {args.output} cannot be written: {error}") from error
    print(f"{args.output}: {args.train} scenes for training, {args.val} for validation")


if __name__ == "__main__":
    main()
