"""Kinds of teachers, and the keys of a student's config that each kind reads."""

from detectron2.config import CfgNode

from ..config import changed_keys, default_config, get_value, is_network
from ..utils.errors import AIDError

__all__ = ["DETECTION_FILE", "DETECTOR", "FEATURE_NETWORK", "named", "teacher_kinds"]

DETECTOR = "a detector"
FEATURE_NETWORK = "a network without heads"
DETECTION_FILE = "a file of detections"
NETWORKS = (DETECTOR, FEATURE_NETWORK)

# {key: (kinds that read it, teachers that must be of these kinds)}.
READERS = {
    "TEACHER.CONFIG_FILE": (NETWORKS, "first"),
    "TEACHER.WEIGHTS": (NETWORKS, "first"),
    "TEACHER.CLASS_MAP": ((DETECTOR,), "first"),
    "TEACHER.INHERIT": ((DETECTOR,), "first"),
    "TEACHER.FEATURES": ((FEATURE_NETWORK,), "any"),
    "TEACHER.PIXEL_MEAN": ((FEATURE_NETWORK,), "any"),
    "TEACHER.PIXEL_STD": ((FEATURE_NETWORK,), "any"),
    "TEACHER.FORMAT": ((FEATURE_NETWORK,), "any"),
    "TEACHER.DEVICE": (NETWORKS, "any"),
    "TEACHER.PRECISION": (NETWORKS, "any"),
    "TEACHER.CACHE": ((DETECTOR,), "all"),
    "TEACHER.CACHE_GIB": ((DETECTOR,), "all"),
    "TEACHER.EVAL_FIRST": ((DETECTOR,), "all"),
    "TEACHER.COMPARE_BATCHES": ((DETECTOR,), "any"),
    "UNLABELED.SHARE": ((DETECTOR,), "first"),
    "UNLABELED.SCORE_THRESH": ((DETECTOR,), "first"),
    "UNLABELED.ALPHA": ((DETECTOR,), "first"),
}
# {key: what to do in its place if the first teacher is a file of detections}.
INSTEAD = {
    "TEACHER.CONFIG_FILE": "name further teachers in TEACHER.MORE_CONFIG_FILES",
    "TEACHER.WEIGHTS": "name further teachers in TEACHER.MORE_CONFIG_FILES and MORE_WEIGHTS",
    "TEACHER.CLASS_MAP": "write the classes of the training set into the file",
    "UNLABELED.SHARE": "register images without labels with their detections as labels, by "
    "register_coco and its min_score",
}


def teacher_kinds(cfg: CfgNode) -> list[str]:
    """Kind of each teacher in a student's config: the first and those of TEACHER.MORE_*.

    Returns:
        DETECTOR, FEATURE_NETWORK or DETECTION_FILE for each teacher.

    Raises:
        AIDError: no config file is named; TEACHER.MORE_CONFIG_FILES and MORE_WEIGHTS differ in
            length, or are not strings; TEACHER.MORE_CLASS_MAPS has another length and is not empty;
            or a key is set that no teacher of these kinds reads.
    """
    files, weights = cfg.TEACHER.MORE_CONFIG_FILES, cfg.TEACHER.MORE_WEIGHTS
    if len(files) != len(weights) or not all(isinstance(x, str) for x in (*files, *weights)):
        raise AIDError(
            f"TEACHER.MORE_CONFIG_FILES is {list(files)}, TEACHER.MORE_WEIGHTS {list(weights)}: "
            "name a config file and weights for each further teacher"
        )
    maps = cfg.TEACHER.MORE_CLASS_MAPS
    if maps and (len(maps) != len(files) or any(isinstance(x, str) for x in maps)):
        raise AIDError(
            f"TEACHER.MORE_CLASS_MAPS is {list(maps)}: write one list of entries for each further "
            f"teacher, {len(files)} in all, [] for a teacher with the student's classes"
        )
    sources = [named(cfg, "CONFIG_FILE", "MORE_CONFIG_FILES", k) for k in range(1 + len(files))]
    if cfg.TEACHER.DETECTIONS:
        sources[0] = ("TEACHER.DETECTIONS", cfg.TEACHER.DETECTIONS)
    for key, source in sources:
        if not source:
            raise AIDError(f"{key} is empty: name the teacher's config file and its weights")
    kinds = [FEATURE_NETWORK if is_network(source) else DETECTOR for _, source in sources]
    if cfg.TEACHER.DETECTIONS:
        kinds[0] = DETECTION_FILE
    _check_keys(cfg, kinds, [f"{key} {source}" for key, source in sources])
    return kinds


def named(cfg: CfgNode, first: str, more: str, number: int) -> tuple[str, str]:
    """Full name and value of a key of TEACHER for the teacher of this number."""
    if number == 0:
        return f"TEACHER.{first}", cfg.TEACHER[first]
    return f"TEACHER.{more}[{number - 1}]", cfg.TEACHER[more][number - 1]


def _check_keys(cfg: CfgNode, kinds: list[str], names: list[str]) -> None:
    """Refuse keys that no teacher reads; 0, False and the like ask for nothing, and may be set.

    Args:
        kinds, names: of each teacher.
    """
    changed = changed_keys(cfg)
    for key, (readers, which) in READERS.items():
        reads = [kind in readers for kind in kinds]
        is_read = {"first": reads[0], "any": any(reads), "all": all(reads)}[which]
        if changed.get(key) and not is_read:
            k = reads.index(False)
            more = f", and {INSTEAD[key]}" if kinds[k] == DETECTION_FILE and key in INSTEAD else ""
            raise AIDError(
                f"{key} is {changed[key]!r}, which {kinds[k]} ({names[k]}) does not read: set it "
                f"to {get_value(default_config(), key)!r}{more}"
            )
    for k, entries in enumerate(cfg.TEACHER.MORE_CLASS_MAPS, start=1):
        if entries and kinds[k] != DETECTOR:
            raise AIDError(
                f"TEACHER.MORE_CLASS_MAPS[{k - 1}] is {entries!r}, which {kinds[k]} ({names[k]}) "
                "does not read: set it to []"
            )
