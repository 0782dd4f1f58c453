"""Strict parser and writer of KITTI's text files."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aid.data.kitti_labels import KITTIObject, parse_label_file, write_result_file
from aid.utils.errors import AIDError

REST = "-1.57 10.00 20.00 50.00 60.00 1.50 1.60 3.90 1.00 1.50 20.00 -1.50"
CAR = f"Car 0.25 1 {REST}"


def test_label_line_is_parsed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(f"{CAR}\ncyclist 0 0 {REST}\n\n")
    car, cyclist = parse_label_file(str(path))
    assert (car.type, car.truncated, car.occluded, car.line) == ("Car", 0.25, 1, 0)
    assert car.bbox == (10.0, 20.0, 50.0, 60.0) and car.score is None
    assert (cyclist.type, cyclist.line) == ("Cyclist", 1)


def test_result_line_has_a_score_and_ignores_truncation(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(f"Car 7 9 {REST} 0.75\n")
    assert parse_label_file(str(path), with_score=True) == [
        KITTIObject("Car", -1, -1, (10.0, 20.0, 50.0, 60.0), 0.75, 0)
    ]


def test_empty_file_has_no_objects(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert parse_label_file(str(tmp_path / "a.txt")) == []


def test_windows_line_endings_are_accepted(tmp_path):
    (tmp_path / "a.txt").write_bytes(f"{CAR}\r\n{CAR}\r\n".encode())
    assert [x.line for x in parse_label_file(str(tmp_path / "a.txt"))] == [0, 1]


@pytest.mark.parametrize(
    "line, message",
    [
        (CAR[: CAR.rindex(" ")], "14 fields where KITTI has 15"),
        (f"{CAR} 0.9", "16 fields where KITTI has 15 .results have a score"),
        (CAR.replace("Car", "Cra"), "unknown type 'Cra'.*Misc"),
        (CAR.replace("10.00", "ten"), "field 5 is 'ten', not a finite number"),
        (CAR.replace("10.00", "1_0"), "field 5 is '1_0', not a finite number"),
        (CAR.replace("-1.57", "nan"), "field 4 is 'nan'"),
        (CAR.replace("3.90", "inf"), "field 11 is 'inf'"),
        (CAR.replace("50.00", "10.00"), "box 10.00 20.00 10.00 60.00 is empty"),
        (CAR.replace("60.00", "-60.00"), "box 10.00 20.00 50.00 -60.00 is empty"),
        (CAR.replace("0.25", "25"), "truncation 25 is neither"),
        (CAR.replace(" 1 ", " 4 ", 1), "occlusion 4 is not one of"),
        ("", "0 fields"),
    ],
)
def test_error_names_a_malformed_label_line(tmp_path, line, message):
    path = tmp_path / "000007.txt"
    path.write_text(f"{CAR}\n{line}\n{CAR}\n")
    with pytest.raises(AIDError, match=rf"000007.txt, line 2: .*{message}"):
        parse_label_file(str(path))


@pytest.mark.parametrize(
    "line, message",
    [
        (CAR, "15 fields where KITTI has 16 .results have a score"),
        (f"{CAR} nan", "field 16 is 'nan'"),
        (f"{CAR.replace('50.00', '9.00')} 0.5", "box 10.00 20.00 9.00 60.00 is inverted"),
    ],
)
def test_error_names_a_malformed_result_line(tmp_path, line, message):
    path = tmp_path / "000007.txt"
    path.write_text(f"{CAR} 0.5\n{line}\n")
    with pytest.raises(AIDError, match=rf"000007.txt, line 2: .*{message}"):
        parse_label_file(str(path), with_score=True)


def test_binary_label_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AIDError, match="a.txt cannot be read as text"):
        parse_label_file(str(tmp_path / "a.txt"))


def test_written_results_are_read_back(tmp_path):
    path = str(tmp_path / "a.txt")
    objects = [
        KITTIObject("Car", -1, -1, (0.1, 1 / 3, 99.99999, 1e2), 0.123456789, 0),
        KITTIObject("Pedestrian", -1, -1, (1e-7, 2.0, 3.0, 4.0), 1e-12, 1),
    ]
    write_result_file(path, objects)
    assert parse_label_file(path, with_score=True) == objects
    with open(path) as f:
        first = f.readline().split()
    assert len(first) == 16
    assert first[:4] == ["Car", "-1", "-1", "-10"]
    assert first[8:15] == ["-1", "-1", "-1", "-1000", "-1000", "-1000", "-10"]


# Text that passes the first checks: the right number of fields, mostly valid.
FIELDS = st.sampled_from(
    ["Car", "van", "DontCare", "0", "1", "-1", "0.5", "50", "nan", "1e999", "x"]
)
LINES = st.lists(FIELDS | st.text(max_size=4), min_size=14, max_size=17).map(" ".join)
TEXTS = st.lists(LINES | st.text(max_size=20), max_size=4).map("\n".join)


def test_byte_order_mark_is_no_part_of_a_type(tmp_path):
    (tmp_path / "a.txt").write_text(CAR, encoding="utf-8-sig")
    assert [x.type for x in parse_label_file(str(tmp_path / "a.txt"))] == ["Car"]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, with_score=st.booleans())
def test_any_text_is_parsed_or_its_line_is_named(text, with_score, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        objects = parse_label_file(str(path), with_score)
    except AIDError as error:
        assert re.match(rf"{path}, line \d+: .|label file {path} cannot be read", str(error))
        return
    for x in objects:
        assert x.bbox[0] <= x.bbox[2] and x.bbox[1] <= x.bbox[3]
        assert (x.score is not None) == with_score


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), with_score=st.booleans())
def test_any_bytes_are_parsed_or_refused(content, with_score, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    try:
        parse_label_file(str(tmp_path / "a.txt"), with_score)
    except AIDError as error:
        assert "a.txt" in str(error)
