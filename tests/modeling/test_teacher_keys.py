"""Keys that the teachers of a config do not read."""

import pytest

from aid.config import load_config
from aid.modeling.teacher import build_teacher
from aid.modeling.teacher_keys import DETECTION_FILE, DETECTOR, FEATURE_NETWORK, teacher_kinds
from aid.utils.errors import AIDError

FIRST = {
    DETECTOR: ["TEACHER.CONFIG_FILE", "t.yaml", "TEACHER.WEIGHTS", "t.pth"],
    FEATURE_NETWORK: ["TEACHER.CONFIG_FILE", "t.pt"],
    DETECTION_FILE: ["TEACHER.DETECTIONS", "t.json"],
}
SOURCES = {DETECTOR: "t.yaml", FEATURE_NETWORK: "t.pt"}
FEATURES = ["TEACHER.FEATURES", ["0: p3"]]
CLASS_MAP = ["TEACHER.CLASS_MAP", ["by name"]]


@pytest.fixture
def kinds(tiny_config):
    """A function (first teacher, opts, further teachers) -> kinds of the teachers."""

    def read(first, opts=(), further=()):
        more = ["TEACHER.MORE_CONFIG_FILES", [SOURCES[x] for x in further]]
        more += ["TEACHER.MORE_WEIGHTS", ["t.pth" for _ in further]]
        return teacher_kinds(load_config(tiny_config("faster_rcnn", [*FIRST[first], *more, *opts])))

    return read


@pytest.mark.parametrize("first", FIRST)
def test_kinds_of_several_teachers(first, kinds):
    assert kinds(first) == [first]
    assert kinds(first, (), list(SOURCES)) == [first, *SOURCES]


@pytest.mark.parametrize(
    "first, opts, message",
    [
        (DETECTOR, FEATURES, r"FEATURES is \['0: p3'\], which a detector \(.*FILE t.yaml\) do"),
        (DETECTOR, ["TEACHER.PIXEL_STD", [1.0, 1.0, 1.0]], "PIXEL_STD .* set it to .58.395, 57"),
        (DETECTOR, ["TEACHER.PIXEL_MEAN", [1.0, 1.0, 1.0]], "PIXEL_MEAN .* set it to .123.675"),
        (DETECTOR, ["TEACHER.FORMAT", "BGR"], "TEACHER.FORMAT is 'BGR', which a detector"),
        (FEATURE_NETWORK, CLASS_MAP, r"CLASS_MAP .* a network without heads .* set it to \[\]$"),
        (FEATURE_NETWORK, ["TEACHER.INHERIT", True], "INHERIT is True, which a .* to False$"),
        (FEATURE_NETWORK, ["TEACHER.EVAL_FIRST", True], "EVAL_FIRST .* to False$"),
        (FEATURE_NETWORK, ["TEACHER.CACHE", "features"], "CACHE is 'features', .* to ''$"),
        (FEATURE_NETWORK, ["TEACHER.COMPARE_BATCHES", 9], "COMPARE_BATCHES .* set it to 4$"),
        (FEATURE_NETWORK, ["UNLABELED.SHARE", 0.5], "UNLABELED.SHARE is 0.5, which a network"),
        (DETECTION_FILE, FIRST[DETECTOR][:2], "to '', and name further teachers in TEACHER.MO"),
        (DETECTION_FILE, FIRST[DETECTOR][2:], "WEIGHTS .* and name further teachers in TEACHER.M"),
        (DETECTION_FILE, CLASS_MAP, "and write the classes of the training set into the file$"),
        (DETECTION_FILE, FEATURES, r"which a file of detections \(TEACHER.DETECTIONS t.json\)"),
        (DETECTION_FILE, ["TEACHER.DEVICE", "cpu"], "DEVICE is 'cpu', which a file .* to ''$"),
        (DETECTION_FILE, ["TEACHER.PRECISION", "bfloat16"], "TEACHER.PRECISION is 'bfloat16'"),
        (DETECTION_FILE, ["TEACHER.INHERIT", True], "TEACHER.INHERIT is True"),
        (DETECTION_FILE, ["TEACHER.EVAL_FIRST", True], "TEACHER.EVAL_FIRST is True"),
        (DETECTION_FILE, ["TEACHER.COMPARE_BATCHES", 9], "TEACHER.COMPARE_BATCHES is 9"),
        (DETECTION_FILE, ["UNLABELED.SHARE", 0.5], "to 0.0, and register images without labels"),
        (DETECTION_FILE, ["UNLABELED.SCORE_THRESH", 0.3], "UNLABELED.SCORE_THRESH is 0.3"),
        (DETECTION_FILE, ["UNLABELED.ALPHA", 2.0], "UNLABELED.ALPHA is 2.0"),
    ],
)
def test_key_that_no_teacher_reads_is_refused(first, opts, message, kinds):
    with pytest.raises(AIDError, match=message) as error:
        kinds(first, opts)
    assert str(error.value).startswith(opts[0]) and "\n" not in str(error.value)


def test_key_that_one_of_several_teachers_reads_is_accepted(kinds):
    assert kinds(DETECTOR, FEATURES, [FEATURE_NETWORK])
    assert kinds(DETECTION_FILE, [*FEATURES, "TEACHER.DEVICE", "cpu"], [FEATURE_NETWORK])
    assert kinds(FEATURE_NETWORK, ["TEACHER.COMPARE_BATCHES", 9], [DETECTOR])
    for first, further in ((DETECTOR, [FEATURE_NETWORK]), (FEATURE_NETWORK, [DETECTOR])):
        with pytest.raises(AIDError, match=r"EVAL_FIRST is True, which a network .* t.pt\)"):
            kinds(first, ["TEACHER.EVAL_FIRST", True], further)
    with pytest.raises(AIDError, match="INHERIT is True, which a network"):
        kinds(FEATURE_NETWORK, ["TEACHER.INHERIT", True], [DETECTOR])


def test_map_of_a_further_teacher_without_classes_is_refused(kinds):
    maps = ["TEACHER.MORE_CLASS_MAPS", [["by name"], []]]
    assert kinds(DETECTOR, maps, [DETECTOR, FEATURE_NETWORK])
    with pytest.raises(AIDError, match=r"MAPS\[0\] is .*, which a network .*MORE_CONFIG_FILES\[0"):
        kinds(DETECTOR, maps, [FEATURE_NETWORK, DETECTOR])


@pytest.mark.parametrize("first", FIRST)
def test_key_that_turns_something_off_is_accepted(first, kinds):
    assert kinds(first, ["TEACHER.COMPARE_BATCHES", 0])


def test_detections_are_no_network(student_config):
    cfg = student_config("faster_rcnn")
    cfg.TEACHER.CONFIG_FILE, cfg.TEACHER.WEIGHTS, cfg.TEACHER.DETECTIONS = "", "", "found.json"
    with pytest.raises(AIDError, match="DETECTIONS found.json is a file of .* network is needed"):
        build_teacher(cfg)
