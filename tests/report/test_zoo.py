"""Model zoo page, updated from artificial output folders."""

import json
import os
import re
import shutil
import subprocess

import pytest

from aid.config import load_config
from aid.utils.errors import AIDError
from aid_tools.report.zoo import Zoo

TEACHER, PLAIN, STUDENT = "faster_rcnn_R34_FPN", "faster_rcnn_R18_FPN", "faster_rcnn_R18_from_R34"
PAGE = """# Zoo

Before.

<!-- zoo: configs/Quickstart -->
old rows
<!-- end of zoo -->

After.
"""


@pytest.fixture
def zoo(repository, tmp_path):
    """The repository's configs, and a page of its own."""
    os.symlink(os.path.join(repository, "configs"), tmp_path / "configs")
    (tmp_path / "MODEL_ZOO.md").write_text(PAGE)
    return Zoo(tmp_path)


@pytest.fixture
def run(repository, tmp_path):
    """A function (config, AP, overrides) -> output folder of a run that ended with this AP."""

    def make(name: str, ap: float, opts=(), folder: str = "runs") -> str:
        place = tmp_path / folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        path = os.path.join(repository, "configs/Quickstart", f"{name}.yaml")
        cfg = load_config(path, list(opts))
        (place / "config.yaml").write_text(cfg.dump())
        lines = [{"iteration": k, "time": t} for k, t in enumerate((9.0, 0.25, 0.5, 0.125, 0.25))]
        lines += [{"iteration": 5, "bbox/AP": 1.0}]
        lines += [{"iteration": 9, "bbox/AP": ap, "bbox/AP50": 2 * ap, "bbox/APl": float("nan")}]
        (place / "metrics.json").write_text("".join(json.dumps(x) + "\n" for x in lines))
        (place / "model_final.pth").touch()
        return str(place)

    return make


def cells_of(zoo: Zoo, name: str) -> list[str]:
    """The cells of a row behind its config."""
    page = (zoo.root / "MODEL_ZOO.md").read_text()
    (row,) = (x for x in page.splitlines() if x.startswith(f"| [{name}]("))
    return [x.strip() for x in row.split("|")[2:-1]]


def test_a_row_says_what_teacher_student_and_both_are_worth(zoo, run):
    run(TEACHER, 33.04)
    run(PLAIN, 15.09)
    path = zoo.add(run(STUDENT, 15.78))
    zoo.fill()
    link = f"[json](docs/results/zoo/Quickstart/{STUDENT}.json)"
    assert cells_of(zoo, STUDENT) == ["33.0", "15.1", "15.8", "0.25", "-", "1", link]
    assert cells_of(zoo, f"{STUDENT}_none") == ["-", "-", "not run", *["-"] * 4]
    with open(path) as f:
        record = json.load(f, parse_constant=pytest.fail)
    assert record["config"] == f"configs/Quickstart/{STUDENT}.yaml" and record["changed"] == {}
    assert record["results"] == {"bbox/AP": 15.78, "bbox/AP50": 31.56, "bbox/APl": None}
    page = (zoo.root / "MODEL_ZOO.md").read_text()
    assert page.startswith("# Zoo\n\nBefore.\n") and page.endswith("-->\n\nAfter.\n")
    assert "old rows" not in page


def test_to_add_a_run_again_changes_nothing_and_another_one_takes_its_place(zoo, run):
    folder = run(STUDENT, 15.0)
    files = [zoo.root / "MODEL_ZOO.md", zoo.root / f"docs/results/zoo/Quickstart/{STUDENT}.json"]
    contents = []
    for _ in range(2):
        zoo.add(folder)
        zoo.fill()
        contents.append([x.read_bytes() for x in files])
    assert contents[0] == contents[1]
    zoo.add(run(STUDENT, 17.0, ["SEED", 5]))
    zoo.fill()
    assert cells_of(zoo, STUDENT)[2] == "17.0" and cells_of(zoo, STUDENT)[5] == "5"


def test_what_is_not_known_is_left_out(zoo, run):
    run(PLAIN, 15.0, ["DATASETS.TEST", ("kitti_val",)])  # which is another scale
    run(TEACHER, 33.0)
    opts = ["TEACHER.WEIGHTS", f"output/{TEACHER}/model_0000199.pth"]  # and not the final ones
    zoo.add(run(STUDENT, 20.0, opts))
    zoo.fill()
    assert cells_of(zoo, STUDENT)[:3] == ["-", "-", "20.0"]


def test_a_teacher_that_was_evaluated_first(zoo, run):
    name = "faster_rcnn_R18_from_two"
    run("retinanet_R34_FPN", 20.0)
    run(TEACHER, 30.0)
    folder = run(name, 15.0, ["TEACHER.EVAL_FIRST", True])
    os.mkdir(os.path.join(folder, "teacher"))
    with open(os.path.join(folder, "teacher/metrics.json"), "w") as f:
        f.write('{"bbox/AP": 31.5, "iteration": 0}\n')
    zoo.add(folder)
    zoo.fill()
    assert cells_of(zoo, name)[0] == "31.5, 20.0"
    zoo.add(run(name, 15.0))  # without: what an earlier run left does not count
    zoo.fill()
    assert cells_of(zoo, name)[0] == "30.0, 20.0"


