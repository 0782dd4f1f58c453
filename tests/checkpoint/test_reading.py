"""Reading of weights: files of numbers are read, files that could run code are refused."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from aid.checkpoint import (
    SafeCheckpointer,
    StrictCheckpointer,
    StudentCheckpointer,
    clear_load_errors,
    load_file,
)
from aid.checkpoint.plain_pickle import check_pickle
from aid.utils.errors import AIDError


def arrays() -> dict:
    rng = np.random.default_rng(0)
    return {
        "weight": rng.normal(size=(3, 2)).astype(np.float32),
        "bias": np.asfortranarray(rng.normal(size=(3, 2))),
        "half": np.ones(3, np.float16),
        "mask": np.array([True, False]),
        "counter": np.array(7),
        "big_endian": np.arange(4, dtype=">i4"),
    }


@pytest.fixture
def read(tmp_path):
    """A function (content, protocol) -> result of the checkpointer on its pickle."""

    def call(content, protocol: int | None = None):
        path = tmp_path / "weights.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return SafeCheckpointer(nn.Linear(2, 3))._load_file(str(path))

    return call


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_model_zoo_format_is_read(protocol, read):
    content = {"model": OrderedDict(arrays()), "__author__": "Detectron2 Model Zoo"}
    actual = read(content, protocol)
    assert actual["__author__"] == "Detectron2 Model Zoo"
    for name, expected in arrays().items():
        assert actual["model"][name].dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(actual["model"][name], expected)


@pytest.mark.parametrize("protocol", [2, 4])
def test_caffe2_format_is_read(protocol, read):
    blobs = {"conv1_w": np.ones((2, 3)), "conv1_w_momentum": np.ones((2, 3))}
    actual = read({"blobs": blobs, "cfg": "MODEL: {}"}, protocol)
    assert list(actual["model"]) == ["conv1_w"] and actual["__author__"] == "Caffe2"
    assert list(read(blobs, protocol)["model"]) == ["conv1_w"]


def test_pickles_of_numpy_1_and_python_2_are_read(read):
    """numpy 1 names other modules; Python 2 saved the bytes of an array as text."""
    new = pickle.dumps({"model": {"a": np.ones(2)}, "__author__": "x"}, protocol=2)
    assert new.count(b"numpy._core") == 1
    old = new.replace(b"numpy._core", b"numpy.core")
    assert read(old)["model"]["a"].tolist() == [1, 1]
    raw = np.float32(1).tobytes()
    state = b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
    state += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state += b"\x89U\x04" + raw + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR" + state
    assert read(b"\x80\x02}U\x01a" + array + b"s.")["model"]["a"].tolist() == [1]


def test_weights_of_a_pickle_are_loaded(tmp_path):
    model = nn.Linear(2, 3)
    expected = {"weight": np.ones((3, 2), np.float32), "bias": np.arange(3, dtype=np.float32)}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": expected, "__author__": "Detectron2 Model Zoo"}))
    StrictCheckpointer(model, "TEACHER.WEIGHTS").load(str(path))
    assert model.weight.tolist() == expected["weight"].tolist()
    assert model.bias.tolist() == [0, 1, 2]


def refused_pickles() -> dict[str, bytes]:
    """Pickles that numpy or Python would execute, by their fault."""
    good = pickle.dumps(np.ones(2), protocol=2)
    objects = pickle.dumps(np.array([None, 3], dtype=object), protocol=2)
    assert b"X\x02\x00\x00\x00f8" in good and b"NNNJ" in good and b"K\x02\x85" in good
    dtype = b"cnumpy\ndtype\n"
    return {
        "an array of objects": objects,
        # Bytes that numpy would interpret as pointers.
        "objects made of bytes": good.replace(b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00O8"),
        "a dtype that claims to hold objects": good.replace(b"K\x00tq", b"K\x3ftq", 1),
        "a dtype with fields": good.replace(b"NNNJ", b"N))J", 1),
        "a negative size": good.replace(b"K\x02\x85", b"J\xfe\xff\xff\xff\x85"),
        "a dtype made without its arguments' check": b"\x80\x02" + dtype + b"U\x01O\x85\x81.",
        "numpy's array itself": b"\x80\x02cnumpy\nndarray\nK\x09\x85R.",
        "another codec": b"\x80\x02c_codecs\nencode\nU\x01aU\x03hex\x86R.",
        "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        "an object of Python's": pickle.dumps(io.BytesIO(b"x")),
        "a scalar of numpy's": pickle.dumps(np.float32(3)),
        "a tensor, whose bytes torch would unpickle": pickle.dumps(torch.ones(2)),
    }


@pytest.mark.parametrize("fault", refused_pickles())
def test_other_pickles_are_refused(fault, tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(refused_pickles()[fault])
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        check_pickle(str(path))


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl", "evil.pyth", "evil"])
@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_file_that_runs_code_is_refused(name, variable, hostile_file, monkeypatch):
    if variable:
        monkeypatch.setenv(variable, "1")
    path, marker = hostile_file(name)
    model = nn.Linear(2, 3)
    for load in (StrictCheckpointer(model, "KEY").load, StudentCheckpointer(model).load):
        with pytest.raises(AIDError, match="evil.* holds posix.mkdir, .*not read") as error:
            load(path)
        assert "\n" not in str(error.value)
    assert not marker.exists()
    if name == "evil.pkl":  # plain pickle runs the code
        with open(path, "rb") as f:
            pickle.load(f)
        assert marker.exists()


def compress(path, compression=zipfile.ZIP_DEFLATED) -> None:
    """Compress the entries of a PyTorch file."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", ["small.pth", "small.pyth", "small"])
