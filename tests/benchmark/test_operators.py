"""The step's own work in operators: no loop over instances, and who makes the host wait.

On a GPU every operator is a launch, and reading a number from the device waits for all before it.
Counted on the CPU, since neither hangs on the device; copies to a GPU are not seen here.
"""

from collections import Counter

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from aid_tools.benchmark.cases import make_cases
from aid_tools.benchmark.nets import Nets

MASKED = "index by a mask"  # whose result has as many elements as the mask has ones
WAITS = ("aten._local_scalar_dense.default", "aten.nonzero.default", MASKED)
# ImageList reads height and width of the padded batch from a tensor on the CPU. The floor's teacher
# pads with it; the student's is told the size.
PADDED_SIZE = 2
FEW, MANY = (10, 10), (100, 100)


class Operators(TorchDispatchMode):
    """Counts the operators that run while it is entered, those of the backward pass too."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[str(function)] += 1
        if function is torch.ops.aten.index.Tensor:
            self.count[MASKED] += any(x is not None and x.dtype == torch.bool for x in args[1])
        return function(*args, **(kwargs or {}))


@pytest.fixture
def count(student_config, make_batch):
    """A function (kind, numbers of instances, opts) -> {case: Counter of operators}."""

    def run(kind: str, num_instances: tuple[int, ...], opts=()) -> dict[str, Counter]:
        batch = make_batch(num_instances, masks=kind == "mask_rcnn")
        nets = Nets(student_config(kind, opts=opts), False, batch[:1])
        found = {}
        with EventStorage(0):
            for name, case in make_cases(nets, batch).items():
                torch.manual_seed(0)
                with Operators() as operators:
                    case()
                found[name] = operators.count
        return found

    return run


def beyond(step: Counter, *floor: Counter) -> Counter:
    """What a step does beside what is in the floor."""
    left = Counter(step)
    for part in floor:
        left.subtract(part)
    return Counter({name: n for name, n in left.items() if n})


@pytest.mark.parametrize(
    "kind", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"]
)
def test_no_loop_over_instances(kind, count):
    few, many = count(kind, FEW), count(kind, MANY)
    for part in ("per_instance_losses", "weighting", "AttentionGuidedLoss", "NonLocalLoss"):
        assert few[part] == many[part], part
    for step in ("plain_distillation", "aid_instance", "aid_level", "aid_image"):
        # The plain student's own operators may change with what it samples.
        assert beyond(few[step], few["student"]) == beyond(many[step], many["student"]), step


@pytest.mark.parametrize("rule", ["RelativeWeighting", "StudentAwareWeighting", "QualityWeighting"])
def test_no_rule_loops_over_instances(rule, count):
    opts = ["AID.WEIGHTING", rule]
    few, many = count("faster_rcnn", FEW, opts), count("faster_rcnn", MANY, opts)
    assert few["weighting"] == many["weighting"]
    assert beyond(few["aid_instance"], few["student"]) == beyond(
        many["aid_instance"], many["student"]
    )


@pytest.mark.parametrize(
    "kind", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"]
)
def test_plain_distillation_reads_nothing_back(kind, count):
    found = count(kind, FEW)
    more = beyond(found["plain_distillation"], found["student"], found["teacher"])
    assert [more[name] for name in WAITS] == [-PADDED_SIZE, 0, 0]
    for part in ("weighting", "AttentionGuidedLoss", "NonLocalLoss"):
        assert [found[part][name] for name in WAITS] == [0, 0, 0], part


# Matching and the boxes' encoding wait, both in Detectron2's code, and one choice of ours. For N
# images and S stages of RoI heads:
#   scalars  N (1 + S)  Matcher: an assertion on every matrix of overlaps
#            2 + S      Box2BoxTransform.get_deltas: an assertion on all anchors, on those that fit
#                       best, and on the RoIs
#            2          one_hot's check of its range, on the CPU alone
#   nonzero  N          Matcher.set_low_quality_matches_, of the anchors
#            N          ours: which RoIs belong to somebody, where no other is needed
# A dense detector has no RoIs, GFL neither Matcher nor Box2BoxTransform, FCOS no Matcher and no
# assertion on its points. The teacher's heads, floor of the step, wait for their proposals.
@pytest.mark.parametrize(
    "kind, scalars, nonzero",
    [
        ("faster_rcnn", 4 + 3 + 2, 2),
        ("cascade_rcnn", 8 + 5 + 2, 2),
        ("retinanet", 2 + 2 + 2, 2),
        ("gfl", 2, 0),
        ("fcos", 2, 0),
    ],
)
def test_what_aid_waits_for(kind, scalars, nonzero, count):
    found = count(kind, FEW)
    for step in ("aid_instance", "aid_level", "aid_image"):
        more = beyond(found[step], found["student"], found["teacher"], found["teacher_heads"])
        choices = 2 if (kind, step) == ("faster_rcnn", "aid_instance") else 0
        waits = [scalars - PADDED_SIZE, nonzero + choices, 0]
        assert [more[name] for name in WAITS] == waits, step


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_measuring_for_balance_reads_nothing_back(kind, count):
    found = count(kind, FEW, ["DISTILLATION.BALANCE", 10.0])
    more = beyond(found["balance"], found["plain_distillation"])
    assert more and [more[name] for name in WAITS] == [0, 0, 0]
