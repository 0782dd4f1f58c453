"""Summary of the runs in a few sentences: gain and cost of distillation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import mean

from aid.utils.text import counted

from ..cost import Cost
from ..paired_difference import paired_difference
from .pairs import Comparison, Setting, choose, differences, settings_of
from .parts import code
from .runs import Run, roles

__all__ = ["doubt_about_labels", "outcome", "plain_student"]

# Minimum gap between plain student and teacher, in AP: a fraction of a smaller gap would be noise.
MIN_GAP = 1.0
# {seed: AP} of the runs of a setting.
APBySeed = dict[int, float]
# Maximum number of differing config keys that are listed by name.
MAX_KEYS = 3


def outcome(runs: Sequence[Run], costs: Sequence[Cost]) -> list[str]:
    """Compare the best distilled student with a plain student and with its teacher.

    Runs that differ in their seed only are one student, with the mean over its seeds. Differences
    of single runs are computed from the displayed numbers, which have one decimal.

    Args:
        runs: R runs with the same test set.
        costs: R costs of their detectors; ``seconds`` may be NaN.

    Returns:
        One sentence on the results at equal iterations; then, where they apply, sentences on
        teachers that are no better than the plain student, on a plain student of another training
        length, on teachers whose classes are mapped, on other differences between the runs, and on
        KITTI's official metric.
    """
    settings, costs = _settings(runs, costs)
    measures = _measures(settings)
    if not measures:
        return [
            f"No run has an AP: no run detected anything on {runs[0].test_set}, or it contains no "
            "objects."
        ]
    (by, ap), *more = measures
    chosen = _choose(settings, costs, ap)
    if chosen is None:
        return [_without_distillation(settings, costs, by, ap)]
    story = _Story(settings, costs, chosen)
    sentences = [_capitalize(f"{by}{story.subject} has {story.result(ap)}{story.time}.")]
    if doubt := story.doubt(ap, "judge the gain"):
        sentences.append(doubt)
    if chosen.other is not None:
        sentences.append(story.another_length(ap))
    elif chosen.peer is None:
        sentences.append(
            "The gain of distillation is unknown: the runs include no plain student with the same "
            "network and data."
        )
    sentences += [*story.mapped_teachers, *story.differences]
    name = code(settings[chosen.student].name)
    return sentences + [_capitalize(f"{by}{name} has {story.result(ap)}.") for by, ap in more]


def plain_student(runs: Sequence[Run], costs: Sequence[Cost]) -> Setting | None:
    """Plain student that :func:`outcome` compares with at equal iterations; None without one."""
    settings, costs = _settings(runs, costs)
    measures = _measures(settings)
    chosen = _choose(settings, costs, measures[0][1]) if measures else None
    return None if chosen is None or chosen.peer is None else settings[chosen.peer]


def doubt_about_labels(runs: Sequence[Run], costs: Sequence[Cost], student: Run) -> str:
    """Sentence against the use of a weak teacher's loss; empty if the teacher is not known as weak.

    Args:
        runs, costs: see :func:`outcome`.
        student: the run whose teachers' losses are reported.
    """
    settings, costs = _settings(runs, costs)
    measures = _measures(settings)
    chosen = _choose(settings, costs, measures[0][1]) if measures else None
    if chosen is None:
        return ""
    story = _Story(settings, costs, chosen)
    if story.student.teacher_weights != student.teacher_weights:
        return ""
    return story.doubt(measures[0][1], "look for wrong labels")


def _settings(runs: Sequence[Run], costs: Sequence[Cost]) -> tuple[list[Setting], list[Cost]]:
    """Settings of the runs, and the costs of their first runs."""
    settings = settings_of(runs)
    cost_of = {id(run): cost for run, cost in zip(runs, costs, strict=True)}
    return settings, [cost_of[id(setting.first)] for setting in settings]


def _choose(
    settings: Sequence[Setting], costs: Sequence[Cost], ap: Sequence[APBySeed]
) -> Comparison | None:
    runs = [x.first for x in settings]
    # Distilled students are compared on the seeds that all of them have.
    seeds = [x.keys() for x, run in zip(ap, runs, strict=True) if run.is_distilled]
    common = set.intersection(*map(set, seeds)) if seeds else set()
    means = [mean([x[s] for s in common & x.keys()] or x.values()) for x in ap]
    return choose(runs, [x.parameters for x in costs], means)


def _measures(settings: Sequence[Setting]) -> list[tuple[str, list[APBySeed]]]:
    """Metrics of all runs, each as a prefix of a sentence and the AP of each setting."""
    runs = [run for setting in settings for run in setting.runs]
    measures = []
    coco = [run.metrics_at_end("bbox").get("AP") for run in runs]
    if None not in coco and not all(map(math.isnan, coco)):
        measures.append(("", [setting.by_seed(attrgetter("ap")) for setting in settings]))
    kitti = [_moderate(run) for run in runs]
    if all(kitti) and any(any(x) for x in kitti):
        classes = f", mean of {len(kitti[0])} classes" if len(kitti[0]) > 1 else ""
        by = f"by KITTI's official metric, moderate{classes}, "
        measures.append((by, [x.by_seed(lambda run: mean(_moderate(run))) for x in settings]))
    return measures


def _mapped_result(teacher: Run) -> str:
    """AP of a teacher on its student's classes, and those of which it detects nothing."""
    (by, (ap,)), *_ = _measures([Setting([teacher])]) or [("", [{0: 0.0}])]
    metrics = teacher.metrics_at_end("bbox").items()
    lost = [name.removeprefix("AP-") for name, x in metrics if name.startswith("AP-") and x == 0]
    end = f", with 0 for {', '.join(lost)}" if lost else ""
    return f"{by}{_mean(ap)} AP on {teacher.test_set}{end}"


