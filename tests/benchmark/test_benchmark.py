"""tools/benchmark.py and its modules. No test checks absolute times."""

import json
from collections import Counter

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN

from aid.config import load_config
from aid.modeling.balance import PERIOD
from aid.modeling.schedule import Schedule
from aid.utils.errors import AIDError
from aid_tools.benchmark import Results, Settings, measure, random_batch
from aid_tools.benchmark.inputs import SMALLEST_SIDE
from aid_tools.benchmark.memory import can_measure, measure_memory
from aid_tools.benchmark.nets import Nets, random_detector, write_teacher_weights
from aid_tools.benchmark.timing import ORDINARY, as_in_training, time_rounds

CPU = torch.device("cpu")
SIZE = {"height": 64, "width": 96}


@pytest.fixture
def benchmark(load_script, capsys):
    """A function (arguments) -> output of tools/benchmark.py, or its error line."""
    script = load_script("tools/benchmark.py")

    def run(*argv: str) -> str:
        try:
            script.main(["--size", "64x96", "--repeat", "3", *argv])
        except SystemExit as exit:
            assert exit.code == 2
            return capsys.readouterr().err.splitlines()[-1]
        return capsys.readouterr().out

    return run


@pytest.fixture
def config_file(tiny_config, tmp_path):
    """A function (kind, opts) -> config file of a student whose teacher has no weights."""

    def write(kind: str = "faster_rcnn", opts=()) -> str:
        teacher = tiny_config(kind, name="teacher")
        arch = "AID" + load_config(teacher).MODEL.META_ARCHITECTURE
        keys = ["MODEL.META_ARCHITECTURE", arch, "TEACHER.CONFIG_FILE", teacher]
        return tiny_config(kind, [*keys, *opts], name="student")

    return write


# --- command line


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools, for masks
@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_rcnn", "gfl"])
def test_families_are_benchmarked(kind, config_file, benchmark, tmp_path):
    path = tmp_path / "new folder" / "numbers.json"
    options = ["--no-memory", "--json", str(path), "--instances", "3"]
    page = benchmark("--config-file", config_file(kind), *options, "AID.BACKGROUND", "one")
    actual = json.loads(path.read_text())
    assert actual["setup"]["opts"] == ["AID.BACKGROUND", "one"]
    assert actual["setup"]["height"] == 64
    assert len(actual["rounds"]) == 3
    assert all(value > 0 for value in actual["seconds"].values())
    for name in ("aid", "plain_distillation"):
        assert actual["ratios"][f"{name}_to_floor"] > 0
    assert actual["ratios"]["aid_to_plain_distillation"] > 0
    assert actual["ratios"]["memory_overhead"] is None
    assert {"PKDLoss", "weighting"} <= set(actual["shares"])
    assert actual["images_per_second"]["student"] == pytest.approx(2 / actual["seconds"]["student"])
    assert actual["seconds"]["balance"] > 0 and "balance_overhead" in actual["ratios"]
    for expected in ("plain student's step", "floor of AID", "AID's step, by level", "64x96"):
        assert expected in page
    assert "measuring gradients" in page


