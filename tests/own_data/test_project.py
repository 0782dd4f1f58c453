"""tools/new_project.py: files, schedules, commands and errors; nothing is trained."""

import json
import os
import shlex

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.config import load_config
from aid.data import register_from_file
from aid.modeling.class_map import ClassMap
from aid_tools.own_data.coco_classes import SYNONYMS
from aid_tools.own_data.project import LIGHT


@pytest.fixture
def new_project(load_script, convert_dataset, labels, tmp_path, monkeypatch, capsys):
    """A function (arguments) -> (exit code, error or output), in tmp_path, with data of YOLO."""
    convert_dataset(labels("yolo"))
    main = load_script("tools/new_project.py").main
    monkeypatch.chdir(tmp_path)

    def run(*args) -> tuple[int, str]:
        try:
            main([*args] if "--images" in args else [*args, "--data", "converted"])
        except SystemExit as end:
            lines = capsys.readouterr().err.splitlines()
            return end.code, "\n".join(x for x in lines if x.startswith("error: "))
        return 0, capsys.readouterr().out

    return run


def load(tmp_path, name: str, project: str = "fleet"):
    return load_config(str(tmp_path / project / f"{name}.yaml"))


def test_files_are_those_of_a_run(new_project, tmp_path, repository):
    code, text = new_project("fleet")
    assert code == 0
    names = ["aid.yaml", "data.yaml", "register.py", "student.yaml", "teacher.yaml"]
    assert sorted(os.listdir(tmp_path / "fleet")) == names
    teacher, student, aid = (load(tmp_path, x) for x in ("teacher", "student", "aid"))
    assert [x.MODEL.META_ARCHITECTURE for x in (teacher, student, aid)] == [
        "GeneralizedRCNN",
        "GeneralizedRCNN",
        "AIDGeneralizedRCNN",
    ]
    assert [x.MODEL.RESNETS.DEPTH for x in (teacher, student, aid)] == [101, 18, 18]
    for cfg in (teacher, student, aid):
        assert cfg.DATASETS.TRAIN == ("fleet_train",) and cfg.DATASETS.TEST == ("fleet_val",)
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2 and cfg.SOLVER.IMS_PER_BATCH == 8
        assert cfg.INPUT.MIN_SIZE_TRAIN == (128, 160) and cfg.INPUT.MIN_SIZE_TEST == 160
    assert aid.TEACHER.CONFIG_FILE == str(tmp_path / "fleet/teacher.yaml")
    assert aid.TEACHER.WEIGHTS == os.path.join(teacher.OUTPUT_DIR, "model_final.pth")
    outputs = [f"output/fleet/{x}" for x in ("teacher", "student", "aid")]
    assert [x.OUTPUT_DIR for x in (teacher, student, aid)] == outputs
    commands = [shlex.split(x) for x in text.splitlines() if x.startswith("python ")]
    scripts = [os.path.realpath(x[1]) for x in commands]
    assert scripts == [f"{repository}/{x}" for x in [*["train_net.py"] * 3, "tools/report.py"]]
    configs = [x[x.index("--config-file") + 1] for x in commands[:3]]
    assert configs == [f"fleet/{x}.yaml" for x in ("teacher", "student", "aid")]
    assert commands[3][2:5] == outputs
    assert all(x[x.index("--register") + 1] == "fleet/register.py" for x in commands)


