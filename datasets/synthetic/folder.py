"""Folder of rendered scenes in KITTI's layout."""

import json
import math
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from tqdm import tqdm

from aid.utils.errors import AIDError

from .labels import LabelNoise, label_objects, spoil
from .render import render_scene
from .scene import CONDITIONS

__all__ = ["Settings", "find_rendered", "parse_conditions", "render_folder"]


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