def test_precision_is_that_of_the_config(config_file, benchmark, tmp_path, monkeypatch):
    seen = set()
    forward = GeneralizedRCNN.forward

    def observed(model, batch):
        if model.training:
            seen.add(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return forward(model, batch)

    monkeypatch.setattr(GeneralizedRCNN, "forward", observed)
    path, options = tmp_path / "numbers.json", ["--no-memory", "--instances", "3"]
    for amp, expected in ((True, torch.bfloat16), (False, False)):
        seen.clear()
        config = config_file(opts=["SOLVER.AMP.ENABLED", amp, "SOLVER.AMP.DTYPE", "bfloat16"])
        page = benchmark("--config-file", config, *options, "--json", str(path))
        name = "bfloat16" if amp else "float32"
        assert seen == {expected} and f"{name}; torch" in page
        assert json.loads(path.read_text())["setup"]["precision"] == name


OWN_LOSS = """
import torch
from aid.modeling.losses import DISTILLATION_LOSS_REGISTRY

class MeasuredLoss(torch.nn.Module):
    def __init__(self, cfg, levels, student_shapes, teacher_shapes):
        super().__init__()

    def forward(self, student, teacher, weights, context):
        terms = [(weights[k] * (teacher[k] - x) ** 2).mean() for k, x in student.items()]
        return {"loss_distill_measured": torch.stack(terms).sum()}

DISTILLATION_LOSS_REGISTRY.register(MeasuredLoss)
"""


def test_parameters_and_flops_are_counted(config_file, tiny_model, benchmark, tmp_path):
    results = []
    for number in (20, 40):
        path = config_file("faster_rcnn", ["MODEL.RPN.POST_NMS_TOPK_TEST", number])
        target = str(tmp_path / "costs.json")
        page = benchmark("--config-file", path, "--flops", "--json", target)
        with open(target) as f:
            results.append(json.load(f))
    student, teacher = results[0]["student"], results[0]["teacher"]
    parameters = sum(x.numel() for x in tiny_model("faster_rcnn").parameters())
    assert student == teacher and student["parameters"] == parameters / 1e6
    # 20 more RoIs of 7 x 7 cells and 8 channels in layers of 16, 16 and 4 + 12 units.
    more = 1e9 * (results[1]["student"]["gflops"] - student["gflops"])
    assert more == pytest.approx(20 * 16 * (7 * 7 * 8 + 16 + 16))
    assert "M parameters" in page and "GFLOPs, 64x96 pixels" in page


def test_custom_loss_is_benchmarked(config_file, benchmark, tmp_path):
    own, numbers = tmp_path / "own.py", tmp_path / "numbers.json"
    own.write_text(OWN_LOSS)
    options = ["--register", str(own), "--no-memory", "--json", str(numbers)]
    losses = ["DISTILLATION.LOSSES", '["MeasuredLoss"]', "DISTILLATION.BALANCE", "0.0"]
    page = benchmark("--config-file", config_file(), *options, *losses)
    actual = json.loads(numbers.read_text())
    assert "balance" not in actual["seconds"] and "balance_overhead" not in actual["ratios"]
    assert "measuring" not in page
    assert actual["seconds"]["MeasuredLoss"] > 0
    assert "MeasuredLoss" in actual["shares"] and "NonLocalLoss" not in actual["shares"]


def test_sweep_over_sizes_batches_and_instances(config_file, benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("aid_tools.benchmark.sweep.INSTANCES", (0, 30))
    monkeypatch.setattr("aid_tools.benchmark.sweep.SCALES", (1.0, 2.0))
    monkeypatch.setattr("aid_tools.benchmark.sweep.BATCHES", (1, 2))
    numbers, figure = tmp_path / "numbers.json", tmp_path / "figure.png"
    options = ["--sweep", "--json", str(numbers), "--figure", str(figure)]
    page = benchmark("--config-file", config_file(), *options)
    image, batch, instances = json.loads(numbers.read_text())["sweeps"]
    # 64x96, and 128x192, over strides of 4 to 64.
    assert image["values"] == [384 + 96 + 24 + 6 + 2, 1536 + 384 + 96 + 24 + 6]
    assert batch["values"] == [1, 2]
    assert instances["values"] == [0, 30]
    for sweep in (image, batch, instances):
        assert all(len(seconds) == 2 for seconds in sweep["seconds"].values())
        assert len(sweep["aid_to_floor"]) == 2
        assert sweep["title"] in page
    assert figure.stat().st_size > 0


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--size", "370"], "--size: '370' is not HEIGHTxWIDTH"),
        (["--size", "0x96"], "--height: 0 is below 1"),
        (["--batch", "0"], "--batch: 0 is below 1"),
        (["--instances", "-1"], "--instances: -1 is below 0"),
        (["--threads", "0"], "--threads: 0 is below 1"),
        (["--seed", "-1"], "--seed: -1 is negative"),
        (["--repeat", "2"], "--repeat: 2 is below 3"),
        (["--seconds", "nan"], "--seconds: nan is not above 0"),
        (["--device", "abacus"], "--device: 'abacus' is not one of cpu, cuda, cuda:N"),
        (["--device", "cuda:99"], "--device cuda:99: torch finds"),
        (["SOLVER.AMP.ENABLED", "True"], "but --device is cpu: mixed precision needs a GPU"),
        (["SOLVER.AMP.DTYPE", "float32"], "SOLVER.AMP.DTYPE is 'float32': choose one of float16"),
        (["--figure", "f.png"], "--figure needs the results of --sweep"),
        (["--sweep", "--figure", "f.word"], "f.word: choose one of the file extensions"),
        (["--json", "/dev/null/f.json"], "/dev/null/f.json cannot be written"),
        (["AID.ALFA", "1"], "AID.ALFA"),
        (["AID.WEIGHTING", "ConstantWeighting"], "does not use the teacher's losses"),
        (["TEACHER.CONFIG_FILE", ""], "TEACHER.CONFIG_FILE is empty"),
        (["TEACHER.CONFIG_FILE", "vit.pt"], "the teacher is a network without heads, but a det"),
        (
            ["TEACHER.CONFIG_FILE", "", "TEACHER.DETECTIONS", "f.json"],
            "the teacher is a file of detections, but a detector is measured: set TEACHER.CONFIG_F",
        ),
        (
            ["TEACHER.MORE_CONFIG_FILES", "['t.yaml']"],
            "names further teachers, but only one can be",
        ),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "GeneralizedRCNN has no teacher"),
        (["MODEL.META_ARCHITECTURE", "Nothing"], "Nothing has no teacher"),
    ],
)
def test_invalid_options_are_one_line_errors(argv, expected, config_file, benchmark):
    line = benchmark("--config-file", config_file(), *argv)
    assert line.startswith("error: ")
    assert expected in line