def test_compressed_file_of_large_content_is_refused(name, tmp_path, monkeypatch):
    path = str(tmp_path / name)
    torch.save({"model": {"weight": torch.zeros(500_000)}}, path)
    load_file(path)
    compress(path)
    assert os.path.getsize(path) < 20_000
    monkeypatch.setattr(torch, "load", None)  # never called
    model = nn.Linear(2, 3)
    for load in (StrictCheckpointer(model, "KEY").load, StudentCheckpointer(model).load):
        with pytest.raises(AIDError, match=rf"{name} cannot be read .its 0.0.* MB hold 2 MB"):
            load(path)


def test_overlapping_entries_are_counted_separately(tmp_path):
    path = tmp_path / "overlap.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(100_000))
        archive.filelist += archive.filelist * 9  # at one offset of the file
    with pytest.raises(ValueError, match="hold 1 MB, while PyTorch does not compress"):
        load_file(str(path))


def test_incompressible_weights_are_read(tmp_path):
    path = str(tmp_path / "packed.pth")
    state = nn.Linear(200, 300).state_dict()
    torch.save({"model": state}, path)
    compress(path)
    assert torch.equal(load_file(path)["model"]["weight"], state["weight"])


KINDS = [torch.complex64, torch.bool, torch.int64, torch.int8, torch.uint8]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_another_kind_are_refused(dtype, prefix, tmp_path):
    state = {f"{prefix}{k}": v.to(dtype) for k, v in nn.Linear(2, 3).state_dict().items()}
    path = str(tmp_path / "other.pth")
    torch.save({"model": state}, path)
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    kind = f"weight is {dtype} in the file, torch.float32 in the model"
    for load in (StrictCheckpointer(model, "KEY").load, StudentCheckpointer(model).load):
        with pytest.raises(AIDError, match=rf"other.pth cannot be read \({kind}\)"):
            load(path)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(dtype, tmp_path):
    state = {k: torch.ones_like(v, dtype=dtype) for k, v in nn.BatchNorm1d(2).state_dict().items()}
    state["num_batches_tracked"] = torch.tensor(7, dtype=torch.int32)
    torch.save({"model": state}, tmp_path / "half.pth")
    model = nn.BatchNorm1d(2)
    StrictCheckpointer(model, "KEY").load(str(tmp_path / "half.pth"))
    assert model.weight.tolist() == [1, 1] and model.num_batches_tracked == 7


FOREIGN = [b"", b"no checkpoint\n", b"\x80\x02}.", b"\x80\x02K\x01.", [1, 2, 3], "text", {}]
FOREIGN += [{"iteration": 3}, {"model": [torch.ones(2)]}, {"model": {}}]


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("name", ["other.pth", "other.pkl"])
def test_error_names_a_file_of_another_format(name, content, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif name.endswith("pth"):
        torch.save(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(content))
    message = f"{name} (cannot be read|does not fit|.*numbers alone belong)"
    with pytest.raises(AIDError, match=message) as error:
        StrictCheckpointer(nn.Linear(2, 3), "MODEL.WEIGHTS").load(str(tmp_path / name))
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


def test_missing_file_does_not_exist(tmp_path):
    (tmp_path / "model_final.pth").write_bytes(b"")
    message = (
        "KEY .*/model_finale.pth does not exist .did you mean .*/model_final.pth.*: restore it"
    )
    with pytest.raises(AIDError, match=message):
        StrictCheckpointer(nn.Linear(2, 3), "KEY").load(str(tmp_path / "model_finale.pth"))


def test_weights_of_another_net_name_two_keys_and_the_key_to_set(tmp_path):
    torch.save({"model": {"x": torch.ones(1)}}, path := str(tmp_path / "a.pth"))
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with pytest.raises(AIDError) as error:
        StrictCheckpointer(model, "TEACHER.WEIGHTS", "TEACHER.CONFIG_FILE").load(path)
    assert str(error.value).endswith(
        ": 4 missing in the file: 0.weight, 0.bias, ...; 1 unknown to the model: x: name the "
        "config of the net in the file as TEACHER.CONFIG_FILE, or other weights"
    )


@pytest.mark.parametrize("folder", ["run?1", "Exp:3", "a#b", "a;b?c=d"])
@pytest.mark.parametrize("checkpointer", [SafeCheckpointer, StudentCheckpointer])
def test_local_file_names_may_contain_url_characters(folder, checkpointer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir(folder)
    saved, model = nn.Linear(2, 3), nn.Linear(2, 3)
    StudentCheckpointer(saved, folder).save("last")
    actual = checkpointer(model, folder)
    assert actual.resume_or_load("", resume=True) == {}
    assert torch.equal(model.weight, saved.weight)


def test_matching_heuristics_query_is_read(tmp_path):
    """Detectron2's query for weights with names of another library."""
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "a.pth")
    loaded = []
    model = SafeCheckpointer(nn.Linear(2, 3))
    model._load_model = loaded.append
    model.load(f"{tmp_path}/a.pth?matching_heuristics=True")
    assert loaded[0]["matching_heuristics"] is True


def test_download_error_names_the_file_in_the_cache():
    path = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
    with pytest.raises(AIDError) as error, clear_load_errors("MODEL.WEIGHTS", path):
        raise URLError("no network")
    assert "/detectron2/ImageNetPretrained/MSRA/R-101.pkl (<urlopen error no ne" in str(error.value)
    assert ".torch/iopath_cache/detectron2/ImageNetPretrained/MSRA/R-101.pkl" in str(error.value)
