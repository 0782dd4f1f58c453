"""Split files of KITTI: random splits, given splits and errors."""

import pytest
from PIL import Image

CAR = "Car 0 0 0 1 1 9 9 1 1 1 0 0 9 0\n"


@pytest.fixture
def prepare(load_script, tmp_path, capsys):
    """A function (options) -> (exit code, error line or output), run on a root of 50 images.

    Image i has i % 3 cars.
    """
    main = load_script("datasets/prepare_kitti.py").main
    for folder in ("image_2", "label_2"):
        (tmp_path / "training" / folder).mkdir(parents=True)
    for i in range(50):
        Image.new("L", (16, 16)).save(tmp_path / f"training/image_2/{i:06}.png")
        (tmp_path / f"training/label_2/{i:06}.txt").write_text(CAR * (i % 3))

    def run(*options: str) -> tuple[int, str]:
        try:
            main(["--root", str(tmp_path), *options])
        except SystemExit as end:
            printed = capsys.readouterr().err.splitlines()
            return end.code, "\n".join(x for x in printed if x.startswith("error: "))
        return 0, capsys.readouterr().out

    return run


def read(tmp_path, split):
    return (tmp_path / "ImageSets" / f"{split}.txt").read_text().split()


def test_random_split_is_complete_and_depends_on_the_seed(prepare, tmp_path):
    assert prepare()[0] == 0
    train, val = read(tmp_path, "train"), read(tmp_path, "val")
    assert (len(train), len(val)) == (40, 10)
    assert sorted(train + val) == read(tmp_path, "trainval") == [f"{i:06}" for i in range(50)]
    prepare("--force")
    assert read(tmp_path, "val") == val
    prepare("--force", "--seed", "1")
    assert read(tmp_path, "val") != val


def test_existing_files_are_kept_without_force(prepare, tmp_path):
    prepare()
    before = read(tmp_path, "train")
    code, error = prepare("--seed", "1")
    assert code == 2 and "train.txt exists: --force replaces" in error
    assert read(tmp_path, "train") == before


def test_given_lists_are_checked_and_used(prepare, tmp_path):
    train, val = tmp_path / "t", tmp_path / "v"
    train.write_text("000004\n000002\n")
    val.write_text("000003\n")
    lists = ["--train-list", str(train), "--val-list", str(val)]
    assert prepare(*lists)[0] == 0
    assert read(tmp_path, "train") == ["000004", "000002"] and read(tmp_path, "val") == ["000003"]
    for text, message in (
        ("000002\n", "t both list 000002"),
        ("000003\n000003\n", "v lists image 000003 twice"),
        ("../../000003\n", "v, line 1: '../../000003' is no image name"),
        ("000077\n", "v lists 1 image not in training/: 000077"),
        ("", "v is empty"),
    ):
        val.write_text(text)
        code, error = prepare("--force", *lists)
        assert code == 2 and message in error and "\n" not in error
    assert prepare("--train-list", str(train))[0] == 2
    assert prepare(*lists, "--seed", "3")[0] == 2


def test_missing_files_and_empty_splits_are_refused(prepare, tmp_path):
    for i in range(11, 33):
        (tmp_path / f"training/label_2/{i:06}.txt").unlink()
    (tmp_path / "training/label_2/000099.txt").touch()
    code, error = prepare()
    assert code == 2 and "22 images without label (000011, 000012, " in error
    assert "000030, and 2 more), 1 label without image (000099): unpack both" in error
    code, error = prepare("--root", str(tmp_path / "gone"))
    assert code == 2 and "gone/training/image_2 does not exist" in error
    (tmp_path / "training/label_2/000099.txt").unlink()
    for i in range(11, 33):
        (tmp_path / f"training/label_2/{i:06}.txt").touch()
    for share in ("1", "0", "nan", "-3"):
        assert "leaves a split empty" in prepare("--val-share", share)[1]