def test_images_too_small_for_training_are_refused(config_file, benchmark):
    # Batch norm of the head fails on the last level, a single cell.
    path = config_file("retinanet", ["MODEL.RETINANET.NORM", "BN"])
    line = benchmark("--config-file", path, "--size", "32x32", "--batch", "1")
    assert line.startswith("error: the student cannot train on 1 image of 32x32")


# --- inputs, networks and timing


def test_random_batch_has_the_requested_content(config_file):
    settings = Settings(config_file(), height=200, width=300, batch=3, instances=50, seed=5)
    batch = random_batch(settings, settings.apply())
    assert len(batch) == 3
    for sample in batch:
        assert sample["image"].shape == (3, 200, 300)
        truth = sample["instances"]
        assert len(truth) == 50
        boxes = truth.gt_boxes.tensor
        assert (boxes >= 0).all() and (boxes <= torch.tensor([300, 200, 300, 200])).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.min() >= SMALLEST_SIDE - 1e-3 and sides.max() <= 100 + 1e-3
        assert set(truth.gt_classes.tolist()) == {0, 1, 2}
    repeated = random_batch(settings, settings.apply())
    assert torch.equal(batch[2]["image"], repeated[2]["image"])
    assert torch.equal(
        batch[2]["instances"].gt_boxes.tensor, repeated[2]["instances"].gt_boxes.tensor
    )


def test_random_weights_have_features_of_moderate_scale(config_file):
    opts = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RESNETS.DEPTH", "101"]
    settings = Settings(config_file(opts=opts), **SIZE)
    cfg = settings.apply()
    batch = random_batch(settings, cfg)
    detector = random_detector(cfg, batch)
    assert detector.training
    with torch.no_grad():
        features = detector.backbone(detector.preprocess_image(batch).tensor)
    assert all(0.01 < x.std() < 100 for x in features.values())


def test_plain_net_is_detectron2_and_steps_keep_the_weights(config_file, tmp_path):
    settings = Settings(config_file(), **SIZE)
    cfg = settings.apply()
    batch = random_batch(settings, cfg)
    cfg.TEACHER.WEIGHTS = str(tmp_path / "teacher.pth")
    write_teacher_weights(cfg, batch[:1], cfg.TEACHER.WEIGHTS)
    nets = Nets(cfg, batch[:1])
    assert type(nets.plain.model) is GeneralizedRCNN
    assert nets.distilled.model.teacher is nets.teacher
    for net in (nets.plain, nets.distilled):
        before = [x.clone() for x in net.model.parameters()]
        with as_in_training(CPU):
            net.step(batch)
        after = list(net.model.parameters())
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
        assert any(x.grad is not None and x.grad.any() for x in after)
    plain, distilled = nets.plain.model.state_dict(), nets.distilled.model.state_dict()
    assert all(torch.equal(x, distilled[k]) for k, x in plain.items() if "running" not in k)