def _moderate(run: Run) -> list[float]:
    """KITTI's AP at moderate difficulty, for each class with objects of that difficulty."""
    metrics = run.metrics_at_end("kitti")
    start, end = "AP_R40-", "-moderate"
    names = [x[len(start) : -len(end)] for x in metrics if x.startswith(start) and x.endswith(end)]
    return [metrics[f"{start}{x}{end}"] for x in names if metrics[f"objects-{x}{end}"] > 0]


def _without_distillation(
    settings: Sequence[Setting], costs: Sequence[Cost], by: str, ap: list[APBySeed]
) -> str:
    best = max(range(len(settings)), key=lambda i: _mean(ap[i]))
    name, time = code(settings[best].name), _join_time(costs[best])
    result = f"has {_mean(ap[best])} AP{_seeds(ap[best])}{time}."
    if len(settings) == 1:
        return _capitalize(f"{by}{name}, trained without a teacher, {result}")
    return _capitalize(
        f"{by}the best of {len(settings)} runs ({name}), none of them distilled, {result}"
    )


@dataclass(frozen=True)
class _Story:
    settings: Sequence[Setting]
    costs: Sequence[Cost]
    chosen: Comparison

    @property
    def subject(self) -> str:
        name = self.name(self.chosen.student)
        number = sum(setting.first.is_distilled for setting in self.settings)
        if number > 1:
            return f"the best of {number} distilled students ({name})"
        if self.chosen.teachers:
            return f"the student distilled from the teacher ({name})"
        return f"the distilled student ({name})"

    @property
    def student(self) -> Run:
        return self.settings[self.chosen.student].first

    def name(self, i: int) -> str:
        return code(self.settings[i].name)

    @property
    def teacher(self) -> int | None:
        """Index of the only teacher; None if there are several or it is not among the runs."""
        alone = len(self.student.teacher_weights) == len(self.chosen.teachers) == 1
        return self.chosen.teachers[0] if alone else None

    def result(self, ap: list[APBySeed]) -> str:
        """AP of student, plain student and teachers, and the gain of distillation."""
        own, peer = ap[self.chosen.student], self.chosen.peer
        seeds = _seeds(own)
        if peer is not None:
            own, plain = _paired(own, ap[peer])
            if own.keys() != ap[self.chosen.student].keys():
                seeds = f" (over the seeds of both, {', '.join(map(str, own))})"
        parts = [f"{_mean(own)} AP{seeds}"]
        if peer is not None:
            name = f" ({self.name(peer)})" if self.chosen.num_peers > 1 else ""
            parts.append(f"the plain student{name} {_mean(plain)}")
        if self.chosen.teachers:
            aps = " and ".join(str(_mean(ap[i])) for i in self.chosen.teachers)
            parts.append(f"{self._teachers()} {aps}")
        if peer is None:
            return ", ".join(parts)
        share = ""
        if self.teacher is not None:
            share = _share(_mean(own), _mean(plain), _mean(ap[self.teacher]))
        return f"{', '.join(parts)}: {_gain(own, plain)} at equal iterations{share}"

    def doubt(self, ap: list[APBySeed], purpose: str) -> str:
        """Sentence on teachers that are no better than the plain student; empty if one is.

        Without a plain student they are compared with the distilled one.
        """
        teachers, peer = self.chosen.teachers, self.chosen.peer
        if not teachers or len(teachers) < len(self.student.teacher_weights):
            return ""
        name, other = "student", ap[self.chosen.student]
        if peer is not None:
            name, (_, other) = "plain student", _paired(other, ap[peer])
        if max(_mean(ap[i]) for i in teachers) > _mean(other):
            return ""
        subject, it = (
            ("The teacher is", "it") if len(teachers) == 1 else ("The teachers are", "them")
        )
        return f"{subject} no better than the {name}: train {it} longer before you {purpose}."

    def _teachers(self) -> str:
        if len(self.chosen.teachers) > 1:
            return "the teachers"
        if self.teacher is None:
            return "one of its teachers"
        several = roles([x.first for x in self.settings]).count("teacher") > 1
        return "the teacher" + (f" ({self.name(self.teacher)})" if several else "")

    @property
    def time(self) -> str:
        teacher = None if self.teacher is None else self.costs[self.teacher]
        return _join_time(self.costs[self.chosen.student], teacher)

    def another_length(self, ap: list[APBySeed]) -> str:
        """Sentence on the plain student of another training length."""
        run, student = self.settings[self.chosen.other].first, self.student
        own, plain = _paired(ap[self.chosen.student], ap[self.chosen.other])
        seconds = run.training_seconds, student.training_seconds
        steps, name = f"with {_lengths(run, student)}", self.name(self.chosen.other)
        if self.chosen.equal_time:
            return (
                f"At equal training time ({_durations(*seconds)}) the plain student {name}, "
                f"{steps}, has {_mean(plain)} AP{_seeds(plain)}: {_gain(own, plain)}."
            )
        result = f"{_mean(plain)} AP{_seeds(plain)}, {_more(_mean(plain) - _mean(own))}"
        end = f"the plain student {name} has {result} the distilled one"
        if not student.has_comparable_time:
            time = f"the training time of {self.name(self.chosen.student)}, with TEACHER.CACHE,"
            return _capitalize(f"{steps}, {end}; {time} does not compare.")
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
            which = f"{name} of {self.name(self.chosen.student)}"
            which += ", whose classes are mapped to the student's,"
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
            if i is None:
                continue
            keys = [code(x) for x in differences(self.settings[i].first, self.student)]
            if keys:
                more = len(keys) - MAX_KEYS
                end = f" and {counted(more, 'more key')}" if more > 0 else ""
                sentences.append(
                    f"{self.name(i)} differs from {self.name(self.chosen.student)} in more than "
                    f"the teacher: {', '.join(keys[:MAX_KEYS])}{end}."
                )
        return sentences


