"""Invariants of the crash campaign: violations are detected, valid runs pass."""

import copy
import os

import pytest
import torch

from aid_tools.reliability.invariants import (
    BrokenPromise,
    check_folder,
    compare_folders,
    first_difference,
    next_iteration,
)


def content(iteration: int) -> dict:
    """Content of a small checkpoint."""
    torch.manual_seed(iteration)
    return {
        "model": {"weight": torch.rand(2, 3), "count": torch.tensor(iteration)},
        "trainer": {"state": {0: {"exp_avg": torch.rand(3)}}, "lr": [0.1, iteration / 7]},
        "iteration": iteration,
    }


@pytest.fixture
def runs(tmp_path):
    """Folders of two runs with the same three checkpoints."""
    for run in ("whole", "killed"):
        (tmp_path / run).mkdir()
        for name, iteration in (("0000003", 3), ("0000007", 7), ("final", 9)):
            torch.save(content(iteration), tmp_path / run / f"model_{name}.pth")
        (tmp_path / run / "last_checkpoint").write_text("model_final.pth")
    return tmp_path / "whole", tmp_path / "killed"


def test_complete_equal_runs_pass(runs):
    whole, killed = runs
    check_folder(str(killed), {"model_0000003.pth", "model_final.pth"})
    assert compare_folders(str(whole), str(killed)) == 3
    assert next_iteration(str(killed)) == 10


def test_run_without_checkpoints_starts_at_0(tmp_path):
    check_folder(str(tmp_path), set())
    assert next_iteration(str(tmp_path)) == 0


@pytest.mark.parametrize("size", [0, 1000])
def test_truncated_checkpoint_is_detected(size, runs):
    os.truncate(runs[1] / "model_0000003.pth", size)
    with pytest.raises(BrokenPromise, match="model_0000003.pth cannot be read: .+") as broken:
        check_folder(str(runs[1]), set())
    assert broken.value.kind == "unreadable" and "\n" not in str(broken.value)


def test_lost_checkpoint_is_detected(runs):
    whole, killed = runs
    (killed / "model_0000003.pth").unlink()
    for check in (
        lambda: check_folder(str(killed), {"model_0000003.pth"}),
        lambda: compare_folders(str(whole), str(killed)),
    ):
        with pytest.raises(BrokenPromise, match="model_0000003.pth") as broken:
            check()
        assert broken.value.kind == "lost"


@pytest.mark.parametrize("named", ["", "model_0000003.pth", "model_0000005.pth", None])
def test_last_checkpoint_must_name_one_of_the_last_two(named, runs):
    last = runs[1] / "last_checkpoint"
    last.write_text("model_0000007.pth")  # killed between checkpoint and name
    check_folder(str(runs[1]), set())
    last.unlink() if named is None else last.write_text(named)
    with pytest.raises(BrokenPromise, match="last_checkpoint (names|does not exist)"):
        check_folder(str(runs[1]), set())


def test_leftover_temporary_file_is_detected(runs):
    (runs[1] / "model_0000003.pth.tmp").touch()
    with pytest.raises(BrokenPromise, match="model_0000003.pth.tmp was never removed"):
        compare_folders(*map(str, runs))


def test_difference_of_one_bit_is_detected(runs):
    whole, killed = runs
    changed = content(7)
    changed["trainer"]["state"][0]["exp_avg"].view(torch.int32)[1] ^= 1
    torch.save(changed, killed / "model_0000007.pth")
    with pytest.raises(BrokenPromise, match=r"0000007.*in trainer.state.0.exp_avg$") as broken:
        compare_folders(str(whole), str(killed))
    assert broken.value.kind == "unequal"


@pytest.mark.parametrize(
    "key, change",
    [
        ("model.weight", lambda x: x["model"].update(weight=x["model"]["weight"].double())),
        ("model.weight", lambda x: x["model"].update(weight=x["model"]["weight"].flatten())),
        ("model.extra", lambda x: x["model"].update(extra=None)),
        ("model.count", lambda x: x["model"].pop("count")),
        ("trainer.lr.1", lambda x: x["trainer"]["lr"].__setitem__(1, 1.0000000000000002)),
        ("trainer.lr", lambda x: x["trainer"]["lr"].append(0.1)),
        ("iteration", lambda x: x.update(iteration=7.0)),
    ],
)
def test_first_difference_is_located(key, change):
    first, second = content(7), copy.deepcopy(content(7))
    assert first_difference(first, second) is None
    change(second)
    assert first_difference(first, second) == first_difference(second, first) == key


def test_bits_are_compared_rather_than_values():
    zero = torch.zeros(2)
    assert first_difference(zero, -zero, "x") == "x"
    assert first_difference(zero / 0, zero / 0, "x") is None
