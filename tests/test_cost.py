"""Parameters, FLOPs and time of a detector."""

import pytest

from aid_tools.cost import measure_costs


@pytest.mark.parametrize(
    "kind", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"]
)
def test_cost_of_every_family_is_measured(kind, tiny_model, make_batch):
    model = tiny_model(kind)
    samples = make_batch((1, 2, 0))
    (cost,) = measure_costs([model], [samples])
    assert cost.parameters == sum(p.numel() for p in model.parameters()) / 1e6
    assert cost.seconds > 0
    # Lower bound, the stem: 7x7 kernels from 3 to 8 channels over half the height and width.
    assert cost.gflops > 32 * 48 * 7 * 7 * 3 * 8 / 1e9