def test_registered_data_are_found_from_any_folder(new_project, tmp_path, monkeypatch):
    new_project("projects/fleet7")
    monkeypatch.chdir("/")
    register_from_file(str(tmp_path / "projects/fleet7/register.py"))
    try:
        assert len(DatasetCatalog.get("fleet7_train")) == 3
        assert MetadataCatalog.get("fleet7_train").thing_classes == ["forklift", "person"]
        assert len(DatasetCatalog.get("fleet7_val")) == 2
    finally:
        for name in ("fleet7_train", "fleet7_val"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "detector, section, arch, rate",
    [
        ("faster_rcnn", "ROI_HEADS", "GeneralizedRCNN", 0.02),
        ("retinanet", "RETINANET", "RetinaNet", 0.01),
        ("gfl", "GFL", "GFL", 0.01),
        ("fcos", "FCOS", "FCOS", 0.01),
    ],
)
def test_every_family_has_its_keys(detector, section, arch, rate, new_project, tmp_path):
    assert new_project("fleet", "--detector", detector, "--batch", "12")[0] == 0
    aid = load(tmp_path, "aid")
    assert aid.MODEL.META_ARCHITECTURE == f"AID{arch}"
    assert load(tmp_path, "teacher").MODEL.META_ARCHITECTURE == arch
    assert aid.MODEL[section].NUM_CLASSES == 2
    assert aid.SOLVER.BASE_LR == pytest.approx(rate * 12 / 16)


def test_schedule_is_in_epochs_of_images_with_objects(new_project, tmp_path, capsys):
    # 2 of the 3 training images have objects: an epoch is one iteration of 2 images.
    assert new_project("fleet", "--epochs", "36", "--gpus", "2", "--batch", "2")[0] == 0
    student, teacher = load(tmp_path, "student").SOLVER, load(tmp_path, "teacher").SOLVER
    assert (student.MAX_ITER, student.STEPS) == (36, (24, 33))
    assert (teacher.MAX_ITER, teacher.STEPS) == (72, (48, 66))
    assert student.CHECKPOINT_PERIOD == 3 and student.WARMUP_ITERS == 3
    assert load(tmp_path, "student").TEST.EVAL_PERIOD == 9
    for gpus, batch in ((0, 8), (1, 8), (3, 9), (4, 8), (16, 16)):
        new_project(f"fleet{gpus}", "--gpus", str(gpus), "--epochs", "1")
        cfg = load(tmp_path, "student", f"fleet{gpus}")
        assert cfg.SOLVER.IMS_PER_BATCH == batch and cfg.SOLVER.MAX_ITER == 1
    text = (tmp_path / "fleet1" / "data.yaml").read_text()
    assert "# 1 epoch of 2 images with objects; an epoch is 1 iteration.\n" in text


def test_small_datasets_are_trained_long_enough(new_project, load_script, tmp_path, capsys):
    main = load_script("tools/new_project.py").main
    main(["fleet", "--data", "converted"])
    assert "warning" not in capsys.readouterr().err
    assert load(tmp_path, "student").SOLVER.MAX_ITER == 1000  # 12 epochs would be 12 iterations
    main(["fleet2", "--data", "converted", "--epochs", "12"])
    warning = (
        "warning: the schedule has 12 iterations, 12 epochs of 2 images, which is short for a "
    )
    assert warning + "detector: consider --epochs 1000 or more" in capsys.readouterr().err


def test_coco_teacher_has_a_map_of_equal_names(new_project, tmp_path):
    code, text = new_project("fleet", "--teacher", "coco")
    assert code == 0 and "teacher.yaml" not in text and text.count("train_net.py") == 2
    aid = load(tmp_path, "aid")
    assert aid.TEACHER.CLASS_MAP == ["person: person"] and aid.TEACHER.EVAL_FIRST
    assert aid.TEACHER.CONFIG_FILE == "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"
    text = (tmp_path / "fleet/aid.yaml").read_text()
    assert '# No class of COCO was found for: ["forklift"]\n' in text
    coco = MetadataCatalog.get("coco_2017_val").thing_classes
    mapped = ClassMap.from_entries(aid.TEACHER.CLASS_MAP, coco, ["forklift", "person"])
    assert mapped.targets[0] == 1 and set(mapped.targets[1:]) == {None}


@pytest.mark.parametrize("student", LIGHT)
def test_teacher_of_a_light_student_has_its_fpn_and_heads(student, new_project, tmp_path):
    new_project("fleet", "--student", student)
    teacher, plain, aid = (load(tmp_path, x) for x in ("teacher", "student", "aid"))
    assert teacher.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
    for cfg in (plain, aid):
        assert cfg.MODEL.BACKBONE.NAME == "build_torchvision_fpn_backbone"
        assert cfg.MODEL.WEIGHTS == f"torchvision://{cfg.MODEL.TORCHVISION.NAME}"
        for key in ("FPN", "ROI_BOX_HEAD", "RPN", "ROI_HEADS"):
            assert cfg.MODEL[key] == teacher.MODEL[key]
    assert aid.MODEL.FPN.OUT_CHANNELS == 128 and aid.TEACHER.INHERIT


