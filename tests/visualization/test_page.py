"""Page of an image: values, positions and colors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize

from aid_tools.visualization.canvas import enlarged, overlay
from aid_tools.visualization.page import Picture, draw_page

GREY = np.full((16, 32, 3), 128, np.uint8)


@pytest.fixture
def picture(make_seen):
    return Picture(
        title="an image",
        image=GREY,
        boxes=torch.tensor([[2.0, 3.0, 9.0, 12.0], [18.0, 2.0, 30.0, 14.0]]),
        classes=["Car", "Cyclist"],
        teachers=["Teacher"],
        granularity="instance",
        before=[make_seen()],
        after=None,
        notes=["nothing is missing"],
    )


def texts(canvas) -> list[str]:
    figure = canvas.figure
    actual = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    return [text.get_text() for text in actual] + [axes.get_xlabel() for axes in figure.axes]


def color(colormap: str, value: float) -> list[int]:
    return [round(255 * c) for c in colormaps[colormap](value)[:3]]


def test_map_has_the_colors_of_its_values_and_the_size_of_the_image():
    cells = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.5, 2.0]])
    painted = overlay(GREY[:12, :20], cells, 8, "viridis", Normalize(0, 1, clip=True))
    assert painted.shape == (12, 20, 3)
    for (y, x), value in {(0, 0): 0.0, (7, 15): 1.0, (8, 0): 0.25, (11, 19): 1.0}.items():
        assert painted[y, x].tolist() == color("viridis", value)


def test_map_is_shaded_by_the_image():
    image = GREY.copy()
    image[:, :16], image[:, 16:] = 40, 220
    painted = overlay(image, torch.full((2, 4), 0.5), 8, "cividis", Normalize(0, 1))
    middle = np.array(color("cividis", 0.5))
    assert (painted[0, 0] < middle).all() and (painted[0, -1] > middle).all()


def test_only_small_images_are_enlarged():
    assert enlarged(GREY, 64).shape == (32, 64, 3) and (enlarged(GREY, 64) == 128).all()
    assert enlarged(GREY, 32) is GREY


def test_objects_show_weight_loss_and_largest_component(picture, make_seen):
    actual = texts(draw_page(picture))
    assert "Car  w 0.90\nD 1.0: class" in actual and "Cyclist  w 0.45\nD 8.0: class" in actual
    assert {"an image", "Teacher", "p3", "p4", "nothing is missing"} <= set(actual)
    without_weights = replace(make_seen(), weights=None, losses=None, parts={})
    page = draw_page(replace(picture, granularity="none", before=[without_weights]))
    assert {"Car", "Cyclist"} <= set(texts(page))
    assert any("AID.GRANULARITY none" in text for text in texts(page))


def test_scale_of_the_difference_is_explained(picture):
    expected = "1: the difference is as large as the teacher's features."
    assert any(text.endswith(expected) for text in texts(draw_page(picture)))


def test_available_values_determine_the_columns(picture, make_seen):
    before, both = ["weight of imitation", "attention\nteacher"], [*picture.before]
    before += ["attention\nstudent, before training", "teacher - student\nbefore training"]
    trained = ["attention\nstudent, trained", "teacher - student\ntrained"]

    def columns(**changes) -> set[str]:
        return {x for x in texts(draw_page(replace(picture, **changes))) if x in before + trained}

    assert columns() == set(before)
    assert columns(after=both) == set(before + trained)
    assert columns(after=[make_seen(difference=None)]) == set(before + trained[:1])
    assert columns(before=[make_seen(difference=None)]) == set(before[:3])


def test_levels_and_teachers_share_one_color_scale(picture, make_seen):
    """Equal differences have equal colors; the largest one has the last color."""
    large = {"p3": torch.full((2, 4), 4.0), "p4": torch.full((1, 2), 1.0)}
    small = {"p3": torch.full((2, 4), 1.0), "p4": torch.full((1, 2), 0.0)}
    seen = [make_seen(difference=x) for x in (large, small)]
    page = draw_page(replace(picture, before=seen, teachers=["one", "two"]))
    maps = [x for x in page.figure.axes if any("mean" in y.get_text() for y in x.texts)]
    actual = {
        (axes.texts[0].get_text(), tuple(axes.images[0].get_array()[0, 0].tolist()))
        for axes in maps
    }
    expected = {"mean 4.00": 1.0, "mean 1.00": 0.25, "mean 0.00": 0.0}
    assert len(maps) == 4
    assert actual == {(k, tuple(color("cividis", v))) for k, v in expected.items()}


def test_color_bars_have_units(picture):
    labels = " ".join(texts(draw_page(picture)))
    for unit in ("weight w", "multiples\nof its mean", "multiples of\nthe teacher's features"):
        assert unit in labels


@pytest.mark.parametrize("height, width", [(375, 1242), (96, 320), (640, 480)])
def test_axes_and_texts_are_inside_the_page(picture, height, width, make_seen):
    image = np.zeros((height, width, 3), np.uint8)
    sizes = {"p3": (-(-height // 8), -(-width // 8)), "p4": (-(-height // 16), -(-width // 16))}
    maps = {level: torch.ones(size) for level, size in sizes.items()}
    kinds = ("maps", "attention", "student_attention", "difference")
    seen = make_seen(**dict.fromkeys(kinds, maps))
    page = draw_page(replace(picture, image=image, before=[seen], after=[seen]))
    renderer, box = page.figure.canvas.get_renderer(), page.figure.bbox
    for axes in page.figure.axes:
        extent = axes.get_tightbbox(renderer)
        if extent is not None:
            assert box.x0 <= extent.x0 and extent.x1 <= box.x1
            assert box.y0 <= extent.y0 and extent.y1 <= box.y1
    for text in page.figure.texts:
        extent = text.get_window_extent(renderer)
        assert box.x0 <= extent.x0 and extent.x1 <= box.x1, text.get_text()


def test_regions_are_dashed_boxes_of_the_ground_truth(picture):
    regions = torch.tensor([[4.0, 2.0, 12.0, 8.0]])
    before, after = (draw_page(x) for x in (picture, replace(picture, regions=regions)))

    def dashed(canvas):
        lines = [x for axes in canvas.figure.axes for x in axes.lines if x.get_linestyle() == "--"]
        return [(x.get_xdata(), x.get_ydata()) for x in lines]

    ((x, y),) = dashed(after)
    assert (max(x) - min(x)) / (max(y) - min(y)) == pytest.approx(8 / 6) and min(x) == 2 * min(y)
    assert dashed(before) == []
