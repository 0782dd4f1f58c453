"""Jobs of a study, and their order of execution."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from aid.utils.errors import AIDError
from aid_tools.study import check_settings, load_study, measured, read_results, run_study
from aid_tools.study import runner as runner_module
from aid_tools.study.results import collect_results

CONTENT = yaml.safe_load("""
output: out
scenes:
  options: {train: 6, val: 2}
  sets: {choose: 100, report: 200}
  kinds:
    day: {}
    mixed: {conditions: day=0.5 night=0.5, train: 4, seed_offset: 7}
detectors:
  net: {teacher: t.yaml, teacher_iterations: 90, plain: p.yaml, student: s.yaml}
regimes:
  gap: {teacher: day, student: mixed}
rules:
  plain_student: {plain: true}
  longer: {plain: true, stretch: 1.667}
  aid: {AID.ALPHA: 0.3}
  control: {AID.WEIGHTING: ConstantWeighting, constant_of: aid}
experiments:
  first: {set: choose, iterations: 50, detectors: [net], regimes: [gap], strengths: [2, 8],
    seeds: [0, 1], rules: [plain_student, control]}
  second: {set: report, iterations: 50, detectors: [net], regimes: [gap], strengths: [2],
    seeds: [0], rules: [longer, aid]}
""")
FIRST = {**CONTENT["experiments"]["first"], "strengths": [1, 2, 4, 8]}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function (changes of the file) -> the study, with output in the working directory."""
    monkeypatch.chdir(tmp_path)

    def load(*only, **changes):
        content = yaml.safe_dump({**CONTENT, **changes}, sort_keys=False)
        (tmp_path / "study.yaml").write_text(content)
        return load_study("study.yaml", only)

    return load


def test_jobs_of_a_grid(study):
    jobs = study("first").jobs
    folders = [job.folder for job in jobs]
    teacher = "out/teachers/choose/day/net"
    runs = "out/runs/choose/gap/net"
    assert folders == [
        f"{runs}/plain_student_50/strength_0/seed_0",  # one run for all strengths
        teacher,
        f"{runs}/aid_50/strength_2/seed_0",  # required by the control
        f"{runs}/control_50/strength_2/seed_0",
        f"{runs}/aid_50/strength_8/seed_0",
        f"{runs}/control_50/strength_8/seed_0",
        f"{runs}/plain_student_50/strength_0/seed_1",
        f"{runs}/aid_50/strength_2/seed_1",
        f"{runs}/control_50/strength_2/seed_1",
        f"{runs}/aid_50/strength_8/seed_1",
        f"{runs}/control_50/strength_8/seed_1",
    ]
    plain, _, aid, control = jobs[:4]
    assert plain.config == "p.yaml" and plain.needs == ()
    assert "TEACHER.WEIGHTS" not in plain.options
    assert aid.config == "s.yaml" and aid.needs == (teacher,)
    options = dict(zip(aid.options[::2], aid.options[1::2], strict=True))
    assert options == {
        "SEED": "0",
        "SOLVER.MAX_ITER": "50",
        "AID.ALPHA": "0.3",
        "DISTILLATION.WEIGHT": "2.0",
        "TEACHER.WEIGHTS": f"{teacher}/model_final.pth",
    }
    assert control.constant_of == aid.folder and control.needs == (teacher, aid.folder)
    expected = "--train 4 --val 2 --conditions day=0.5 night=0.5 --seed 107"
    assert " ".join(aid.scenes.options) == expected
    assert jobs[1].is_teacher and not aid.is_teacher
    assert jobs[1].options == ("SEED", "1", "SOLVER.MAX_ITER", "90")


