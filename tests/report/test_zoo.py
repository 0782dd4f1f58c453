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
    """Zoo with the configs of the repository and its own page."""
    os.symlink(os.path.join(repository, "configs"), tmp_path / "configs")
    (tmp_path / "MODEL_ZOO.md").write_text(PAGE)
    return Zoo(tmp_path)


@pytest.fixture
def run(repository, tmp_path):
    """A function (config, AP, overrides) -> output folder of a run with this final AP."""

    def make(name: str, ap: float, opts=(), folder: str = "runs") -> str:
        output_folder = tmp_path / folder / name
        shutil.rmtree(output_folder, ignore_errors=True)
        output_folder.mkdir(parents=True)
        path = os.path.join(repository, "configs/Quickstart", f"{name}.yaml")
        cfg = load_config(path, list(opts))
        (output_folder / "config.yaml").write_text(cfg.dump())
        lines = [{"iteration": k, "time": t} for k, t in enumerate((9.0, 0.25, 0.5, 0.125, 0.25))]
        lines += [{"iteration": 5, "bbox/AP": 1.0}]
        lines += [{"iteration": 9, "bbox/AP": ap, "bbox/AP50": 2 * ap, "bbox/APl": float("nan")}]
        (output_folder / "metrics.json").write_text("".join(json.dumps(x) + "\n" for x in lines))
        (output_folder / "model_final.pth").touch()
        return str(output_folder)

    return make


def cells_of(zoo: Zoo, name: str) -> list[str]:
    """Cells of a row, without its config."""
    page = (zoo.root / "MODEL_ZOO.md").read_text()
    (row,) = (x for x in page.splitlines() if x.startswith(f"| [Quickstart/{name}]("))
    return [x.strip() for x in row.split("|")[2:-1]]


def test_row_shows_ap_of_teacher_plain_and_distilled_student(zoo, run):
    run(TEACHER, 33.04)
    run(PLAIN, 15.09)
    path = zoo.add(run(STUDENT, 15.78))
    zoo.fill()
    link = f"[json](docs/results/zoo/Quickstart/{STUDENT}.json)"
    assert cells_of(zoo, STUDENT) == ["33.0", "15.1", "15.8", "0.25", "-", "1", link]
    command = f"`python train_net.py --config-file configs/Quickstart/{STUDENT}_none.yaml"
    assert cells_of(zoo, f"{STUDENT}_none") == [f"{command} --num-gpus 0`"]
    with open(path) as f:
        record = json.load(f, parse_constant=pytest.fail)
    assert record["config"] == f"configs/Quickstart/{STUDENT}.yaml" and record["changed"] == {}
    assert record["results"] == {"bbox/AP": 15.78, "bbox/AP50": 31.56, "bbox/APl": None}
    page = (zoo.root / "MODEL_ZOO.md").read_text()
    assert page.startswith("# Zoo\n\nBefore.\n") and page.endswith("-->\n\nAfter.\n")
    assert "old rows" not in page
    run_rows, folded = page.split("<details>")
    assert f"{STUDENT}]" in run_rows and f"{STUDENT}_none]" not in run_rows
    count = folded.count("| [Quickstart/")
    assert f"<summary>{count} configs without a row" in folded and count > 5
    assert f"{STUDENT}]" not in folded


def test_adding_a_run_is_idempotent_and_replaces_other_runs(zoo, run):
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


def test_unknown_values_are_omitted(zoo, run):
    run(PLAIN, 15.0, ["DATASETS.TEST", ("kitti_val",)])  # another test set
    run(TEACHER, 33.0)
    opts = ["TEACHER.WEIGHTS", f"output/{TEACHER}/model_0000199.pth"]  # not the final weights
    zoo.add(run(STUDENT, 20.0, opts))
    zoo.fill()
    assert cells_of(zoo, STUDENT)[:3] == ["-", "-", "20.0"]


def test_ap_of_a_teacher_evaluated_first_is_used(zoo, run):
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
    zoo.add(run(name, 15.0))  # without EVAL_FIRST, old metrics are ignored
    zoo.fill()
    assert cells_of(zoo, name)[0] == "30.0, 20.0"


