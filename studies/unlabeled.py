"""Parts of the rendered training scenes, with and without labels, for studies/unlabeled.yaml."""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.data import load_kitti
from aid.data.builtin import datasets_root
from aid.data.kitti_labels import CLASSES
from aid.utils.commands import script_path

# Number of scenes with labels; the other training scenes are used without.
NUM_LABELED = 60


def load(part: slice) -> list[dict]:
    """Load a part of the training scenes."""
    root = os.path.join(datasets_root(), "synthetic_kitti")
    study = " ".join(map(script_path, ("tools/study.py", "studies/unlabeled.yaml")))
    return load_kitti(root, "train", f"run it by `python {study}`")[part]


for name, part in (("few", slice(NUM_LABELED)), ("rest", slice(NUM_LABELED, None))):
    DatasetCatalog.register(f"synthetic_kitti_{name}", lambda part=part: load(part))
    MetadataCatalog.get(f"synthetic_kitti_{name}").thing_classes = list(CLASSES)
