"""Expansion of a study's YAML file into jobs, each of which is one call of train_net.py."""

import itertools
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import yaml

from aid.config import check_key
from aid.config.limits import read_limited
from aid.utils.errors import AIDError
from aid.utils.suggestions import did_you_mean

__all__ = ["Job", "Scenes", "Study", "load_study"]

SECTIONS = ("output", "scenes", "detectors", "regimes", "rules", "experiments")
AXES = ("seeds", "detectors", "regimes", "strengths", "rules")
# Largest number of combinations. The project's studies have a few hundred.
MAX_JOBS = 10_000


@dataclass(frozen=True)
class Scenes:
    """Dataset for training and test, rendered or given.

    Attributes:
        folder: value of DETECTRON2_DATASETS.
        options: command line options of datasets/make_synthetic_kitti.py; None for a given dataset.
    """

    folder: str
    options: tuple[str, ...] | None

    @property
    def is_rendered(self) -> bool:
        return self.options is not None

    @property
    def root(self) -> str:
        """Folder of images and labels, in KITTI's layout."""
        return os.path.join(self.folder, "synthetic_kitti" if self.is_rendered else "kitti")


@dataclass(frozen=True)
class Job:
    """One call of train_net.py.

    Attributes:
        folder: OUTPUT_DIR, which also identifies the job.
        config: path of the config file.
        scenes: data for training and test.
        options: overrides of config keys, KEY VALUE in turn.
        needs: folders of the jobs that must finish first.
        constant_of: folder of the run whose mean weight is the constant of this control run.
        labels: description of the run: set, regime, detector, iterations, rule, strength, seed; and
            unweighted, the rule with the same imitation without weights.
        register: Python files to run first, in order.
    """

    folder: str
    config: str
    scenes: Scenes
    options: tuple[str, ...]
    needs: tuple[str, ...] = ()
    constant_of: str | None = None
    labels: dict = field(default_factory=dict, compare=False)
    register: tuple[str, ...] = ()

    @property
    def is_teacher(self) -> bool:
        return "rule" not in self.labels

    @property
    def weighs_instances(self) -> bool:
        """Whether to measure the weights of this run: one seed, weights chosen by a rule."""
        chosen = {"ConstantWeighting", "none"}.isdisjoint(self.options)
        return self.keeps_weights and chosen and "TEACHER.WEIGHTS" in self.options

    @property
    def imitates_everywhere(self) -> bool:
        """Whether to measure the gradients of this run: plain distillation, fixed loss weight."""
        options = dict(zip(self.options[::2], self.options[1::2], strict=True))
        is_fixed = float(options.get("DISTILLATION.BALANCE", 1)) == 0
        is_taught = is_fixed and "TEACHER.WEIGHTS" in options
        return is_taught and "none" in options.values() and self.constant_of is None

    @property
    def keeps_weights(self) -> bool:
        """Whether to keep the run's checkpoint for measurements: one seed."""
        return self.labels.get("seed") == 0


@dataclass(frozen=True)
class Study:
    """Jobs of a study, without duplicates.

    Attributes:
        output: output folder of the study.
        jobs: jobs in their order of execution, each after the jobs that it needs.
    """

    output: str
    jobs: list[Job]