def test_memory_is_read_from_the_log(zoo, run):
    folder = run(STUDENT, 15.0)
    with open(os.path.join(folder, "log.txt"), "w") as f:
        f.write("iter: 19  lr: 1e-3  max_mem: 812M\niter: 39  lr: 1e-3  max_mem: 1034M\n")
    zoo.add(folder)
    zoo.fill()
    assert cells_of(zoo, STUDENT)[4] == "1034 MB"


def test_differences_from_the_current_config_are_listed(zoo, run):
    opts = ["DISTILLATION.WEIGHT", 2.0, "SOLVER.BASE_LR", 0.5, "SEED", 7, "VIS_PERIOD", 3]
    opts += ["TEACHER.WEIGHTS", "elsewhere.pth", "TEACHER.PRECISION", "bfloat16"]
    zoo.add(run(STUDENT, 15.0, opts))
    zoo.fill()
    (row,) = (x for x in (zoo.root / "MODEL_ZOO.md").read_text().splitlines() if "json" in x)
    changed = "DISTILLATION.WEIGHT 2.0, SOLVER.BASE_LR 0.5, TEACHER.PRECISION bfloat16"
    assert f".yaml), with {changed} |" in row


def test_config_and_plain_student_can_be_given(zoo, run):
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


def test_hostile_config_values_are_escaped(zoo, run):
    """An unescaped end marker would break the row at the second update."""
    name = "a|b\n<!-- end of zoo -->"
    zoo.add(run(STUDENT, 15.0, ["MODEL.RESNETS.NORM", name]))
    pages = []
    for _ in range(2):
        zoo.fill()
        pages.append((zoo.root / "MODEL_ZOO.md").read_text())
    assert pages[0] == pages[1] and pages[0].count("<!-- end of zoo -->") == 1
    (row,) = (x for x in pages[0].splitlines() if x.startswith(f"| [Quickstart/{STUDENT}]("))
    assert row.count("|") == 9 and "NORM a&#124;b&#92;n&lt;!-- end" in row


def test_folders_other_than_student_runs_are_refused(zoo, run, tmp_path):
    with pytest.raises(AIDError, match="config.yaml does not exist: .* is not a finished run"):
        zoo.add(str(tmp_path))
    with pytest.raises(
        AIDError, match="is a run without a teacher: give the folders of its students"
    ):
        zoo.add(run(PLAIN, 15.0))
    (tmp_path / "MODEL_ZOO.md").write_text("# Zoo\n")
    with pytest.raises(AIDError, match="has no tables between"):
        zoo.add(run(STUDENT, 15.0))


def test_config_and_plain_apply_to_a_single_folder(load_script, capsys):
    with pytest.raises(SystemExit):
        load_script("tools/model_zoo.py").main(["a", "b", "--plain", "c"])
    assert capsys.readouterr().err.startswith(
        "error: --config and --plain apply to a single folder"
    )


def test_model_zoo_page_matches_its_records(repository, zoo):
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
def test_commands_of_the_page_fill_all_rows(section, repository):
    with open(os.path.join(repository, "MODEL_ZOO.md")) as f:
        _, tables, after = re.split("<!-- zoo: [^>]+ -->|<!-- end of zoo -->", f.read())
    rows = re.findall(rf"\]\((configs/{section}/\w+\.yaml)\)", tables)
    (commands,) = (
        x for x in re.findall("```sh\n(.*?)```", after, re.DOTALL) if f" configs/{section}/$" in x
    )
    script = f'set -f\npython() {{ echo "$@"; }}\n{commands}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=repository)
    *trained, last = done.stdout.splitlines()
    configs = {x.split()[2] for x in trained if x.startswith("train_net.py")}
    assert all(os.path.isfile(os.path.join(repository, x)) for x in configs)
    assert set(rows) == {x for x in configs if "_from_" in x} and len(rows) > 5
    output = load_config(os.path.join(repository, min(rows))).OUTPUT_DIR
    assert last == f"tools/model_zoo.py {os.path.dirname(output)}/*_from_*"
