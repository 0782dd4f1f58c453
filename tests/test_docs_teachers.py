"""Code in docs/teachers.md that writes a teacher's detections."""

import json
import os
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.data import register_coco
from aid.data.detections import DETECTIONS, with_detections


@pytest.fixture(scope="module")
def blocks(repository):
    """Python blocks of the page, compiled."""
    with open(os.path.join(repository, "docs", "teachers.md")) as f:
        found = re.findall(r"^```python\n(.*?)^```", f.read(), re.DOTALL | re.MULTILINE)
    assert len(found) == 4
    return [compile(x, "teachers.md", "exec") for x in found]


def test_written_detections_are_read(blocks, toy_dataset, tmp_path, monkeypatch):
    """The program of the example calls one class by another name, and has one more."""
    records = DatasetCatalog.get(toy_dataset)
    content = {
        "images": [
            {"id": 5 + x["image_id"], "file_name": os.path.basename(x["file_name"])}
            | {key: x[key] for key in ("height", "width")}
            for x in records
        ],
        "categories": [{"id": 3, "name": "car"}, {"id": 8, "name": "person"}],
        "annotations": [],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    asked = []

    def detect(path):
        asked.append(path)
        yield "person", (1.0, 2.0, 11.0, 22.0), 0.75
        yield "kite", (1.0, 2.0, 11.0, 22.0), 0.5
        yield "car", (4.0, 4.0, 4.0, 9.0), 0.5  # without area

    exec(blocks[0], {"detect": detect})
    assert asked[0] == "images/" + content["images"][0]["file_name"] and len(asked) == 7
    register_coco("written", str(tmp_path / "train.json"), str(tmp_path))
    try:
        found = with_detections("detections.json", ("written",), DatasetCatalog.get("written"))
    finally:
        DatasetCatalog.remove("written")
        MetadataCatalog.remove("written")
    assert [x[DETECTIONS].tolist() for x in found] == [[[1.0, 2.0, 11.0, 22.0, 0.75, 1.0]]] * 7
