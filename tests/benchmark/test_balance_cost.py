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
    """A function (opts) -> all cases, and the balance of the student."""

    def make(opts=()):
        batch = make_batch()
        nets = Nets(student_config("faster_rcnn", opts=opts), batch[:1])
        with as_in_training(CPU):
            return make_cases(nets, batch), nets.distilled.model.balance

    return make


def test_only_the_balance_case_measures_gradients(cases, monkeypatch):
    made, balance = cases(["DISTILLATION.BALANCE", 10.0])
    factors, measure = [], balance.measure

    def spy(distillation, weighted, weight, *rest) -> None:
        factors.append(weight.item())
        measure(distillation, weighted, weight, *rest)

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


def test_benchmark_without_balance_has_no_balance_case(cases):
    made, balance = cases()
    assert balance is None and "balance" not in made


def test_steps_are_not_logged(cases):
    made, _ = cases(["DISTILLATION.BALANCE", 10.0])
    with as_in_training(CPU):
        for case in made.values():
            case()
        assert not any("distillation_weight" in x for x in get_event_storage().latest())


def test_known_overhead_of_balance():
    parts = ("student", "teacher", "teacher_heads", "per_instance_losses", "weighting")
    first = dict.fromkeys((*parts, "aid_instance", "aid_level", "aid_image"), 1.0)
    first |= {"plain_distillation": 4.0, "balance": 5.0}  # 25 % more, in every tenth step
    noisy = {**first, "balance": 6.0}
    slow = {name: 10 * value for name, value in first.items()}
    results = Results([first, noisy, slow], (), {}, batch=2)
    assert results.ratios()["balance_overhead"] == pytest.approx(0.025)