def test_light_student_inherits_nothing_of_a_coco_teacher(new_project, tmp_path):
    for name, options, inherits in (
        ("fleet", [], True),
        ("light", ["--student", "MobileNetV3L"], False),
    ):
        new_project(name, "--teacher", "coco", *options)
        assert load(tmp_path, "aid", name).TEACHER.INHERIT == inherits


def test_coco_names_match_in_any_spelling(new_project, tmp_path):
    for split in ("train", "val"):
        path = tmp_path / f"converted/{split}.json"
        text = path.read_text().replace('"forklift"', '"Traffic_Light"')
        path.write_text(text.replace('"person"', '"Person"'))
    assert new_project("fleet", "--teacher", "coco", "--detector", "retinanet")[0] == 0
    entries = load(tmp_path, "aid").TEACHER.CLASS_MAP
    assert entries == ["traffic light: Traffic_Light", "person: Person"]


def rename(tmp_path, **names: str) -> None:
    """Rename classes of the converted data."""
    for split in ("train", "val"):
        path = tmp_path / f"converted/{split}.json"
        content = json.loads(path.read_text())
        for category in content["categories"]:
            category["name"] = names.get(category["name"], category["name"])
        path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "first, second, mapped, other",
    [("Car", "car", "car", "Car"), ("car", "Car", "car", "Car"), ("Car", "CAR", "Car", "CAR")],
)
def test_coco_class_is_mapped_once(first, second, mapped, other, new_project, tmp_path):
    rename(tmp_path, forklift=first, person=second)
    assert new_project("fleet", "--teacher", "coco")[0] == 0
    assert load(tmp_path, "aid").TEACHER.CLASS_MAP == [f"car: {mapped}"]
    note = f'# Left out for one with the same class of COCO: ["{other}"]\n'
    assert note in (tmp_path / "fleet/aid.yaml").read_text()


