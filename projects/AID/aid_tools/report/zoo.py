"""Model zoo page: results of the students with a teacher, and commands for those that were not run.

A measured row is a JSON file, see :meth:`Zoo.add`.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import yaml
from detectron2.config import CfgNode

from aid.config import flat_keys, load_config
from aid.utils.errors import AIDError
from aid.utils.files import json_text, write_text

from ..files import clear_file_errors
from ..text import markdown_cell
from .pairs import REPEATED
from .runs import Run, load_run

__all__ = ["Zoo"]

PAGE, CONFIGS, RECORDS = "MODEL_ZOO.md", "configs", "docs/results/zoo"
# The generated tables, between markers that name the folders of the configs.
TABLES = re.compile(r"(<!-- zoo: ([^>]+) -->\n).*?(<!-- end of zoo -->)", re.DOTALL)
HEADER = """\
| config | teacher AP | plain AP | distilled AP | s / iteration | GPU memory | seed | metrics |
|---|---|---|---|---|---|---|---|
"""
NOT_RUN = """
<details>
<summary>{} configs without a row, with their commands</summary>

| config | command |
|---|---|
{}
</details>
"""
# Keys (prefixes) that a row does not show: the places of the teachers' files vary, too.
PASSING = (
    *(*REPEATED, "TEACHER.CONFIG_FILE", "TEACHER.WEIGHTS"),
    *("TEACHER.MORE_CONFIG_FILES", "TEACHER.MORE_WEIGHTS"),
)
# Number of GPUs in the command of a config, by its folder.
GPUS = {"configs/Quickstart": 0}
MOST_GPUS = 4


@dataclass(frozen=True)
class Zoo:
    """Model zoo of a repository.

    Attributes:
        root: path of the repository.
    """

    root: Path

    def add(self, folder: str, config: str | None = None, plain: str | None = None) -> str:
        """Write the record of a student's run, replacing an earlier one.

        Args:
            folder: output folder of the run.
            config: its config file under configs/; None for the config with the OUTPUT_DIR of the
                run.
            plain: output folder of the same student without a teacher; None for the run of the base
                config without a teacher, next to ``folder`` or in its OUTPUT_DIR.

        Returns:
            Path of the record.

        Raises:
            AIDError: not a finished run of a student with a teacher, or its config is unknown.
        """
        run = load_run(folder)
        if not run.is_distilled:
            raise AIDError(
                f"{folder} is a run without a teacher: give the folders of its students, whose "
                "rows include its AP"
            )
        path = self._config_of(run) if config is None else Path(os.path.abspath(config))
        folders = {Path(x.parent) for x in self.students()}
        if path.parent not in folders or not path.is_file():
            raise AIDError(
                f"--config {config} is not a file, or {PAGE} has no table for its folder"
            )
        record = {
            "config": path.relative_to(self.root).as_posix(),
            "changed": _changes(load_config(str(path)), run),
            "iterations": run.cfg.SOLVER.MAX_ITER,
            "seed": run.cfg.SEED,
            "teacher_AP": _teachers(run),
            "plain_AP": _ap(load_run(plain), run) if plain else self._plain(path, run),
            "AP": _ap(run, run),
            "seconds_per_iteration": run.seconds_per_iteration,
            "memory": _memory(folder),
            "results": {
                f"{task}/{name}": value
                for task in ("bbox", "segm", "kitti")
                for name, value in run.metrics_at_end(task).items()
            },
        }
        target = self._record_of(path)
        _write(target, json_text(record, indent=1) + "\n")
        return str(target)

    def fill(self) -> None:
        """Regenerate the tables of the page; the text around them stays unchanged."""
        page = self.root / PAGE
        before = page.read_text(encoding="utf-8")
        after = TABLES.sub(lambda x: x[1] + self._tables(x[2].split()) + x[3], before)
        if after != before:
            _write(page, after)

    def students(self) -> list[Path]:
        """Paths of the configs of the tables.

        Raises:
            AIDError: the page does not exist or has no marked tables.
        """
        page = self.root / PAGE
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        folders = [folder for x in TABLES.finditer(text) for folder in x[2].split()]
        if not folders:
            raise AIDError(
                f"{page} has no tables between <!-- zoo: FOLDERS --> and <!-- end of zoo -->"
            )
        return [path for folder in folders for path in self._students(folder)]

    def _students(self, folder: str) -> list[Path]:
        return sorted((self.root / folder).glob("*_from_*.yaml"))

    def _tables(self, folders: list[str]) -> str:
        paths = [path for folder in folders for path in self._students(folder)]
        run = [path for path in paths if self._record_of(path).is_file()]
        commands = [self._command(path) for path in paths if path not in run]
        rows = HEADER + "".join(map(self._row, run))
        return rows + NOT_RUN.format(len(commands), "\n".join(commands)) if commands else rows

    def _command(self, path: Path) -> str:
        config = path.relative_to(self.root).as_posix()
        gpus = GPUS.get(os.path.dirname(config), MOST_GPUS)
        command = f"python train_net.py --config-file {config} --num-gpus {gpus}"
        return f"| {self._config(path)} | `{command}` |"

    def _config(self, path: Path) -> str:
        name = path.relative_to(self.root / CONFIGS).with_suffix("").as_posix()
        return f"[{markdown_cell(name)}]({_link(path.relative_to(self.root))})"

    def _row(self, path: Path) -> str:
        config = self._config(path)
        target = self._record_of(path)
        x = json.loads(target.read_text())
        changed = markdown_cell(", ".join(f"{key} {value}" for key, value in x["changed"].items()))
        cells = [
            config + (f", with {changed}" if changed else ""),
            ", ".join(_shown(ap, ".1f") for ap in x["teacher_AP"]),
            _shown(x["plain_AP"], ".1f"),
            _shown(x["AP"], ".1f"),
            _shown(x["seconds_per_iteration"], ".3g"),
            _shown(x["memory"], "d") + (" MB" if x["memory"] else ""),
            str(x["seed"]),
            f"[json]({_link(target.relative_to(self.root))})",
        ]
        return f"| {' | '.join(cells)} |\n"

    def _record_of(self, path: Path) -> Path:
        relative = path.relative_to(self.root / CONFIGS)
        return self.root / RECORDS / relative.with_suffix(".json")

    def _config_of(self, run: Run) -> Path:
        output = os.path.normpath(run.cfg.OUTPUT_DIR)
        for path in self.students():
            if os.path.normpath(load_config(str(path)).OUTPUT_DIR) == output:
                return path
        raise AIDError(
            f"{run.folder}: no config in {PAGE} has the OUTPUT_DIR {output} of this run: give its "
            "config by --config"
        )

    def _plain(self, path: Path, run: Run) -> float | None:
        """AP of the plain student, whose config is the first base of this one without a teacher."""
        while "_from_" in path.stem:
            bases = yaml.safe_load(path.read_text()).get("_BASE_")
            if not bases:
                return None
            path = path.parent / (bases if isinstance(bases, str) else bases[0])
        return _ap_near(run, load_config(str(path)).OUTPUT_DIR)


def _write(path: Path, text: str) -> None:
    with clear_file_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(str(path), text)


def _link(path: Path) -> str:
    return quote(path.as_posix())


def _changes(config: CfgNode, run: Run) -> dict[str, object]:
    """Keys and values of the run that differ from its current config file."""
    today, then = (flat_keys(yaml.safe_load(x.dump())) for x in (config, run.cfg))
    return {
        key: value
        for key, value in sorted(then.items())
        if not key.startswith(PASSING) and today.get(key) != value
    }


def _teachers(run: Run) -> list[float | None]:
    """AP of each teacher on the student's test set; None if it was not evaluated there."""
    aps = []
    for k, weights in enumerate((run.cfg.TEACHER.WEIGHTS, *run.cfg.TEACHER.MORE_WEIGHTS)):
        evaluated = run.evaluated_teacher(k)
        if evaluated is not None:
            aps.append(_ap(evaluated, run))
        elif run.class_maps[k] or os.path.basename(weights) != "model_final.pth":
            aps.append(None)  # the evaluation in that folder is of other classes or weights
        else:
            aps.append(_ap_near(run, os.path.dirname(weights)))
    return aps


def _ap_near(run: Run, folder: str) -> float | None:
    """AP of the run in the folder of this name next to ``run``, or else in the folder itself."""
    name = os.path.basename(os.path.normpath(folder))
    beside = os.path.join(os.path.dirname(os.path.abspath(run.folder)), name)
    for place in (beside, folder):
        if os.path.isfile(os.path.join(place, "metrics.json")):
            return _ap(load_run(place), run)
    return None


def _ap(run: Run, student: Run) -> float | None:
    """COCO's AP of a run; None if it was not evaluated on the student's test set."""
    if run.test_set != student.test_set:
        return None
    return run.metrics_at_end("bbox").get("AP", math.nan)


def _memory(folder: str) -> int | None:
    """Peak GPU memory allocated by torch, in MB, from Detectron2's log; None on the CPU."""
    path = os.path.join(folder, "log.txt")
    if not os.path.isfile(path):
        return None
    with open(path, errors="replace") as f:
        return max((int(x) for x in re.findall(r"max_mem: (\d+)M", f.read())), default=None)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
