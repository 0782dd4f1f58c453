"""Suggestions for misspelled names."""

import pytest

from aid.utils.suggestions import did_you_mean, did_you_mean_file, nearest

LOSSES = ["CWDLoss", "FGDLoss", "FitNetLoss", "PKDLoss"]


@pytest.mark.parametrize(
    "name, expected",
    [("PKDLos", "PKDLoss"), ("pkdloss", "PKDLoss"), ("FGD", "FGDLoss"), ("kitti", None), (3, None)],
)
def test_nearest_name(name, expected):
    assert nearest(name, LOSSES) == expected
    assert did_you_mean(name, LOSSES) == (f" (did you mean {expected}?)" if expected else "")


def test_nearest_file_is_in_the_same_folder(tmp_path, monkeypatch):
    for name in ("a/run.yaml", "b/rum.yaml", "b/run.yam/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert did_you_mean_file("a/runs.yaml") == " (did you mean a/run.yaml?)"
    assert did_you_mean_file("b/run.yaml") == " (did you mean b/rum.yaml?)"  # run.yam is a folder
    (tmp_path / "a/config.yaml").touch()  # a is the output folder of a run
    assert did_you_mean_file("a") == " (did you mean a/config.yaml?)"
    assert did_you_mean_file("run.yaml") == did_you_mean_file("gone/run.yaml") == ""
    assert did_you_mean_file("ru.yaml", "", str(tmp_path / "a")) == " (did you mean run.yaml?)"