def test_cases_are_timed_in_turn():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = time_rounds(cases, CPU, seed=0, repeat=4)
    assert "".join(calls) == "abc" * 5  # one round of warm-up
    assert [list(x) for x in rounds] == [["a", "b", "c"]] * 4


def test_rounds_are_equal_and_limited_by_time():
    drawn = Counter()

    def draw() -> None:
        drawn[torch.rand(()).item()] += 1

    assert len(time_rounds({"draw": draw}, CPU, seed=0, repeat=10**6, seconds=1e-9)) == 3
    assert list(drawn.values()) == [4]


@pytest.mark.skipif(not can_measure(CPU), reason="needs Linux's count of resident memory")
@pytest.mark.slow
def test_peak_memory_of_a_case(config_file, tmp_path):
    # A box head of 64 MB: a step holds its weights, gradients and momentum.
    opts = ["MODEL.ROI_BOX_HEAD.FC_DIM", "4000", "MODEL.ROI_BOX_HEAD.NUM_FC", "2"]
    settings = Settings(config_file(opts=opts), threads=1, batch=1, **SIZE)
    cfg = settings.apply()
    weights = str(tmp_path / "teacher.pth")
    write_teacher_weights(cfg, random_batch(settings, cfg), weights)
    peaks = measure_memory(settings, weights, ("student", "teacher"))
    assert peaks["student"] > 3 * 4000 * 4000 * 4
    assert peaks["student"] < 6 * 4000 * 4000 * 4
    assert 0 < peaks["teacher"] < 64 * 2**20


# --- results


def test_known_ratios_and_shares():
    first = {"student": 4.0, "teacher": 2.0, "teacher_heads": 1.0, "per_instance_losses": 2.0}
    first |= {"weighting": 0.5, "Loss": 0.5, "plain_distillation": 9.0}
    first |= {"aid_instance": 14.0, "aid_level": 7.0, "aid_image": 21.0}
    slow = {name: 10 * value for name, value in first.items()}
    memory = {"student": 60, "teacher": 30, "teacher_heads": 40}
    memory |= {"aid_instance": 120, "teacher_weights": 20}
    results = Results([first, slow, first], ("Loss",), memory, batch=2)
    assert results.seconds()["aid_floor"] == 7
    assert results.seconds()["plain_distillation_floor"] == 6
    assert results.ratios() == pytest.approx(
        {
            "plain_distillation_to_floor": 1.5,
            "aid_to_floor": 2,
            "aid_level_to_floor": 1,
            "aid_image_to_floor": 3,
            "aid_to_plain_distillation": 14 / 9,
            "instance_losses_to_teacher": 1,
            "instance_losses_to_heads": 2,
            "memory_overhead": 0.2,
            "memory_overhead_to_weights": 0.5,
        }
    )
    assert results.shares() == pytest.approx(
        {"teacher": 0.2, "per_instance_losses": 0.2, "weighting": 0.05, "Loss": 0.05, "rest": 0.5}
    )


def test_number_of_rounds_is_checked_first():
    with pytest.raises(AIDError, match="--repeat"):
        measure(Settings("no such file"), repeat=1)


@pytest.mark.parametrize(
    "opts",
    [("START_ITER", "90"), ("END_ITER", "5"), ("WARMUP_ITERS", "50"), ("DECAY", "cosine")],
)
def test_benchmark_ignores_the_distillation_schedule(opts, config_file):
    key, value = opts
    cfg = Settings(config_file(), (f"DISTILLATION.SCHEDULE.{key}", value)).apply()
    assert all(Schedule(cfg)(x) == 1 for x in (ORDINARY, PERIOD))


def test_config_is_loaded_like_in_train_net(config_file):
    path = config_file()
    cfg = Settings(path, ("AID.ALPHA", "0.5")).apply()
    expected = load_config(path, ["AID.ALPHA", "0.5"])
    changed = {"VIS_PERIOD", "SOLVER", "SEED"}
    assert {k for k in cfg if cfg[k] != expected[k]} <= changed
