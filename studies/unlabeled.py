"""Parts of the rendered training scenes, with and without labels, for studies/unlabeled.yaml."""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.data import load_kitti
from aid.data.builtin import datasets_root
from aid.data.kitti_labels import CLASSES

# Number of scenes with labels; the other training scenes are used without.
NUM_LABELED = 60


def load(part: slice) -> list[dict]:
    """Load a part of the training scenes."""
    root = os.path.join(datasets_root(), "synthetic_kitti")
    return load_kitti(root, "train", "run it by `python tools/study.py studies/unlabeled.yaml`")[
        part
    ]


for name, part in (("few", slice(NUM_LABELED)), ("rest", slice(NUM_LABELED, None))):
    DatasetCatalog.register(f"synthetic_kitti_{name}", lambda part=part: load(part))
    MetadataCatalog.get(f"synthetic_kitti_{name}").thing_classes = list(CLASSES)
