"""Maps from the classes of a teacher to those of its student."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..utils.errors import AIDError

__all__ = ["BY_NAME", "ClassMap", "same_names"]

# Entry of a class map that maps each class of the teacher to the student's class of the same name.
BY_NAME = "by name"


@dataclass(frozen=True)
class ClassMap:
    """Map from the classes of a teacher to those of its student.

    Attributes:
        teacher, student: names of the classes, in the order of their ids.
        targets: id of the student's class for each class of the teacher, or None for a class that
            is background to the student.
    """

    teacher: tuple[str, ...]
    student: tuple[str, ...]
    targets: tuple[int | None, ...]

    @classmethod
    def from_entries(
        cls,
        entries: Iterable[str],
        teacher: Sequence[str] | int,
        student: Sequence[str] | int,
        key: str = "class_map",
    ) -> "ClassMap":
        """Read a map from its entries.

        Args:
            entries: strings "teacher class: student class", or :data:`BY_NAME` for all classes
                with equal names. Other entries take precedence over the latter.
            teacher, student: names of the classes, or their number if the names are unknown;
                entries then have ids, from 0, instead of names.
            key: name of the entries in messages.

        Raises:
            AIDError: an entry is malformed, has an unknown class or maps a class of the teacher for
                the second time; :data:`BY_NAME` is given without names; or no class is mapped.
        """
        sides = {"teacher": _names(teacher), "student": _names(student)}
        by_name: dict[int, int] = {}
        explicit: dict[int, int] = {}
        for entry in entries:
            if entry == BY_NAME:
                for side, given in (("teacher", teacher), ("student", student)):
                    if isinstance(given, int):
                        raise AIDError(
                            f'{key} has "{BY_NAME}", but the names of the {side}\'s classes are '
                            "not known here: write their numbers, from 0, in place of names"
                        )
                by_name = same_names(sides["teacher"], sides["student"])
                continue
            source, target = _read(entry, sides, key)
            if source in explicit:
                first, second = (sides["student"][k] for k in (explicit[source], target))
                raise AIDError(
                    f"{key} maps {sides['teacher'][source]} twice, to {first} and to {second}: map "
                    "each class of the teacher once"
                )
            explicit[source] = target
        mapped = {**by_name, **explicit}
        if not mapped:
            teacher_names, student_names = (", ".join(names) for names in sides.values())
            raise AIDError(
                f"{key} maps no class: the teacher's classes {teacher_names} and the student's "
                f'{student_names} have no name in common: add entries "teacher class: student '
                'class"'
            )
        targets = tuple(mapped.get(i) for i in range(len(sides["teacher"])))
        return cls(tuple(sides["teacher"]), tuple(sides["student"]), targets)

    @property
    def groups(self) -> list[list[int]]:
        """Ids of the teacher's classes that are mapped to each class of the student."""
        pairs = list(enumerate(self.targets))
        return [[i for i, target in pairs if target == k] for k in range(len(self.student))]

    @property
    def background(self) -> list[int]:
        """Ids of the teacher's classes that are background to the student."""
        return [i for i, target in enumerate(self.targets) if target is None]

    @property
    def unknown(self) -> list[int]:
        """Ids of the student's classes without a counterpart in the teacher."""
        return [k for k, group in enumerate(self.groups) if not group]

    @property
    def is_identity(self) -> bool:
        """Whether all classes keep their ids."""
        return self.targets == tuple(range(len(self.student)))

    def __str__(self) -> str:
        known = [
            f"{' + '.join(self.teacher[i] for i in group)} as {self.student[k]}"
            for k, group in enumerate(self.groups)
            if group
        ]
        unknown = ", ".join(self.student[k] for k in self.unknown)
        return (
            f"{', '.join(known)}; without a counterpart in the teacher: {unknown or 'none'}; "
            f"of its classes {len(self.background)} of {len(self.teacher)} are background"
        )


def same_names(teacher: Sequence[str], student: Sequence[str]) -> dict[int, int]:
    """Ids {teacher's: student's} of the classes with equal names.

    Upper and lower case may differ if the match is unique on both sides.
    """
    pairs = {}
    for i, name in enumerate(teacher):
        alike = _alike(name, student)
        if name in student:
            pairs[i] = student.index(name)
        elif len(alike) == len(_alike(name, teacher)) == 1:
            pairs[i] = alike[0]
    return pairs


def _alike(name: str, names: Sequence[str]) -> list[int]:
    """Ids of the names that equal ``name`` apart from upper and lower case."""
    return [i for i, other in enumerate(names) if other.casefold() == name.casefold()]


def _names(classes: Sequence[str] | int) -> list[str]:
    return [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)


def _read(entry: object, sides: dict[str, list[str]], key: str) -> tuple[int, ...]:
    """Ids of the two classes of an entry."""
    if not isinstance(entry, str) or ":" not in entry:
        raise AIDError(
            f'{key}: {entry!r} is no entry: write "teacher class: student class", in quotes, or '
            f'"{BY_NAME}" for all classes with equal names'
        )
    parts = entry.split(":")
    pairs = [
        (":".join(parts[:i]).strip(), ":".join(parts[i:]).strip()) for i in range(1, len(parts))
    ]
    # Names may have colons, too; what fits no pair is reported for the first one.
    fitting = [x for x in pairs if x[0] in sides["teacher"] and x[1] in sides["student"]]
    ids = []
    for (side, names), name in zip(sides.items(), (fitting or pairs)[0], strict=True):
        matches = [names.index(name)] if name in names else _alike(name, names)
        if len(matches) != 1:
            unnamed = " (names are not known here)" if names == _names(len(names)) else ""
            raise AIDError(
                f"{key}: the {side} has no class {name!r}; it has {', '.join(names)}{unnamed}"
            )
        ids.append(matches[0])
    return tuple(ids)