def test_jobs_of_a_single_experiment(study):
    all_folders = [job.folder for job in study().jobs]
    assert "SOLVER.MAX_ITER 83" in " ".join(study("second").jobs[0].options)
    second_folders = [job.folder for job in study("second").jobs]
    assert second_folders == [
        "out/runs/report/gap/net/longer_50/strength_0/seed_0",
        "out/teachers/report/day/net",
        "out/runs/report/gap/net/aid_50/strength_2/seed_0",
    ]
    assert all_folders[-3:] == second_folders and len(all_folders) == 14
    with pytest.raises(AIDError, match="has no experiment third: choose from first, second"):
        study("first", "third")
    with pytest.raises(AIDError, match=r"no experiment frist \(did you mean first\?\): choose"):
        study("frist")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rules": {}}, "uses 'plain_student', which is not defined"),
        ({"regimes": {"gap": {"student": "day"}}}, "uses 'teacher', which is not defined"),
        (
            {"detectors": {"nets": {}}},
            r"uses 'net', which is not defined \(did you mean nets\?\)$",
        ),
        (
            {"rules": {**CONTENT["rules"], "aid": {"AID.APLHA": 0.3}}},
            r"Non-existent config key: AID.APLHA \(did you mean AID.ALPHA\?\)$",
        ),
        ({"experiments": 3}, "does not have the structure of a study"),
        ({"experiments": {}}, "does not have the structure of a study: experiments is empty"),
        (
            {"experiments": {"endless": {**FIRST, "seeds": list(range(2000))}}},
            "more than 10000 combinations of seeds, .*: shorten",
        ),
        (
            {"experiments": {x: {**FIRST, "seeds": list(range(800))} for x in "ab"}},
            "more than 10000 combinations",
        ),
        (
            {"rules": {"plain_student": {"plain": True}, "control": {"constant_of": "control"}}},
            "a rule's constant_of leads back to itself",
        ),
        ({"scenes": "x" * 2**18}, "has more than 262144 characters"),
        ({"experiments": {"a": {**FIRST, "rules": "aid"}}}, "rules is 'aid': it must be a list"),
        (
            {"experiments": {"a": {**FIRST, "strengths": []}}},
            r"strengths is \[\]: it must be a list",
        ),
        ({"experiments": {"a": {**FIRST, "seeds": ["0"]}}}, "a seed is '0': it must be a whole"),
        ({"experiments": {"a": {**FIRST, "seeds": [-1]}}}, "a seed is -1: it must be a whole"),
        (
            {"scenes": {**CONTENT["scenes"], "kinds": {"day": {"folder": 5}, "mixed": {}}}},
            "folder is 5: it must",
        ),
    ],
)
def test_invalid_study_is_refused(study, changes, message):
    with pytest.raises(AIDError, match=f"study.yaml.* {message}"):
        study(**changes)


@pytest.mark.parametrize("named", ["gone.py", ["a.py", "gone.py"], 3, [3], {"a.py": 1}, None, "."])
def test_invalid_register_entry_is_refused(study, named, tmp_path):
    (tmp_path / "a.py").write_text("")
    with pytest.raises(AIDError, match="study.yaml: register is .*: give a Python file or a list"):
        study(register=named)


def test_every_job_registers_the_files_of_the_study(study, tmp_path, monkeypatch):
    assert all(job.register == () for job in study().jobs)
    for name in "ab":
        file = tmp_path / f"{name}.py"
        file.write_text(f"open('registered', 'a').write({name!r})\n")
    assert study(register="a.py").jobs[0].register == ("a.py",)
    job = study(register=["a.py", "b.py"]).jobs[-1]
    commands = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kwargs: commands.append(command))
    runner_module._start(job)
    assert " --register a.py --register b.py --resume SEED 0 " in " ".join(commands[0])
    # Measurements of the job register the files as well, once.
    monkeypatch.setattr(measured, "load_config", lambda *args: args)
    for _ in range(2):
        config, options = measured.config_of(job, "VIS_PERIOD", 0)
    assert config == "s.yaml"
    assert options == [*job.options, "MODEL.DEVICE", "cpu", "VIS_PERIOD", 0]
    assert (tmp_path / "registered").read_text() == "ab"


def test_given_dataset_is_used_as_it_is(study, tmp_path, monkeypatch):
    kinds = {"day": {"folder": str(tmp_path / "data")}, "mixed": {}}
    scenes = {**CONTENT["scenes"], "kinds": {**kinds, "day": {"folder": "~/data"}}}
    monkeypatch.setenv("HOME", str(tmp_path))
    job = study(scenes=scenes, output="~/out").jobs[1]
    assert job.folder == str(tmp_path / "out/teachers/choose/day/net")
    assert job.is_teacher and job.scenes.root == str(tmp_path / "data" / "kitti")
    with pytest.raises(AIDError, match="kitti, a dataset of the study, does not exist"):
        runner_module._render(job.scenes, 1)
    os.makedirs(job.scenes.root)
    runner_module._render(job.scenes, 1)
    assert os.listdir(job.scenes.root) == []


def test_runs_of_other_settings_are_not_taken_for_those_of_the_study(study, monkeypatch):
    def popen(command, **kwargs):
        return None

    monkeypatch.setattr(subprocess, "Popen", popen)
    jobs = study("second").jobs
    for job in jobs:
        runner_module._start(job)
    check_settings(study().jobs)  # among them some that were not started
    aid, teacher = jobs[2].folder, jobs[1].folder
    changed = {**CONTENT["rules"], "aid": {"AID.ALPHA": 0.7}}
    with pytest.raises(
        AIDError, match=f"^{aid} was run with AID.ALPHA 0.3, which is 0.7 in the study now: "
    ):
        check_settings(study(rules=changed).jobs)
    net = {**CONTENT["detectors"]["net"], "teacher": "other.yaml"}
    with pytest.raises(
        AIDError, match=f"^{teacher} was run with config t.yaml, which is other.yaml in "
    ):
        check_settings(study(detectors={"net": net}).jobs)
    day = {"folder": "real"}
    with pytest.raises(
        AIDError, match=f"^{teacher} was run with data out/.*/day, which is real in "
    ):
        check_settings(
            study(
                scenes={**CONTENT["scenes"], "kinds": {**CONTENT["scenes"]["kinds"], "day": day}}
            ).jobs
        )


