"""Split files: drawn, given, and every refusal."""

import pytest


@pytest.fixture
def prepare(load_script, tmp_path, capsys):
    """A function (options) -> (exit code, the error line), run on a root of 50 images."""
    main = load_script("datasets/prepare_kitti.py").main
    for folder, extension in (("image_2", "png"), ("label_2", "txt")):
        (tmp_path / "training" / folder).mkdir(parents=True)
        for i in range(50):
            (tmp_path / "training" / folder / f"{i:06}.{extension}").touch()

    def run(*options: str) -> tuple[int, str]:
        try:
            main(["--root", str(tmp_path), *options])
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, ""

    return run


def read(tmp_path, split):
    return (tmp_path / "ImageSets" / f"{split}.txt").read_text().split()


def test_a_drawn_split_is_whole_and_depends_on_the_seed(prepare, tmp_path):
    assert prepare() == (0, "")
    train, val = read(tmp_path, "train"), read(tmp_path, "val")
    assert (len(train), len(val)) == (40, 10)
    assert sorted(train + val) == read(tmp_path, "trainval") == [f"{i:06}" for i in range(50)]
    prepare("--force")
    assert read(tmp_path, "val") == val
    prepare("--force", "--seed", "1")
    assert read(tmp_path, "val") != val


def test_existing_files_are_kept(prepare, tmp_path):
    prepare()
    before = read(tmp_path, "train")
    code, error = prepare("--seed", "1")
    assert code == 2 and "train.txt exists: --force replaces" in error
    assert read(tmp_path, "train") == before


def test_given_lists(prepare, tmp_path):
    train, val = tmp_path / "t", tmp_path / "v"
    train.write_text("000004\n000002\n")
    val.write_text("000003\n")
    lists = ["--train-list", str(train), "--val-list", str(val)]
    assert prepare(*lists) == (0, "")
    assert read(tmp_path, "train") == ["000004", "000002"] and read(tmp_path, "val") == ["000003"]
    for text, message in (
        ("000002\n", "v lists 000002, which"),
        ("000077\n", "v lists 000077, which has no image"),
        ("", "v is empty"),
    ):
        val.write_text(text)
        code, error = prepare("--force", *lists)
        assert code == 2 and message in error and error.count("\n") == 1
    assert prepare("--train-list", str(train))[0] == 2


def test_what_is_missing(prepare, tmp_path):
    (tmp_path / "training/label_2/000011.txt").unlink()
    code, error = prepare()
    assert code == 2 and "1 images without label or labels without image, first 000011" in error
    code, error = prepare("--root", str(tmp_path / "gone"))
    assert code == 2 and "gone/training/image_2 does not exist" in error
    (tmp_path / "training/label_2/000011.txt").touch()
    for share in ("1", "0", "nan", "-3"):
        assert "leaves a split empty" in prepare("--val-share", share)[1]


def test_a_home_folder_may_be_abbreviated(load_script, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    with pytest.raises(SystemExit):
        load_script("datasets/prepare_kitti.py").main([])
    assert f"{tmp_path}/data/kitti/training/image_2 does not exist" in capsys.readouterr().err
