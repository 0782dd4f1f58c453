"""Loading of config files: bases, values and errors."""

import json
import shlex

import pytest

from aid.config import check_key, load_config
from aid.config.limits import read_limited
from aid.modeling.teacher import load_teacher_config
from aid.utils.errors import AIDError


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: [1, 2\n", "not plain YAML"),
        ("AID:\n  APLHA: 0.1\n", "Non-existent config key: AID.APLHA"),
        ("_BASE_: gone.yaml\n", "gone.yaml"),
        ("", "no mapping of keys"),
        ("- AID\n", "no mapping of keys"),
        ("AID.ALPHA\n", "no mapping of keys"),
        ("AID: 5\n", "AID"),
        ("TEACHER: [teacher.yaml]\n", "TEACHER"),
        ("_BASE_: 5\n", "_BASE_ is no path"),
        ("_BASE_: {a: b}\n", "_BASE_ is no path"),
        ("_BASE_: [5]\n", "_BASE_ is no path"),
    ],
)
def test_malformed_file_is_a_one_line_error(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(AIDError, match=message) as error:
        load_config(str(path))
    assert "bad.yaml" in str(error.value) and "\n" not in str(error.value)


def nested(opening: str, closing: str, levels: int = 9) -> str:
    """YAML whose every line has nine aliases of the previous one."""
    lines = [f"a0: &a0 {opening} AID.ALPHA: 1 {closing}"]
    for k in range(1, levels):
        lines.append(f"a{k}: &a{k} {opening} {', '.join(f'*a{k - 1}' for _ in range(9))} {closing}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: {MASK_ON: True}\nVERSION: 2\nMODEL: {WEIGHTS: a.pth}\n", "line 3: MODEL is given"),
        ("AID:\n  ALPHA: 0.2\n  CONSTANT: 0.5\n  ALPHA: 0.3\n", "line 4: ALPHA is given twice"),
        ("TEACHER: {CLASS_MAP: [{a: 1, a: 2}]}\n", "line 1: a is given twice"),
    ],
)
def test_key_given_twice_is_refused(text, message, tmp_path):
    """YAML would keep the last one, and drop a whole section without a word."""
    (tmp_path / "file.yaml").write_text("_BASE_: base.yaml\n")
    (tmp_path / "base.yaml").write_text(text)
    with pytest.raises(AIDError, match=f"base.yaml, {message}"):
        load_config(str(tmp_path / "file.yaml"))


def test_equal_keys_of_different_sections_are_accepted(tmp_path):
    text = "a: &a {<<: {k: 1}, <<: {m: 2}, k: 3}\nb: [*a, *a, {k: 1}]\nc: {1: x, '1': y}\n"
    (tmp_path / "file.yaml").write_text(text)
    with open(tmp_path / "file.yaml") as f:
        assert read_limited("file.yaml", f) == text


MERGED = ["a0: &a0 {k: 1}"]
MERGED += [f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}" for k in range(1, 9)]


