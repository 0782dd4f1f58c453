"""Class maps: parsing of their entries, and errors."""

import pytest

from aid.modeling.class_map import ClassMap, same_names
from aid.utils.errors import AIDError

TEACHER = ("person", "bicycle", "car", "bus", "truck")


def read(entries, teacher=TEACHER, student=("Vehicle", "Person", "Cyclist")):
    return ClassMap.from_entries(entries, teacher, student, "TEACHER.CLASS_MAP")


def test_classes_are_merged_and_unmapped_ones_are_background():
    class_map = read(["car: Vehicle", "truck : Vehicle", "BUS:vehicle", "person: Person"])
    assert class_map.targets == (1, None, 0, 0, 0)
    assert class_map.groups == [[2, 3, 4], [0], []]
    assert class_map.background == [1] and class_map.unknown == [2]
    assert not class_map.is_identity
    assert str(class_map) == (
        "car + bus + truck as Vehicle, person as Person; without a counterpart in the teacher: "
        "Cyclist; of its classes 1 of 5 are background"
    )


def test_by_name_maps_equal_names_unless_an_entry_overrides():
    assert read(["by name"]).targets == (1, None, None, None, None)
    later = read(["by name", "person: Cyclist", "car: Vehicle"])
    assert later.targets == read(["person: Cyclist", "car: Vehicle", "by name"]).targets
    assert later.targets == (2, None, 0, None, None)
    assert read(["by name"], TEACHER, TEACHER).is_identity
    assert not read(["by name"], TEACHER, TEACHER[:3]).is_identity
    assert not read(["by name"], TEACHER, TEACHER[::-1]).is_identity


def test_case_is_ignored_if_the_match_is_unique():
    assert same_names(["car", "dog"], ["Dog", "CAR"]) == {0: 1, 1: 0}
    assert same_names(["car", "Car"], ["CAR"]) == {}
    assert same_names(["car", "Car"], ["Car"]) == {1: 0}
    assert same_names(["car"], ["Car", "CAR"]) == {}
    assert same_names(["car"], ["Car", "car"]) == {0: 1}


def test_classes_without_names_are_mapped_by_id():
    assert read(["2: Person"], 4).targets == (None, None, 1, None)
    assert read(["car: 1"], TEACHER, 2).targets == (None, None, 1, None, None)
    assert read(["1: 0"], 2, 1).targets == (None, 0)


def test_class_names_may_have_colons():
    entries = ["car:red: vehicle: red", "car: vehicle"]
    teacher, student = ("car", "car:red", "car:blue"), ("vehicle", "vehicle: red")
    assert ClassMap.from_entries(entries, teacher, student).targets == (0, 1, None)
    twice = ["car:red: vehicle", "car:red:vehicle: red"]
    with pytest.raises(AIDError, match="maps car:red twice, to vehicle and to vehicle: red"):
        ClassMap.from_entries(twice, teacher, student)


@pytest.mark.parametrize(
    "entries, teacher, message",
    [
        (["cra: Vehicle"], TEACHER, "the teacher has no class 'cra'; it has person, .*, truck$"),
        (["car: Vehicel"], TEACHER, "the student has no class 'Vehicel'; it has Vehicle, Person, "),
        (["2: Vehicle"], TEACHER, "the teacher has no class '2'"),
        (["car: Person", "car: Vehicle"], TEACHER, "maps car twice, to Person and to Vehicle"),
        (["car: Person", "Car: Person"], TEACHER, "maps car twice"),
        (["car"], TEACHER, """'car' is no entry: write "teacher class: student class", in q"""),
        ([{"car": "Vehicle"}], TEACHER, "{'car': 'Vehicle'} is no entry"),
        (["by name"], ("dog", "cat"), "no class: the teacher's classes dog, cat and the student's"),
        (["by name"], 3, "names of the teacher's classes are not known here: write their numbers"),
        (["car: Vehicle"], 2, r"no class 'car'; it has 0, 1 \(names are not known here\)"),
        (["2: Vehicle"], 2, "no class '2'; it has 0, 1"),
        (["car: Vehicle"], ("car", "Car", "CAR"), None),
        (["cAr: Vehicle"], ("car", "Car", "CAR"), "no class 'cAr'"),
    ],
)
def test_invalid_map_is_a_one_line_error(entries, teacher, message):
    if message is None:
        assert read(entries, teacher).groups[0] == [0]
        return
    with pytest.raises(AIDError, match=f"^TEACHER.CLASS_MAP.*{message}") as error:
        read(entries, teacher)
    assert "\n" not in str(error.value)