def warnings_of(load_script, capsys, *args) -> list[str]:
    """Warnings of tools/new_project.py with a teacher of COCO."""
    load_script("tools/new_project.py").main([*args, "--data", "converted", "--teacher", "coco"])
    return [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")]


def test_classes_without_a_teacher_are_named(new_project, load_script, tmp_path, capsys):
    rename(tmp_path, forklift="cyclist")
    assert warnings_of(load_script, capsys, "fleet") == [
        "warning: the teacher does not know: cyclist. If a class of COCO means the same, add it to "
        'TEACHER.CLASS_MAP in fleet/aid.yaml as in "person: pedestrian", COCO\'s name first'
    ]
    rename(tmp_path, cyclist="car")
    assert warnings_of(load_script, capsys, "other") == []
    rename(tmp_path, car="Person")
    (warning,) = warnings_of(load_script, capsys, "third")
    assert "the teacher does not know: Person. Another class has the same class" in warning


@pytest.mark.parametrize("name, match", SYNONYMS.items())
def test_classes_of_the_same_meaning_are_mapped(name, match, new_project, tmp_path):
    rename(tmp_path, forklift=name.title(), person="pallet")
    assert new_project("fleet", "--teacher", "coco")[0] == 0
    entries = load(tmp_path, "aid").TEACHER.CLASS_MAP
    assert entries == [f"{match}: {name.title()}"]
    coco = MetadataCatalog.get("coco_2017_val").thing_classes
    ClassMap.from_entries(entries, coco, [name.title(), "pallet"])


def test_equal_name_goes_before_equal_meaning(new_project, tmp_path):
    rename(tmp_path, forklift="pedestrian", person="Person")
    assert new_project("fleet", "--teacher", "coco")[0] == 0
    assert load(tmp_path, "aid").TEACHER.CLASS_MAP == ["person: Person"]


@pytest.fixture
def with_test(new_project, tmp_path):
    """The file of a test split, added to the converted data."""
    data = tmp_path / "converted"
    content = json.loads((data / "val.json").read_text())
    train = json.loads((data / "train.json").read_text())
    # The last training image becomes a test image without objects, the first of val one with some.
    moved = train["images"].pop()
    (data / "train.json").write_text(json.dumps(train))
    image = content["images"].pop(0)
    of_image = [x for x in content["annotations"] if x["image_id"] == image["id"]]
    content["annotations"] = [x for x in content["annotations"] if x not in of_image]
    (data / "val.json").write_text(json.dumps(content))
    test = content | {"images": [image, moved | {"id": 99}], "annotations": of_image}
    (data / "test.json").write_text(json.dumps(test))
    return data / "test.json"


def test_test_split_is_registered_and_evaluated(new_project, with_test, tmp_path):
    code, text = new_project("fleet8")
    assert code == 0
    *_, comment, command = text.splitlines()
    assert comment == "# Evaluate the distilled student on the test split:"
    _, script, *args = shlex.split(command)
    assert script.endswith("train_net.py") and args == [
        *(
            "--register",
            "fleet8/register.py",
            "--config-file",
            "fleet8/aid.yaml",
            "--num-gpus",
            "1",
        ),
        *("--eval-only", "MODEL.WEIGHTS", "output/fleet8/aid/model_final.pth"),
        *("DATASETS.TEST", '("fleet8_test",)', "OUTPUT_DIR", "output/fleet8/test"),
    ]
    register_from_file(str(tmp_path / "fleet8/register.py"))
    try:
        assert len(DatasetCatalog.get("fleet8_test")) == 2
        assert MetadataCatalog.get("fleet8_test").thing_classes == ["forklift", "person"]
    finally:
        for name in ("fleet8_train", "fleet8_val", "fleet8_test"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_test_split_is_checked(new_project, load_script, with_test, tmp_path, capsys):
    content = json.loads(with_test.read_text())
    train = json.loads((with_test.parent / "train.json").read_text())
    images = [*content["images"], train["images"][0] | {"id": 98}]
    with_test.write_text(json.dumps(content | {"images": images}))
    assert "1 of 3 images in converted/test.json are in converted/train" in new_project("fleet")[1]
    with_test.write_text(json.dumps(content).replace('"person"', '"walker"'))
    assert "class lists differ: class 1 is person in" in new_project("fleet")[1]
    with_test.write_text(json.dumps(content | {"annotations": []}))
    load_script("tools/new_project.py").main(["fleet", "--data", "converted"])
    printed = capsys.readouterr()
    assert "warning: converted/test.json has no object: it is left out" in printed.err
    assert "fleet_test" not in printed.out + (tmp_path / "fleet/register.py").read_text()


def test_every_command_has_a_comment_that_says_what_it_does(new_project):
    lines = new_project("fleet")[1].splitlines()
    assert (
        lines[0].startswith("# The files of the project are in fleet.") and "--dry-run" in lines[1]
    )
    assert lines[2::2] == [
        "# Train the teacher:",
        "# Train the plain student, for comparison:",
        "# Train the distilled student, which needs the teacher's weights:",
        "# Compare them:",
    ]
    assert all(x.startswith("python ") for x in lines[3::2])


def test_comment_on_the_size_of_images_is_that_of_the_rule(new_project, tmp_path):
    new_project("fleet")
    words = " ".join((tmp_path / "fleet/data.yaml").read_text().replace("#", "").split())
    sentence = (
        "The limit of the longer side is 1333, as for COCO, or that of the median image at this "
        "size if that is more, and more than twice the shorter side."
    )
    assert sentence in words


def test_class_names_of_any_characters_are_written(new_project, tmp_path):
    name = "Person\U0001f6b6"
    rename(tmp_path, person=name, forklift="Forklift\U0001f69c")
    assert new_project("fleet", "--teacher", "coco")[0] == 0
    assert load(tmp_path, "aid").TEACHER.CLASS_MAP == [f"person: {name}"]


def test_given_files_are_used(new_project, tmp_path):
    data = tmp_path / "converted"
    for name, target in (("train.json", "a.json"), ("val.json", "b.json"), ("images", "photos")):
        os.rename(data / name, tmp_path / target)
    files = ("--train-json", "a.json", "--val-json", "b.json", "--images", "photos")
    assert new_project("fleet", *files)[0] == 0
    assert "path('../photos')" in (tmp_path / "fleet/register.py").read_text()


def test_errors_are_one_line(new_project, tmp_path):
    (tmp_path / "there").mkdir()
    for args, message in (
        (("there",), "there exists: choose a new name, or remove it"),
        (("kitti",), "kitti_train is a dataset already: choose another name"),
        (("a b",), "NAME a b: it may have letters, digits and . _ - only"),
        (("fleet", "--batch", "9", "--gpus", "2"), "--batch 9 is not divisible by --gpus 2"),
        (("fleet", "--epochs", "0"), "--epochs and --batch must be 1 or more"),
        (("fleet", "--batch", "-2"), "--epochs and --batch must be 1 or more"),
        (("fleet", "--batch", "0"), "--epochs and --batch must be 1 or more"),
        (("fleet", "--teacher", "coco", "--detector", "gfl"), "model zoo has no gfl detector"),
        (("fleet", "--images", "x"), "give either --data, or --train-json, --val-json and"),
    ):
        code, error = new_project(*args)
        assert code == 2 and message in error
    path = tmp_path / "converted/val.json"
    text = path.read_text()
    path.write_text(text.replace('"person"', '"walker"'))
    assert "class lists differ: class 1 is person in" in new_project("fleet")[1]
    path.write_text(text.replace('"width": 120', '"width": 121'))
    error = new_project("fleet")[1]
    assert "val.json: " in error and "has 121x" in error and "in the file 120x" in error
    path.write_text(text.replace("d.png", "gone.png"))
    assert "lacks 1 of 2 images in converted/val.json" in new_project("fleet")[1]
    content = json.loads(text)
    path.write_text(json.dumps(content | {"annotations": []}))
    assert "converted/val.json has no object to evaluate: add some" in new_project("fleet")[1]
    path.unlink()
    assert "converted/val.json does not exist: convert the labels" in new_project("fleet")[1]
    assert not (tmp_path / "fleet").exists()


def test_images_in_both_training_and_validation_are_refused(new_project):
    files = ["--train-json", "converted/train.json", "--images", "converted/images"]
    code, error = new_project("fleet", *files, "--val-json", "converted/train.json")
    assert code == 2 and "3 of 3 images in converted/train.json are in converted/train" in error


def test_output_of_another_project_of_the_name_is_warned_of(
    new_project, load_script, tmp_path, capsys
):
    (tmp_path / "output/fleet").mkdir(parents=True)
    load_script("tools/new_project.py").main(["sub/fleet", "--data", "converted"])
    warning = "warning: output/fleet exists, perhaps of another project called fleet: move it away"
    assert warning in capsys.readouterr().err


def test_coco_teacher_without_a_common_class_is_refused(new_project, tmp_path):
    for split in ("train", "val"):
        path = tmp_path / f"converted/{split}.json"
        path.write_text(path.read_text().replace('"person"', '"pallet"'))
    code, error = new_project("fleet", "--teacher", "coco")
    assert code == 2 and "none of the classes forklift, pallet: train a teacher, or map" in error
    assert not (tmp_path / "fleet").exists()


def test_odd_folder_names_are_quoted(new_project, tmp_path):
    code, text = new_project("pro jects/fleet")
    assert code == 0 and "'pro jects/fleet/register.py'" in text
    with open(tmp_path / "pro jects/fleet/aid.yaml") as f:
        assert yaml.safe_load(f)["OUTPUT_DIR"] == "output/fleet/aid"
    assert load(tmp_path, "aid", "pro jects/fleet").MODEL.RESNETS.DEPTH == 18
