"""Cost of DISTILLATION.BALANCE in the benchmark: the measuring step and its share."""

import pytest
import torch
from detectron2.utils.events import get_event_storage

from aid_tools.benchmark import Results
from aid_tools.benchmark.cases import make_cases
from aid_tools.benchmark.nets import Nets
from aid_tools.benchmark.timing import as_in_training

CPU = torch.device("cpu")


@pytest.fixture
def cases(student_config, make_batch):
    """A function (opts) -> all cases, and the student's balance."""

    def make(opts=()):
        batch = make_batch()
        nets = Nets(student_config("faster_rcnn", opts=opts), False, batch[:1])
        with as_in_training(CPU):
            return make_cases(nets, batch), nets.distilled.model.balance

    return make


def test_one_step_alone_measures_for_balance(cases, monkeypatch):
    made, balance = cases(["DISTILLATION.BALANCE", 10.0])
    factors, measure = [], balance.measure

    def spy(imitation, weighted, weight, *rest) -> None:
        factors.append(weight.item())
        measure(imitation, weighted, weight, *rest)

    monkeypatch.setattr(balance, "measure", spy)
    assert balance.factor.item() == pytest.approx(1)
    with as_in_training(CPU):
        for name, case in made.items():
            if name != "balance":
                case()
        assert not factors and balance.num_measured == 1
        for number in (2, 3):
            made["balance"]()
            assert balance.num_measured == number and not balance.squares.any()
    assert len(factors) == 2 and factors[0] == pytest.approx(1) and factors[1] > 0


def test_without_balance_no_step_measures(cases):
    made, balance = cases()
    assert balance is None and "balance" not in made


def test_a_step_is_one_of_which_nothing_is_logged(cases):
    made, _ = cases(["DISTILLATION.BALANCE", 10.0])
    with as_in_training(CPU):
        for case in made.values():
            case()
        assert not any("distillation_weight" in x for x in get_event_storage().latest())


def test_known_share_of_balance():
    parts = ("student", "teacher", "teacher_heads", "per_instance_losses", "weighting")
    one = dict.fromkeys((*parts, "aid_instance", "aid_level", "aid_image"), 1.0)
    one |= {"plain_distillation": 4.0, "balance": 5.0}  # a quarter more, in every tenth step
    noisy = {**one, "balance": 6.0}
    slow = {name: 10 * value for name, value in one.items()}
    found = Results([one, noisy, slow], (), {}, batch=2)
    assert found.ratios()["balance_overhead"] == pytest.approx(0.025)