def load_study(path: str, only: Collection[str] = ()) -> Study:
    """Read a study.

    Args:
        path: path of the YAML file.
        only: names of experiments; empty for all.

    Raises:
        AIDError: the file is missing, malformed or too large, an undefined name is used in an
            experiment, in ``only`` or in ``register``, or a rule sets a key that no config has.
    """
    try:
        with open(path, encoding="utf-8") as f:
            content = yaml.safe_load(read_limited(path, f))
    except RecursionError as error:
        raise AIDError(f"{path}: lists or keys are nested too deeply") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AIDError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    missing = [x for x in SECTIONS if not isinstance(content, dict) or x not in content]
    if missing:
        hint = did_you_mean(missing[0], _names(content))
        raise AIDError(f"{path} has no section {', '.join(missing)}{hint}")
    register = _files_to_register(path, content.get("register", []))
    jobs, size = {}, 0
    try:
        output = os.path.expanduser(content["output"])
        experiments = dict(content["experiments"])
        if not experiments:
            raise ValueError("experiments is empty")
        unknown = [name for name in only if name not in experiments]
        if unknown:
            raise AIDError(
                f"{path} has no experiment {', '.join(unknown)}"
                f"{did_you_mean(unknown[0], experiments)}: choose from {', '.join(experiments)}"
            )
        for name, experiment in experiments.items():
            if only and name not in only:
                continue
            grid = _Grid(content)
            size += grid.size(experiment)
            if size > MAX_JOBS:
                raise AIDError(
                    f"{path}: its experiments have more than {MAX_JOBS} combinations of seeds, "
                    "detectors, regimes, strengths and rules: shorten these lists"
                )
            for job in grid.jobs(experiment):
                jobs.setdefault(job.folder, replace(job, register=register))
    except RecursionError as error:
        raise AIDError(f"{path}: a rule's constant_of leads back to itself") from error
    except KeyError as error:
        hint = did_you_mean(error.args[0], _names(content) - {error.args[0]})
        raise AIDError(f"{path}: an experiment uses {error}, which is not defined{hint}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise AIDError(f"{path} does not have the structure of a study: {error}") from error
    for key in sorted({key for job in jobs.values() for key in job.options[::2]}):
        check_key(key, path)
    return Study(output, list(jobs.values()))


def _names(content: object) -> set[str]:
    """All keys of nested dicts."""
    if not isinstance(content, dict):
        return set()
    return {str(key) for key in content}.union(*map(_names, content.values()))


def _files_to_register(path: str, named: object) -> tuple[str, ...]:
    """Check a study's key ``register``, one file or a list, and return its files."""
    files = [named] if isinstance(named, str) else named
    if not isinstance(files, list) or not all(
        isinstance(x, str) and os.path.isfile(x) for x in files
    ):
        raise AIDError(
            f"{path}: register is {named!r}: give a Python file or a list of Python files, "
            "relative to the current folder"
        )
    return tuple(files)


class _Grid:
    def __init__(self, content: dict):
        self._content = content
        self._output = os.path.expanduser(content["output"])

    def size(self, experiment: dict) -> int:
        """Number of combinations of an experiment.

        Raises:
            ValueError: an axis is no list or an empty one, or a seed is no whole number from 0.
        """
        for axis in AXES:
            if not isinstance(experiment[axis], list) or not experiment[axis]:
                raise ValueError(
                    f"{axis} is {experiment[axis]!r}: it must be a list of one or more"
                )
        for seed in experiment["seeds"]:
            if type(seed) is not int or seed < 0:
                raise ValueError(f"a seed is {seed!r}: it must be a whole number from 0")
        return math.prod(len(experiment[x]) for x in AXES)

    def jobs(self, experiment: dict) -> Iterator[Job]:
        axes = (experiment[x] for x in AXES)
        # Seeds are outermost, so that an interrupted study has all cells with fewer seeds.
        for seed, detector, regime, strength, rule in itertools.product(*axes):
            job = self._student(experiment, seed, detector, regime, strength, rule)
            for folder in job.needs:
                if folder == job.constant_of:
                    other = self._content["rules"][rule]["constant_of"]
                    yield from self._with_teacher(
                        self._student(experiment, seed, detector, regime, strength, other)
                    )
            yield from self._with_teacher(job)

    def _with_teacher(self, job: Job) -> Iterator[Job]:
        teacher = self._teacher(job.labels["set"], job.labels["regime"], job.labels["detector"])
        if teacher.folder in job.needs:
            yield teacher
        yield job

    def _scenes(self, set_name: str, kind: str) -> Scenes:
        scenes = self._content["scenes"]
        if "folder" in scenes["kinds"][kind]:
            folder = scenes["kinds"][kind]["folder"]
            if not isinstance(folder, str):
                raise ValueError(f"a folder is {folder!r}: it must be a path")
            return Scenes(os.path.expanduser(folder), None)
        options = {**scenes["options"], **scenes["kinds"][kind]}
        options["seed"] = scenes["sets"][set_name] + options.pop("seed_offset", 0)
        return Scenes(
            os.path.join(self._output, "scenes", set_name, kind),
            tuple(x for key, value in options.items() for x in (f"--{key}", *str(value).split())),
        )

    def _teacher(self, set_name: str, regime: str, detector: str) -> Job:
        kind = self._content["regimes"][regime]["teacher"]
        configs = self._content["detectors"][detector]
        length = ("SOLVER.MAX_ITER", str(configs["teacher_iterations"]))
        return Job(
            os.path.join(self._output, "teachers", set_name, kind, detector),
            configs["teacher"],
            self._scenes(set_name, kind),
            ("SEED", "1", *length),
            labels={"set": set_name, "scenes": kind, "detector": detector},
        )

    def _student(
        self, experiment: dict, seed: int, detector: str, regime: str, strength: float, rule: str
    ) -> Job:
        set_name, iterations = experiment["set"], experiment["iterations"]
        keys = dict(self._content["rules"][rule])
        constant_of = keys.pop("constant_of", None)
        unweighted = keys.pop("unweighted", "plain_distillation")
        is_plain = keys.pop("plain", False)
        steps = round(iterations * keys.pop("stretch", 1))
        if is_plain:
            strength = 0  # without a teacher all strengths are the same run
        options = {"SEED": seed, "SOLVER.MAX_ITER": steps, **keys}
        labels = {"set": set_name, "regime": regime, "detector": detector, "rule": rule}
        labels |= {"strength": strength, "seed": seed, "iterations": iterations}
        labels["unweighted"] = unweighted
        needs, other = [], None
        if not is_plain:
            teacher = self._teacher(set_name, regime, detector).folder
            needs.append(teacher)
            options["DISTILLATION.WEIGHT"] = float(strength)
            options["TEACHER.WEIGHTS"] = f"{teacher}/model_final.pth"
        if constant_of:
            other = self._student(experiment, seed, detector, regime, strength, constant_of).folder
            needs.append(other)
        return Job(
            os.path.join(
                self._output, "runs", set_name, regime, detector, f"{rule}_{iterations}",
                f"strength_{strength:g}", f"seed_{seed}",
            ),
            self._content["detectors"][detector]["plain" if is_plain else "student"],
            self._scenes(set_name, self._content["regimes"][regime]["student"]),
            tuple(str(x) for item in options.items() for x in item),
            tuple(needs),
            other,
            labels,
        )  # fmt: skip