@pytest.mark.parametrize(
    "text, message",
    [
        (nested("[", "]"), "aliases .* written out it has more than 262144 characters"),
        ("\n".join(MERGED), "aliases .* written out"),
        ("a: &a [*a]\n", "aliases .* written out"),
        ("a: &a {b: *a}\n", "aliases .* written out"),
        (f"a: &a {'x' * 9000}\nb: [{', '.join(['*a'] * 50)}]\n", "aliases .* written out"),
        ("#" * (2**18 + 1), "has more than 262144 characters: a config"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a: &a " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_excessive_size_or_nesting_is_refused(text, message, tmp_path):
    (tmp_path / "file.yaml").write_text("_BASE_: base.yaml\n")
    (tmp_path / "base.yaml").write_text(text)
    with pytest.raises(AIDError, match=message) as error:
        load_config(str(tmp_path / "file.yaml"))
    assert ".yaml" in str(error.value) and "\n" not in str(error.value)


def test_aliases_and_shared_bases_are_accepted(tmp_path):
    (tmp_path / "root.yaml").write_text("AID: {ALPHA: 0.2}\n")
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("_BASE_: root.yaml\n")
    text = "_BASE_: [a.yaml, b.yaml]\nDATASETS: {TRAIN: &sets [x, y], TEST: *sets}\n"
    (tmp_path / "file.yaml").write_text(text)
    for _ in range(30):  # the limit applies to each load
        cfg = load_config(str(tmp_path / "file.yaml"))
    assert cfg.AID.ALPHA == 0.2 and cfg.DATASETS.TEST == ("x", "y")


def test_too_many_or_cyclic_bases_are_refused(tmp_path):
    def write(*names):
        for name, base in zip(names, names[1:], strict=False):
            (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}.yaml\n")
        (tmp_path / f"{names[-1]}.yaml").write_text("VERSION: 2\n")

    chain = [f"link_{k}" for k in range(50)]
    write(*chain)
    load_config(str(tmp_path / "link_0.yaml"))
    write("one_more", *chain)
    with pytest.raises(AIDError, match="one_more.yaml: its _BASE_ .* more than 50 files"):
        load_config(str(tmp_path / "one_more.yaml"))
    for k in range(7):  # ten million files
        names = ", ".join([f"fan_{k + 1}.yaml"] * 10)
        (tmp_path / f"fan_{k}.yaml").write_text(f"_BASE_: [{names}]\n")
    (tmp_path / "fan_7.yaml").write_text("VERSION: 2\n")
    with pytest.raises(AIDError, match="fan_0.yaml: its _BASE_ .* more than 50 files"):
        load_config(str(tmp_path / "fan_0.yaml"))
    write("to", "and_fro")
    (tmp_path / "and_fro.yaml").write_text("_BASE_: to.yaml\n")
    with pytest.raises(AIDError, match="to.yaml: its _BASE_ leads back to itself"):
        load_config(str(tmp_path / "to.yaml"))


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir"])
@pytest.mark.parametrize("at", ["file", "base", "base of a base"])
def test_file_that_runs_code_is_refused(at, tag, repository, tmp_path):
    hostile = f"OUTPUT_DIR: !!python/{tag} [{tmp_path / 'marker'}]\n"
    texts = {"file": "_BASE_: base.yaml\n", "base": "_BASE_: [root.yaml]\n", "root": "VERSION: 2\n"}
    texts[{"file": "file", "base": "base", "base of a base": "root"}[at]] = hostile
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(AIDError, match="file.yaml: not plain YAML.*object tags are refu") as error:
        load_config(str(tmp_path / "file.yaml"))
    assert "\n" not in str(error.value) and not (tmp_path / "marker").exists()
    with pytest.raises(AIDError, match="command line options"):
        load_config(f"{repository}/configs/Base-GFL.yaml", ["TEST.AUG", hostile])
    assert not (tmp_path / "marker").exists()


def test_invalid_options_and_missing_file_are_refused(tmp_path):
    with pytest.raises(AIDError, match="nowhere.yaml does not exist"):
        load_config("nowhere.yaml")
    path = tmp_path / "good.yaml"
    path.write_text("AID:\n  ALPHA: 0.2\n")
    assert load_config(str(path)).AID.ALPHA == 0.2
    assert load_config(str(path), ["AID.ALPHA", "0.3"]).AID.ALPHA == 0.3
    for opts in (["AID.ALPHA"], ["AID.APLHA", "1"], ["AID.ALPHA", "much"]):
        with pytest.raises(AIDError, match="command line options: "):
            load_config(str(path), opts)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MIN_SIZE_TEST", "-5", "-5: give pixels, or 0 to keep the size"),
        ("MIN_SIZE_TRAIN", "(64, -1)", r"\(64, -1\): give pixels"),
        ("MAX_SIZE_TRAIN", "0", "0: give the largest length"),
        ("MAX_SIZE_TEST", "-1", "-1: give the largest length"),
    ],
)
def test_sizes_that_no_image_can_have_are_refused(key, value, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("VERSION: 2\n")
    with pytest.raises(AIDError, match=f"INPUT.{key} is {message}"):
        load_config(str(path), [f"INPUT.{key}", value])
    unresized = ["INPUT.MIN_SIZE_TEST", "0", "INPUT.MAX_SIZE_TEST", "0"]
    assert load_config(str(path), unresized).INPUT.MAX_SIZE_TEST == 0


@pytest.mark.parametrize("version", ["", "VERSION: 1\n", "VERSION: 2\n"])
def test_whole_number_is_taken_for_a_float(version, tmp_path):
    path = tmp_path / "whole.yaml"
    path.write_text(f"{version}AID:\n  ALPHA: 3\nDISTILLATION:\n  PKD:\n    WEIGHT: '7'\n")
    cfg = load_config(str(path), ["DISTILLATION.BALANCE", "10", "SOLVER.BASE_LR", 1])
    values = (cfg.AID.ALPHA, cfg.DISTILLATION.PKD.WEIGHT, cfg.DISTILLATION.BALANCE)
    assert values == (3, 7, 10) and all(type(x) is float for x in (*values, cfg.SOLVER.BASE_LR))
    assert cfg.SOLVER.BASE_LR == 1 and cfg.AID.CONSTANT == 1


@pytest.mark.parametrize(
    "key, value, message, spelling",
    [
        ("DATASETS.UNLABELED", "un", "'un', but must be a list", """'("un",)'"""),
        ("DATASETS.UNLABELED", "(un,)", "'(un,)', but must be a list", """'("un",)'"""),
        ("DATASETS.TRAIN", "a,b", "'a,b', but must be a list", """'("a", "b")'"""),
        ("DATASETS.TEST", "", "'', but must be a list", "'()'"),
        ("DISTILLATION.LOSSES", "PKDLoss", "'PKDLoss', but must be a list", """'["PKDLoss"]'"""),
        ("DISTILLATION.LEVELS", "[a, b]", "'[a, b]', but must be a list", """'["a", "b"]'"""),
        ("INPUT.MIN_SIZE_TRAIN", "800", "800, but must be a list", "'(800,)'"),
        ("TEACHER.INHERIT", "true", "'true', but must be True or False", "True"),
        ("TEACHER.INHERIT", "0", "0, but must be True or False", "False"),
        ("TEACHER.INHERIT", "perhaps", "'perhaps', but must be True or False", ""),
        ("SOLVER.MAX_ITER", "1e3", "1000.0, but must be a whole number", "1000"),
        ("SOLVER.MAX_ITER", "2.5", "2.5, but must be a whole number", ""),
        ("AID.ALPHA", "much", "'much', but must be a number", ""),
        ("OUTPUT_DIR", "5", "5, but must be a text", """'"5"'"""),
        ("AID", "5", "5, but is a section: set keys in it, such as AID.WEIGHTING", ""),
    ],
)
def test_value_of_a_wrong_type_is_answered_by_the_right_spelling(
    key, value, message, spelling, tmp_path
):
    path, (*sections, name) = tmp_path / "run.yaml", key.split(".")

    def write(value: str) -> str:
        opening = "".join(f"{x}: {{" for x in sections)
        path.write_text(f"{opening}{name}: {value}{'}' * len(sections)}")
        return str(path)

    expected = f"{key} is {message}{': write ' if spelling else ''}{spelling}"
    with pytest.raises(AIDError) as error:
        load_config(write(json.dumps(value)))
    assert str(error.value) == f"{path}: {expected}"
    path.write_text("VERSION: 2\n")
    with pytest.raises(AIDError) as error:
        load_config(str(path), [key, value])
    assert str(error.value) == f"command line options: {expected}"
    if spelling:
        load_config(str(path), [key, *shlex.split(spelling)])
        load_config(write(spelling))


def test_section_in_place_of_a_value_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("AID: {ALPHA: {BETA: 1}}\n")
    with pytest.raises(AIDError, match="run.yaml: AID.ALPHA is a section, but must be a number$"):
        load_config(str(tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("DISTILATION.BALANCE", "DISTILLATION.BALANCE"),
        ("distillation.balance", "DISTILLATION.BALANCE"),
        ("DISTILLATION.BALANCED", "DISTILLATION.BALANCE"),
        ("AID.COEFICIENTS.CLSS", "AID.COEFFICIENTS.CLS"),
        ("TEACHER.WEIGHT", "TEACHER.WEIGHTS"),
        ("DISTILLATION.BOGUS", None),
        ("QQ.ALPHA", None),
    ],
)
def test_nearest_key_is_suggested(key, nearest, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("VERSION: 2\n")
    hint = rf" \(did you mean {nearest}\?\)$" if nearest else "$"
    with pytest.raises(AIDError, match=f"options: Non-existent config key: {key}{hint}"):
        load_config(str(path), [key, "1"])
    sections = key.split(".")
    path.write_text("{" + ": {".join(sections) + ": 1" + "}" * len(sections))
    with pytest.raises(AIDError, match="run.yaml: Non-existent config key: ") as error:
        load_config(str(path))
    assert ("did you mean" in str(error.value)) == (nearest is not None)


def test_file_of_nearly_the_same_name_is_suggested(tmp_path, monkeypatch):
    (tmp_path / "retinanet_R18.yaml").write_text("_BASE_: bace.yaml\n")
    (tmp_path / "base.yaml").write_text("VERSION: 2\n")
    with pytest.raises(AIDError, match=f"does not exist .did you mean {tmp_path}/retinanet_R18.ya"):
        load_config(str(tmp_path / "retinanet_R81.yaml"))
    message = (
        f"{tmp_path}/retinanet_R18.yaml: _BASE_ names {tmp_path}/bace.yaml, which does not exist "
        f"(did you mean {tmp_path}/base.yaml?)"
    )
    (tmp_path / "derived.yaml").write_text("_BASE_: [base.yaml, retinanet_R18.yaml]\n")
    for name in ("retinanet_R18.yaml", "derived.yaml"):
        with pytest.raises(AIDError) as error:
            load_config(str(tmp_path / name))
        assert str(error.value) == message
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AIDError, match=r"does not exist \(did you mean base.yaml\?\): check"):
        load_config("bas.yaml")
    with pytest.raises(AIDError, match=r"no/such.yaml does not exist: check"):
        load_config("no/such.yaml")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    with pytest.raises(
        AIDError, match=r"run is a folder \(did you mean run/config.yaml\?\): check"
    ):
        load_config("run")
    with pytest.raises(AIDError, match=r"2x.yaml was .*mean COCO-Detection/retinanet_R_50"):
        load_teacher_config("COCO-Detection/retinanet_R_50_FPN_2x.yaml")


def test_two_merged_sections_are_no_repeated_key(tmp_path):
    text = "SEED: 7\nMODEL: &same {WEIGHTS: ''}\nTEACHER: {<<: *same, <<: *same}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert load_config(str(tmp_path / "a.yaml")).SEED == 7


def test_home_folder_in_output_dir_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text('OUTPUT_DIR: "~/x"\n')
    assert load_config(str(tmp_path / "run.yaml")).OUTPUT_DIR == f"{tmp_path}/x"
    assert load_config(str(tmp_path / "run.yaml"), ["OUTPUT_DIR", "a/~"]).OUTPUT_DIR == "a/~"
    cfg = load_config(str(tmp_path / "run.yaml"), ["TEACHER.CACHE", "~/cache"])
    assert cfg.TEACHER.CACHE == f"{tmp_path}/cache"


def test_teacher_config_is_found_beside_the_student_config(tmp_path):
    (tmp_path / "teacher.yaml").write_text("VERSION: 2\n")
    path = tmp_path / "student.yaml"
    path.write_text("TEACHER:\n  CONFIG_FILE: teacher.yaml\n")
    assert load_config(str(path)).TEACHER.CONFIG_FILE == str(tmp_path / "teacher.yaml")
    name = "COCO-Detection/retinanet_R_101_FPN_3x.yaml"  # names of the model zoo are kept
    assert load_config(str(path), ["TEACHER.CONFIG_FILE", name]).TEACHER.CONFIG_FILE == name


def test_teacher_path_is_relative_to_the_file_that_names_it(tmp_path):
    """A derived config keeps the teacher of its base, despite a file of that name beside it."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "teacher.yaml").write_text("VERSION: 2\n")
    (tmp_path / "base" / "student.yaml").write_text("TEACHER:\n  CONFIG_FILE: teacher.yaml\n")
    (tmp_path / "teacher.yaml").write_text("VERSION: 2\n")
    path = tmp_path / "derived.yaml"
    path.write_text("_BASE_: base/student.yaml\nAID:\n  ALPHA: 0.5\n")
    cfg = load_config(str(path))
    assert cfg.TEACHER.CONFIG_FILE == str(tmp_path / "base" / "teacher.yaml")
    assert cfg.AID.ALPHA == 0.5
    beside = load_config(str(path), ["TEACHER.CONFIG_FILE", "teacher.yaml"])
    assert beside.TEACHER.CONFIG_FILE == str(tmp_path / "teacher.yaml")


def test_paths_of_more_teachers_are_resolved_like_the_first(tmp_path):
    (tmp_path / "base").mkdir()
    for folder in ("base", "."):
        (tmp_path / folder / "teacher.yaml").write_text("VERSION: 2\n")
    key, named = "MORE_CONFIG_FILES", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    for written in (f"['teacher.yaml', '{named}']", f"('teacher.yaml', '{named}')"):
        (tmp_path / "base" / "student.yaml").write_text(f"TEACHER:\n  {key}: {written}\n")
        path = tmp_path / "student.yaml"
        path.write_text("_BASE_: base/student.yaml\n")
        cfg = load_config(str(path))
        assert list(cfg.TEACHER[key]) == [str(tmp_path / "base" / "teacher.yaml"), named]
        cfg = load_config(str(path), [f"TEACHER.{key}", "['teacher.yaml']"])
        assert list(cfg.TEACHER[key]) == [str(tmp_path / "teacher.yaml")]
    for invalid in ("3", "teacher.yaml"):
        path.write_text(f"TEACHER:\n  {key}: {invalid}\n")
        with pytest.raises(AIDError, match=f"TEACHER.{key} is .*, but must be a list: write"):
            load_config(str(path))


def test_removed_keys_are_accepted_in_files_and_studies(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("DISTILLATION: {RESPONSE: {WEIGHT: 1.0, CLS_WEIGHT: 3.0}}\nVERSION: 2\n")
    cfg = load_config(str(path))
    assert cfg.DISTILLATION.RESPONSE.CLS_WEIGHT == 3 and "WEIGHT" not in cfg.DISTILLATION.RESPONSE
    for key in ("DISTILLATION.RELATIVE_TEMPERATURE", "AID.MOMENTUM"):
        assert load_config(str(path), [key, 1.0]) == cfg
        check_key(key, "study.yaml")
