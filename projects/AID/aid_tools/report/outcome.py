"""Summary of the runs in a few sentences: gain and cost of distillation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from .cost import Cost
from .pairs import Comparison, choose, differences
from .parts import code
from .runs import Run, roles

__all__ = ["outcome"]

# Minimum gap between plain student and teacher, in AP: a fraction of a smaller gap would be noise.
MIN_GAP = 1.0
# Maximum number of differing config keys that are listed by name.
MAX_KEYS = 3


def outcome(runs: Sequence[Run], costs: Sequence[Cost]) -> list[str]:
    """Compare the best distilled student with a plain student and with its teacher.

    Differences are computed from the displayed numbers, which have one decimal.

    Args:
        runs: R runs with the same test set.
        costs: R costs of their detectors; ``seconds`` may be NaN.

    Returns:
        One sentence on the results at equal iterations; then, where they apply, sentences on a
        plain student of another training length, on teachers whose classes are mapped, on other
        differences between the runs, and on KITTI's official metric.
    """
    measures = _measures(runs)
    if not measures:
        return [
            f"No run has an AP: no run detected anything on {runs[0].test_set}, or it contains no "
            "objects."
        ]
    chosen = choose(runs, [cost.parameters for cost in costs], measures[0][1])
    (by, ap), *more = [(by, [round(x, 1) for x in exact]) for by, exact in measures]
    if chosen is None:
        return [_without_distillation(runs, costs, by, ap)]
    story = _Story(runs, costs, chosen)
    sentences = [_capitalize(f"{by}{story.subject} has {story.result(ap)}{story.time}.")]
    if chosen.other is not None:
        sentences.append(story.another_length(ap))
    elif chosen.peer is None:
        sentences.append(
            "The gain of distillation is unknown: the runs include no plain student with the same "
            "network and data."
        )
    sentences += [*story.mapped_teachers, *story.differences]
    name = _name(story.student)
    return sentences + [_capitalize(f"{by}{name} has {story.result(ap)}.") for by, ap in more]


def _measures(runs: Sequence[Run]) -> list[tuple[str, list[float]]]:
    """Metrics of all runs, each as a prefix of a sentence and the AP of each run."""
    measures = []
    coco = [run.metrics_at_end("bbox").get("AP") for run in runs]
    if None not in coco and not all(map(math.isnan, coco)):
        # Runs of earlier versions have NaN where nothing was detected.
        measures.append(("", [0.0 if math.isnan(x) else x for x in coco]))
    kitti = [_moderate(run) for run in runs]
    if all(kitti) and any(any(x) for x in kitti):
        classes = f", mean of {len(kitti[0])} classes" if len(kitti[0]) > 1 else ""
        by = f"by KITTI's official metric, moderate{classes}, "
        measures.append((by, [mean(x) for x in kitti]))
    return measures


def _mapped_result(teacher: Run) -> str:
    """AP of a teacher on its student's classes, and those of which it detects nothing."""
    (by, (ap,)), *_ = _measures([teacher]) or [("", (0.0,))]
    metrics = teacher.metrics_at_end("bbox").items()
    lost = [name.removeprefix("AP-") for name, x in metrics if name.startswith("AP-") and x == 0]
    end = f", with 0 for {', '.join(lost)}" if lost else ""
    return f"{by}{ap:.1f} AP on {teacher.test_set}{end}"


def _moderate(run: Run) -> list[float]:
    """KITTI's AP at moderate difficulty, for each class with objects of that difficulty."""
    metrics = run.metrics_at_end("kitti")
    start, end = "AP_R40-", "-moderate"
    names = [x[len(start) : -len(end)] for x in metrics if x.startswith(start) and x.endswith(end)]
    return [metrics[f"{start}{x}{end}"] for x in names if metrics[f"objects-{x}{end}"] > 0]


def _without_distillation(
    runs: Sequence[Run], costs: Sequence[Cost], by: str, ap: list[float]
) -> str:
    best = max(range(len(runs)), key=lambda i: ap[i])
    time = _join_time(costs[best])
    if len(runs) == 1:
        return _capitalize(
            f"{by}{_name(runs[best])}, trained without a teacher, has {ap[best]} AP{time}."
        )
    return _capitalize(
        f"{by}the best of {len(runs)} runs ({_name(runs[best])}), none of them distilled, has "
        f"{ap[best]} AP{time}."
    )