@pytest.mark.parametrize("text", ["{", "[]"])
@pytest.mark.parametrize(
    "name, read", [("job.json", check_settings), ("results.json", read_results)]
)
def test_damaged_file_of_a_run_is_a_one_line_error(name, read, text, study):
    jobs = study().jobs
    os.makedirs(jobs[3].folder)
    with open(os.path.join(jobs[3].folder, name), "w") as f:
        f.write(text)
    with pytest.raises(AIDError, match=f"^{jobs[3].folder}/{name} .*: remove its folder"):
        read(jobs)


def test_configs_are_checked_before_anything_runs(study, tiny_config, monkeypatch):
    monkeypatch.setattr(runner_module, "_render", None)
    with pytest.raises(AIDError, match="^config file p.yaml does not exist"):
        run_study(study(), workers=1)
    files = {x: tiny_config("faster_rcnn", name=x) for x in ("teacher", "plain", "student")}
    net = {**CONTENT["detectors"]["net"], **files}
    wrong = {**CONTENT["rules"], "aid": {"AID.ALPHA": "large"}}
    with pytest.raises(AIDError, match="AID.ALPHA is 'large'"):
        run_study(study("second", rules=wrong, detectors={"net": net}), workers=1)


def test_malformed_study_file_is_refused(tmp_path):
    with pytest.raises(AIDError, match="gone.yaml cannot be read"):
        load_study("gone.yaml")
    marker = tmp_path / "marker"
    (tmp_path / "a.yaml").write_text(f"output: !!python/object/apply:os.mkdir [{marker}]\n")
    with pytest.raises(AIDError, match="a.yaml cannot be read: could not determine a constructor"):
        load_study(str(tmp_path / "a.yaml"))
    assert not marker.exists()
    for text, message in (
        ("a: &a [*a]", "written out it has more than"),
        ("[" * 3000, "nested too deeply"),
    ):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(AIDError, match=f"a.yaml.* {message}"):
            load_study(str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("output: x\nscenes: {}\n")
    with pytest.raises(AIDError, match="has no section detectors, regimes, rules, experiments"):
        load_study(str(tmp_path / "a.yaml"))


@pytest.fixture
def fake_runs(monkeypatch):
    """Jobs that only sleep and are recorded; those in the returned set fail."""
    started, failing = [], set()

    def start(job):
        started.append(job.folder)
        code = f"import time; time.sleep(0.05); raise SystemExit({int(job.folder in failing)})"
        return subprocess.Popen([sys.executable, "-c", code])

    def collect(job):
        import os

        os.makedirs(job.folder, exist_ok=True)
        with open(os.path.join(job.folder, "results.json"), "w") as f:
            json.dump({"AP": 1.0}, f)

    monkeypatch.setattr(runner_module, "POLL", 0.01)
    monkeypatch.setattr(runner_module, "_check_configs", lambda jobs: None)
    monkeypatch.setattr(runner_module, "_render", lambda *args: None)
    monkeypatch.setattr(runner_module, "_start", start)
    monkeypatch.setattr(runner_module, "_last_line", lambda job: "its last words")
    monkeypatch.setattr(runner_module, "collect_results", collect)
    return started, failing


def test_jobs_run_once_and_after_their_dependencies(study, fake_runs):
    started, _ = fake_runs
    jobs = study().jobs
    assert run_study(study(), workers=3) == []
    assert sorted(started) == sorted(job.folder for job in jobs)
    position = {folder: i for i, folder in enumerate(started)}
    assert all(position[need] < position[job.folder] for job in jobs for need in job.needs)
    assert run_study(study(), workers=3) == []
    assert len(started) == len(jobs)  # every job was done already


def test_failed_job_skips_only_its_dependents(study, fake_runs, capsys):
    started, failing = fake_runs
    jobs = study().jobs
    failing.add("out/runs/choose/gap/net/aid_50/strength_2/seed_0")
    failed = run_study(study(), workers=2)
    expected = failing | {"out/runs/choose/gap/net/control_50/strength_2/seed_0"}
    assert {job.folder for job in failed} == expected
    assert len(started) == len(jobs) - 1
    failing.clear()
    assert run_study(study(), workers=2) == []
    assert len(started) == len(jobs) + 1


def test_run_without_an_evaluation_is_a_failed_one(study, fake_runs, monkeypatch, capsys):
    job = study("second").jobs[0]

    def collect(x):
        os.makedirs(x.folder, exist_ok=True)
        with open(os.path.join(x.folder, "metrics.json"), "w") as f:
            f.write('{"iteration": 1, "total_loss": 1.0}\n')
        collect_results(x)

    monkeypatch.setattr(runner_module, "collect_results", collect)
    failed = run_study(study("second"), workers=1)
    assert job in failed and len(failed) == len(study("second").jobs)
    assert f"failed: {job.folder}: metrics.json has no AP" in capsys.readouterr().out