def test_memory_is_what_the_gpus_log_says(zoo, run):
    folder = run(STUDENT, 15.0)
    with open(os.path.join(folder, "log.txt"), "w") as f:
        f.write("iter: 19  lr: 1e-3  max_mem: 812M\niter: 39  lr: 1e-3  max_mem: 1034M\n")
    zoo.add(folder)
    zoo.fill()
    assert cells_of(zoo, STUDENT)[4] == "1034 MB"


def test_what_the_config_has_otherwise_today_is_named(zoo, run):
    opts = ["DISTILLATION.WEIGHT", 2.0, "SOLVER.BASE_LR", 0.5, "SEED", 7, "VIS_PERIOD", 3]
    zoo.add(run(STUDENT, 15.0, opts))
    zoo.fill()
    (row,) = (x for x in (zoo.root / "MODEL_ZOO.md").read_text().splitlines() if "json" in x)
    assert ".yaml), with DISTILLATION.WEIGHT 2.0, SOLVER.BASE_LR 0.5 |" in row


def test_a_run_elsewhere_is_told_its_config_and_its_plain_student(zoo, run):
    folder = run(STUDENT, 15.0, ["OUTPUT_DIR", "/elsewhere"])
    with pytest.raises(AIDError, match="no config in MODEL_ZOO.md has the OUTPUT_DIR /elsewhere"):
        zoo.add(folder)
    config = str(zoo.root / "configs/Quickstart" / f"{STUDENT}.yaml")
    zoo.add(folder, config, run(PLAIN, 12.0, folder="others"))
    zoo.fill()
    assert cells_of(zoo, STUDENT)[1] == "12.0"
    with pytest.raises(
        AIDError, match="--config .*is not a file, or MODEL_ZOO.md has no table for"
    ):
        zoo.add(folder, str(zoo.root / "configs/Base-GFL.yaml"))


def test_a_value_of_the_config_stays_in_its_cell(zoo, run):
    """The end of a table in it: a second round would leave half of the row behind."""
    name = "a|b\n<!-- end of zoo -->"
    zoo.add(run(STUDENT, 15.0, ["MODEL.RESNETS.NORM", name]))
    pages = []
    for _ in range(2):
        zoo.fill()
        pages.append((zoo.root / "MODEL_ZOO.md").read_text())
    assert pages[0] == pages[1] and pages[0].count("<!-- end of zoo -->") == 1
    (row,) = (x for x in pages[0].splitlines() if x.startswith(f"| [{STUDENT}]("))
    assert row.count("|") == 9 and "NORM a&#124;b&#92;n&lt;!-- end" in row


def test_what_is_no_run_of_a_student(zoo, run, tmp_path):
    with pytest.raises(AIDError, match="config.yaml does not exist: .* is not a finished run"):
        zoo.add(str(tmp_path))
    with pytest.raises(
        AIDError, match="is a run without a teacher: give the folders of its students"
    ):
        zoo.add(run(PLAIN, 15.0))
    (tmp_path / "MODEL_ZOO.md").write_text("# Zoo\n")
    with pytest.raises(AIDError, match="has no table between"):
        zoo.add(run(STUDENT, 15.0))


def test_one_folder_at_a_time_has_a_config_of_its_own(load_script, capsys):
    with pytest.raises(SystemExit):
        load_script("tools/model_zoo.py").main(["a", "b", "--plain", "c"])
    assert capsys.readouterr().err.startswith(
        "error: --config and --plain apply to a single folder"
    )


def test_the_page_is_what_its_records_say(repository, zoo):
    for name in ("MODEL_ZOO.md", "docs"):
        source, target = os.path.join(repository, name), zoo.root / name
        if name == "docs":
            os.symlink(source, target)
        else:
            shutil.copy(source, target)
    before = (zoo.root / "MODEL_ZOO.md").read_text()
    zoo.fill()
    assert (zoo.root / "MODEL_ZOO.md").read_text() == before
    links = re.findall(r"\]\((?!http)([^)#]+)", before)
    assert links and all(os.path.exists(os.path.join(repository, x)) for x in links)


@pytest.mark.parametrize("section", ["Quickstart", "AID", "AID/Paper", "AID/COCO-Traffic"])
def test_the_pages_commands_fill_all_of_its_rows(section, repository):
    with open(os.path.join(repository, "MODEL_ZOO.md")) as f:
        *_, before, table = re.split(rf"<!-- zoo: configs/{section} -->", f.read())
    commands = before.split("```sh")[-1].split("```")[0]
    script = f'python() {{ echo "$@"; }}\n{commands}'
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=repository)
    *trained, last = said.stdout.splitlines()
    configs = {x.split()[2] for x in trained if x.startswith("train_net.py")}
    assert all(os.path.isfile(os.path.join(repository, x)) for x in configs)
    rows = set(re.findall(r"^\| \[\w+\]\((\S+)\)", table.split("<!-- end")[0], re.MULTILINE))
    assert rows == {x for x in configs if "_from_" in x} and len(rows) > 5
    output = load_config(os.path.join(repository, min(rows))).OUTPUT_DIR
    assert last == f"tools/model_zoo.py {os.path.dirname(output)}/*_from_*"