@dataclass(frozen=True)
class _Story:
    runs: Sequence[Run]
    costs: Sequence[Cost]
    chosen: Comparison

    @property
    def subject(self) -> str:
        name, number = _name(self.student), sum(run.is_distilled for run in self.runs)
        if number > 1:
            return f"the best of {number} distilled students ({name})"
        if self.chosen.teachers:
            return f"the student distilled from the teacher ({name})"
        return f"the distilled student ({name})"

    @property
    def student(self) -> Run:
        return self.runs[self.chosen.student]

    @property
    def teacher(self) -> int | None:
        """Index of the only teacher; None if there are several or it is not among the runs."""
        alone = len(self.student.teacher_weights) == len(self.chosen.teachers) == 1
        return self.chosen.teachers[0] if alone else None

    def result(self, ap: list[float]) -> str:
        """AP of student, plain student and teachers, and the gain of distillation."""
        own, peer = ap[self.chosen.student], self.chosen.peer
        parts = [f"{own} AP"]
        if peer is not None:
            several = self.chosen.num_peers > 1
            name = f" ({_name(self.runs[peer])})" if several else ""
            parts.append(f"the plain student{name} {ap[peer]}")
        if self.chosen.teachers:
            parts.append(
                f"{self._teachers()} {' and '.join(str(ap[i]) for i in self.chosen.teachers)}"
            )
        if peer is None:
            return ", ".join(parts)
        gain = f"{_gain(own - ap[peer])} at equal iterations"
        return f"{', '.join(parts)}: {gain}{self._share(own, ap)}"

    def _teachers(self) -> str:
        if len(self.chosen.teachers) > 1:
            return "the teachers"
        if self.teacher is None:
            return "one of its teachers"
        several = roles(list(self.runs)).count("teacher") > 1
        return "the teacher" + (f" ({_name(self.runs[self.teacher])})" if several else "")

    def _share(self, own: float, ap: list[float]) -> str:
        """Closed fraction of the gap between plain student and teacher; empty without a gap."""
        if self.teacher is None:
            return ""
        plain, best = ap[self.chosen.peer], ap[self.teacher]
        if not plain < own <= best or best - plain < MIN_GAP:
            return ""
        return f", {100 * (own - plain) / (best - plain):.0f} % of the gap to the teacher"

    @property
    def time(self) -> str:
        teacher = None if self.teacher is None else self.costs[self.teacher]
        return _join_time(self.costs[self.chosen.student], teacher)

    def another_length(self, ap: list[float]) -> str:
        """Sentence on the plain student of another training length."""
        run, student = self.runs[self.chosen.other], self.student
        plain, own = ap[self.chosen.other], ap[self.chosen.student]
        seconds = run.training_seconds, student.training_seconds
        steps, name = f"with {_lengths(run, student)}", _name(run)
        if self.chosen.equal_time:
            return (
                f"At equal training time ({_durations(*seconds)}) the plain student {name}, "
                f"{steps}, has {plain} AP: {_gain(own - plain)}."
            )
        end = f"the plain student {name} has {plain} AP, {_more(plain - own)} the distilled one"
        ratio = seconds[0] / seconds[1]
        if math.isnan(ratio):
            return _capitalize(f"{steps}, {end}; its training time was not measured.")
        return _capitalize(f"{steps} and {ratio:.2f} times the training time, {end}.")

    @property
    def mapped_teachers(self) -> list[str]:
        """Sentence for each teacher with classes of its own."""
        sentences, student = [], self.student
        maps = student.class_maps
        for number, class_map in enumerate(maps):
            if not class_map:
                continue
            name = f"teacher {number + 1}" if len(maps) > 1 else "the teacher"
            which = f"{name} of {_name(student)}, whose classes are mapped to the student's,"
            teacher = student.evaluated_teacher(number)
            result = f"an unknown AP on {student.test_set}: TEACHER.EVAL_FIRST measures it"
            if teacher is not None:
                result = _mapped_result(teacher)
            sentences.append(_capitalize(f"{which} has {result}."))
        return sentences

    @property
    def differences(self) -> list[str]:
        """Sentence for each plain student with further differences from the distilled one."""
        sentences = []
        for i in (self.chosen.peer, self.chosen.other):
            keys = [] if i is None else [code(x) for x in differences(self.runs[i], self.student)]
            if keys:
                more = len(keys) - MAX_KEYS
                end = f" and {more} more key{'s' if more > 1 else ''}" if more > 0 else ""
                sentences.append(
                    f"{_name(self.runs[i])} differs from {_name(self.student)} in more than the "
                    f"teacher: {', '.join(keys[:MAX_KEYS])}{end}."
                )
        return sentences


def _gain(difference: float) -> str:
    if round(difference, 1) == 0:
        return "distillation changes nothing"
    return f"distillation {'gains' if difference > 0 else 'loses'} {abs(difference):.1f} AP"


def _more(difference: float) -> str:
    if round(difference, 1) == 0:
        return "as much as"
    return f"{abs(difference):.1f} {'more' if difference > 0 else 'less'} than"


def _join_time(cost: Cost, teacher: Cost | None = None) -> str:
    if math.isnan(cost.seconds):
        return ""
    end = ""
    if teacher is not None and not math.isnan(teacher.seconds):
        end = f" (teacher: {_milliseconds(teacher.seconds)})"
    return f"; inference takes {_milliseconds(cost.seconds)} per image{end}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds < 0.01 else 0}f} ms"


def _lengths(run: Run, student: Run) -> str:
    """Numbers of iterations, and of images per iteration if they differ."""
    (steps, batch), (of_student, its_batch) = (
        (x.cfg.SOLVER.MAX_ITER, x.cfg.SOLVER.IMS_PER_BATCH) for x in (run, student)
    )
    if batch == its_batch:
        return f"{steps} iterations instead of {of_student}"
    return f"{steps} iterations of {batch} images instead of {of_student} of {its_batch}"


def _durations(*seconds: float) -> str:
    longest = max(seconds)
    unit, size = ("s", 1) if longest < 60 else ("min", 60) if longest < 6000 else ("h", 3600)
    return f"{' and '.join(f'{x / size:.1f}' for x in seconds)} {unit}"


def _name(run: Run) -> str:
    return code(run.name)


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
