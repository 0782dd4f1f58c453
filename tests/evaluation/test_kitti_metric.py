"""KITTI's metric: known values, limits of its rules, and a literal reference."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aid.data.kitti_labels import KITTIObject
from aid.evaluation import as_dict, format_table, kitti_average_precision

pytestmark = pytest.mark.core

NAMES = {x.lower(): x for x in ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist")}
NAMES |= {x.lower(): x for x in ("Tram", "Misc", "DontCare")}


@pytest.fixture(scope="module")
def reference(load_script):
    return load_script("tests/evaluation/kitti_reference.py")


def label(kind="Car", x=0.0, y=0.0, width=50.0, height=50.0, truncated=0.0, occluded=0):
    return KITTIObject(kind, truncated, occluded, (x, y, x + width, y + height), None, 0)


def detection(kind="Car", x=0.0, y=0.0, width=50.0, height=50.0, score=0.5):
    return KITTIObject(kind, -1, -1, (x, y, x + width, y + height), score, 0)


def moderate(images, kind="Car"):
    return kitti_average_precision(images)[kind]["moderate"]


def precision_at_first(images, kind="Car"):
    """Precision in percent at recall position 0, the only position of a single object."""
    return 11 * moderate(images, kind).r11


@pytest.mark.parametrize(
    "num_objects, r40, r11",
    # The k-th object gives the k-th threshold: positions 0 to num_objects - 1 have one.
    [
        (1, 0.0, 100 / 11),
        (9, 20.0, 300 / 11),
        (40, 97.5, 1000 / 11),
        (41, 100, 100),
        (90, 100, 100),
    ],
)
def test_known_ap_of_perfect_detections(num_objects, r40, r11):
    images = [([label()], [detection(score=1 / (i + 1))]) for i in range(num_objects)]
    ap = moderate(images)
    assert (ap.r40, ap.r11, ap.num_valid) == pytest.approx((r40, r11, num_objects))
    table = " ".join(format_table(kitti_average_precision(images)).split())  # wrapped lines
    assert (f"Car moderate: {num_objects}" in table) == (r40 < 100)
    assert "there even a perfect detector stays below 100" in table  # of the other classes


def test_table_fits_a_terminal_and_has_no_ap_without_objects():
    lines = format_table(kitti_average_precision([([label()], [detection()])])).splitlines()
    assert max(map(len, lines)) <= 100
    cells = {tuple(x.strip() for x in line.split("|")[1:-1]) for line in lines}
    assert ("Car", "moderate", "0.00", "9.09", "1") in cells
    assert ("Cyclist", "hard", "-", "-", "0") in cells


def test_known_ap_of_half_wrong_detections():
    images = [([label()], [detection(score=0.5), detection(x=200, score=0.6)]) for _ in range(80)]
    ap = moderate(images)
    assert ap.r40 == pytest.approx(50)
    assert ap.precision == pytest.approx(41 * [0.5])


def test_ap_is_zero_without_objects_or_detections():
    for images in ([], [([], [])], [([], [detection()])], [([label()], [])]):
        result = as_dict(kitti_average_precision(images))
        assert list(result) == ["Car", "Pedestrian", "Cyclist"]
        for metrics in result.values():
            for name in ("AP_R40", "AP_R11"):
                assert metrics[name] == {"easy": 0.0, "moderate": 0.0, "hard": 0.0}


@pytest.mark.parametrize("kind, height, hit", [("Car", 35, 0), ("Car", 36, 100)])
def test_overlap_must_exceed_the_limit(kind, height, hit):
    """A height of 35 of 50 pixels is an IoU of exactly 0.7."""
    assert precision_at_first([([label(kind)], [detection(kind, height=height)])]) == pytest.approx(
        hit
    )


@pytest.mark.parametrize(
    "change, num_valid",
    [
        ({}, (1, 1, 1)),
        ({"height": 40.0}, (1, 1, 1)),
        ({"height": 39.9}, (0, 1, 1)),
        ({"height": 25.0}, (0, 1, 1)),
        ({"height": 24.9}, (0, 0, 0)),
        ({"occluded": 1}, (0, 1, 1)),
        ({"occluded": 2}, (0, 0, 1)),
        ({"occluded": 3}, (0, 0, 0)),
        ({"truncated": 0.15}, (1, 1, 1)),
        ({"truncated": 0.30}, (0, 1, 1)),
        ({"truncated": 0.50}, (0, 0, 1)),
        ({"truncated": 0.51}, (0, 0, 0)),
    ],
)
def test_valid_objects_at_each_difficulty(change, num_valid):
    result = kitti_average_precision([([label(**change)], [])])["Car"]
    assert tuple(x.num_valid for x in result.values()) == num_valid


@pytest.mark.parametrize(
    "kind, region, expected",
    [
        ("Car", label("Van", x=200), 100),
        ("Car", label("Truck", x=200), 50),
        ("Car", label("Pedestrian", x=200), 50),
        ("Pedestrian", label("Person_sitting", x=200), 100),
        ("Pedestrian", label("Van", x=200), 50),
        ("Car", label("Car", x=200, occluded=3), 100),
        ("Car", label("DontCare", x=190, y=-5, width=80, height=80), 100),
        ("Car", label("DontCare", x=210, width=80, height=80), 100),  # 80 % of the detection
        ("Car", label("DontCare", x=215, width=80, height=80), 50),  # 70 %, the limit
    ],
)
def test_detections_on_ignored_regions_are_not_errors(kind, region, expected):
    detections = [detection(kind, score=0.5), detection(kind, x=200, score=0.9)]
    assert precision_at_first([([label(kind), region], detections)], kind) == pytest.approx(
        expected
    )


def test_small_detections_are_ignored():
    small = detection(x=200, height=24.9, score=0.9)
    assert precision_at_first([([label()], [detection(), small])]) == pytest.approx(100)
    # A small detection of the wrong class may match an otherwise missed object.
    image = ([label(height=26.0)], [detection("Cyclist", height=24.0)])
    assert moderate([image]).r11 == 0


def assert_agrees(reference, images):
    """Compare both implementations on ``images`` in the format of kitti_reference.py."""
    objects = [
        (
            [
                KITTIObject(NAMES[kind.lower()], truncated, occluded, box, None, i)
                for i, (kind, truncated, occluded, box) in enumerate(labels)
            ],
            [
                KITTIObject(NAMES[kind.lower()], -1, -1, box, score, i)
                for i, (kind, box, score) in enumerate(detections)
            ],
        )
        for labels, detections in images
    ]
    expected, result = reference.evaluate(images), as_dict(kitti_average_precision(objects))
    for name, metrics in expected.items():
        for metric, values in metrics.items():
            assert result[name][metric] == pytest.approx(values, abs=1e-9), (name, metric)


@pytest.mark.parametrize("seed", range(12))
def test_metric_equals_the_reference(seed, reference, load_script):
    images = load_script("tests/evaluation/kitti_images.py")
    assert_agrees(reference, images.random_images(seed, (5, 20, 60)[seed % 3]))


# A coarse grid makes boxes coincide, overlaps equal the limits, and scores tie.
EDGES = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(2, 10), st.integers(2, 10))
BOXES = EDGES.map(lambda e: (e[0] * 5.0, e[1] * 5.0, (e[0] + e[2]) * 5.0, (e[1] + e[3]) * 5.0))
LABELS = st.tuples(
    st.sampled_from(["Car", "Car", "Van", "Pedestrian", "Person_sitting", "DontCare"]),
    st.sampled_from([0.0, 0.15, 0.3, 0.6]),
    st.integers(0, 3),
    BOXES,
)
DETECTIONS = st.tuples(
    st.sampled_from(["Car", "Car", "Pedestrian", "Cyclist", "Van"]),
    BOXES,
    st.sampled_from([0.2, 0.4, 0.6]),
)
IMAGES = st.tuples(st.lists(LABELS, max_size=5), st.lists(DETECTIONS, max_size=6))


@settings(max_examples=150, deadline=None)
@given(images=st.lists(IMAGES, max_size=4))
def test_metric_equals_the_reference_on_coinciding_boxes(images, reference):
    assert_agrees(reference, images)