def _paired(own: APBySeed, plain: APBySeed) -> tuple[APBySeed, APBySeed]:
    """APs of the common seeds; all, if there is none."""
    seeds = own.keys() & plain.keys() or own.keys() | plain.keys()
    return tuple({seed: x[seed] for seed in sorted(seeds) if seed in x} for x in (own, plain))


def _mean(ap: APBySeed) -> float:
    return round(mean(ap.values()), 1)


def _seeds(ap: APBySeed) -> str:
    return f" (mean of {len(ap)} seeds)" if len(ap) > 1 else ""


def _gain(own: APBySeed, plain: APBySeed) -> str:
    """Gain of distillation, with its interval where there are several common seeds."""
    difference = _mean(own) - _mean(plain)
    interval = ""
    paired = paired_difference(own, plain)
    if paired is not None and paired.seeds > 1:
        low, high = paired.interval
        interval = f" (95 % interval {low:.1f} to {high:.1f})"
    if round(difference, 1) == 0:
        return f"distillation changes nothing{interval}"
    verb = "gains" if difference > 0 else "loses"
    return f"distillation {verb} {abs(difference):.1f} AP{interval}"


def _share(own: float, plain: float, teacher: float) -> str:
    """Closed fraction of the gap between plain student and teacher; empty without a gap."""
    if not plain < own <= teacher or teacher - plain < MIN_GAP:
        return ""
    return f", {100 * (own - plain) / (teacher - plain):.0f} % of the gap to the teacher"


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
        return f"{counted(steps, 'iteration')} instead of {of_student}"
    return (
        f"{counted(steps, 'iteration')} of {counted(batch, 'image')} instead of {of_student} of "
        f"{its_batch}"
    )


def _durations(*seconds: float) -> str:
    longest = max(seconds)
    unit, size = ("s", 1) if longest < 60 else ("min", 60) if longest < 6000 else ("h", 3600)
    return f"{' and '.join(f'{x / size:.1f}' for x in seconds)} {unit}"


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