def test_broken_images_and_labels_are_refused(prepare, tmp_path):
    for i in (7, 9):
        (tmp_path / f"training/image_2/{i:06}.png").write_bytes(b"no picture")
    code, error = prepare()
    assert code == 2 and "2 images cannot be read (000007, 000009): unpack them again" in error
    (tmp_path / "training/label_2/000003.txt").write_text(f"{CAR}Cat")
    for i in (7, 9):
        Image.new("L", (16, 16)).save(tmp_path / f"training/image_2/{i:06}.png")
    assert "000003.txt, line 2: 1 field where KITTI has 15" in prepare()[1]
    (tmp_path / "training/label_2/000003.txt").write_text(CAR.replace("1 1 9 9", "20 1 29 9"))
    assert "000003.txt, line 1: box (20.0, 1.0, 29.0, 9.0) lies outside" in prepare()[1]
    assert not (tmp_path / "ImageSets").exists()


def test_missing_numbers_are_listed(prepare, tmp_path):
    assert "missing numbers" not in prepare()[1]
    for i in (4, 31):
        (tmp_path / f"training/image_2/{i:06}.png").unlink()
        (tmp_path / f"training/label_2/{i:06}.txt").unlink()
    assert "missing numbers between the first and the last: 000004, 000031" in prepare("--force")[1]


def test_table_counts_images_and_objects_of_each_split(prepare, tmp_path):
    table = prepare()[1]
    assert "50 images (KITTI has 7481), each with a label" in table
    cars = {split: sum(int(x) % 3 for x in read(tmp_path, split)) for split in ("train", "val")}
    for split, images in (("train", 40), ("val", 10)):
        row = next(x for x in table.splitlines() if f"{split}.txt" in x).split()
        assert row[1:] == [str(images), str(cars[split]), "0", "0"]


@pytest.fixture
def mapping(tmp_path):
    """The devkit's two mapping files: image i is line 50 - i, and a drive has five lines."""
    folder = tmp_path / "mapping"
    folder.mkdir()
    lines = [f"2011_09_26 2011_09_26_drive_{i // 5:04}_sync {i:010}\n" for i in range(50)]
    (folder / "train_mapping.txt").write_text("".join(lines))
    (folder / "train_rand.txt").write_text(",".join(str(50 - i) for i in range(50)) + "\n")
    return folder


def test_drives_are_not_split(prepare, mapping, tmp_path):
    for seed in range(5):
        assert prepare("--force", "--mapping", str(mapping), "--seed", str(seed))[0] == 0
        drives = [{(49 - int(x)) // 5 for x in read(tmp_path, s)} for s in ("train", "val")]
        assert len(drives[0]) == 8 and len(drives[1]) == 2 and not drives[0] & drives[1]
    prepare("--force", "--mapping", str(mapping / "train_mapping.txt"), "--seed", "4")
    assert {(49 - int(x)) // 5 for x in read(tmp_path, "val")} == drives[1]


def test_mismatched_mapping_is_refused(prepare, mapping, tmp_path):
    (mapping / "train_rand.txt").write_text("1,2,51")
    assert "have no drive for image 000002" in prepare("--mapping", str(mapping))[1]
    (mapping / "train_rand.txt").write_text("0")
    assert "have no drive for image 000000" in prepare("--mapping", str(mapping))[1]
    (mapping / "train_rand.txt").unlink()
    assert "train_rand.txt cannot be read" in prepare("--mapping", str(mapping))[1]
    assert prepare("--mapping", "x", "--train-list", "y", "--val-list", "z")[0] == 2


def test_home_folder_is_expanded(load_script, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    with pytest.raises(SystemExit):
        load_script("datasets/prepare_kitti.py").main([])
    assert f"{tmp_path}/data/kitti/training/image_2 does not exist" in capsys.readouterr().err


def test_check_keeps_the_split_files(prepare, tmp_path):
    assert "train.txt does not exist" in prepare("--check")[1]
    prepare()
    before = {x.name: x.read_bytes() for x in (tmp_path / "ImageSets").iterdir()}
    code, output = prepare("--check")
    assert code == 0 and "checked" in output and "written" not in output
    assert {x.name: x.read_bytes() for x in (tmp_path / "ImageSets").iterdir()} == before
    assert "leave out options of a new split" in prepare("--check", "--seed", "1")[1]
    (tmp_path / "training/label_2/000003.txt").write_text("Cat")
    assert "000003.txt, line 1: 1 field where" in prepare("--check")[1]
    (tmp_path / "ImageSets/trainval.txt").write_text("000001\n")
    assert "trainval.txt does not list exactly the images of train" in prepare("--check")[1]
