"""Datasets that the start of a run loads once."""

import pytest
from detectron2.data import DatasetCatalog

from aid.data import datasets_loaded_once
from aid_tools.train_arguments import argument_parser


@pytest.fixture
def calls(toy_dataset, monkeypatch):
    """Names of the dataset, one for each time that it was loaded."""
    names, load = [], DatasetCatalog[toy_dataset]

    def counted():
        names.append(toy_dataset)
        return load()

    monkeypatch.setitem(DatasetCatalog.data, toy_dataset, counted)
    return names


def test_dataset_is_loaded_once_inside_the_context(toy_dataset, calls):
    with datasets_loaded_once():
        first = DatasetCatalog.get(toy_dataset)
        first[0]["added"] = True
        with datasets_loaded_once():
            second = DatasetCatalog.get(toy_dataset)
        third = DatasetCatalog.get(toy_dataset)
        assert len(calls) == 1
    assert "added" not in second[0] and second == third == DatasetCatalog.get(toy_dataset)
    assert len(calls) == 2


def test_dataset_that_is_registered_anew_is_loaded_anew(toy_dataset):
    load = DatasetCatalog[toy_dataset]
    with datasets_loaded_once():
        before = DatasetCatalog.get(toy_dataset)
        DatasetCatalog.remove(toy_dataset)
        DatasetCatalog.register(toy_dataset, lambda: load()[:2])
        assert DatasetCatalog.get(toy_dataset) == before[:2]
        DatasetCatalog.remove(toy_dataset)
        with pytest.raises(KeyError, match="is not registered"):
            DatasetCatalog.get(toy_dataset)
        DatasetCatalog.register(toy_dataset, load)


def test_training_set_is_loaded_once_at_the_start_and_once_when_resuming(
    toy_dataset, calls, tiny_config, tmp_path, load_script, no_handlers
):
    keys = ["DATASETS.TRAIN", (toy_dataset,), "DATASETS.TEST", (), "SOLVER.IMS_PER_BATCH", 2]
    keys += ["OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", 0]
    keys += ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 1]
    config = tiny_config("faster_rcnn", keys)
    main = load_script("train_net.py").main
    for iterations, options in ((1, []), (2, ["--resume"])):
        options += ["SOLVER.MAX_ITER", str(iterations)]
        main(argument_parser().parse_args(["--config-file", config, "--num-gpus", "0", *options]))
        assert len(calls) == iterations
