"""Students: Detectron2's detectors with a teacher beside them while they train."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..errors import AIDError
from ..visualization import weight_image
from .comparison import in_eval_mode
from .instance_loss import InstanceLosses, instance_losses, loss_levels
from .losses import Context, build_distillation_losses
from .responses import Answers, Batch, Question, ask, check_answers
from .teacher import Teacher, build_teacher, check_teacher
from .weighting import Evidence, Weighting, Weights, build_weighting

__all__ = ["AIDGeneralizedRCNN", "AIDRetinaNet", "DistillationMixin"]

# Iterations between readings of the diagnostics from the device: Detectron2 writes as often.
LOG_PERIOD = 20


class DistillationMixin:
    """Distillation for a Detectron2 meta-architecture, to be named before it among the bases.

    The student is built as Detectron2 builds it and is nothing else until
    :meth:`attach_distillation`: inference and evaluation need no teacher. Its parameters keep
    Detectron2's names; the adapters of the distillation losses and what the weighting remembers
    are ``distillation.*``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.distillation: nn.ModuleDict | None = None
        self.teacher: Teacher | None = None

    @property
    def weighting(self) -> Weighting:
        return self.distillation["weighting"]

    def attach_distillation(self, cfg: CfgNode) -> None:
        """Build the teacher, the weighting rule and the distillation losses, and say which.

        The random numbers that the student and its training draw afterwards are those they would
        draw without a teacher.

        Args:
            cfg: the student's config.

        Raises:
            AIDError: the config names no usable teacher, weighting or loss; see ``config.py``.
        """
        with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
            self.teacher = build_teacher(cfg)
            levels = check_teacher(self.teacher, self, cfg)
            student_shapes = self.backbone.output_shape()
            teacher_shapes = self.teacher.detector.backbone.output_shape()
            losses = build_distillation_losses(cfg, levels, student_shapes, teacher_shapes)
            parts = {"losses": losses, "weighting": build_weighting(cfg)}
            self.distillation = nn.ModuleDict(parts).to(self.device)
        if self.weighting.needs_student:
            loss_levels(self)  # an error now if it has none
        questions = {name: x.asks for name, x in losses.items() if hasattr(x, "asks")}
        for name, question in questions.items():
            check_answers(self.teacher.detector, self, question, name)
        self.question = Question.all_of(questions.values())
        self.distillation_weight = cfg.DISTILLATION.WEIGHT
        self.strides = {level: student_shapes[level].stride for level in levels}
        logging.getLogger(__name__).info(
            "Distillation: teacher %s (%.1f M parameters) with weights %s; levels %s; losses %s "
            "times %g; weighting %s",
            cfg.TEACHER.CONFIG_FILE,
            self.teacher.num_parameters / 1e6,
            cfg.TEACHER.WEIGHTS,
            ", ".join(f"{k} (stride {v})" for k, v in self.strides.items()),
            ", ".join(f"{k}({v.extra_repr()})" for k, v in losses.items()),
            self.distillation_weight,
            self.weighting,
        )

    def forward(self, batched_inputs: list[dict]):
        """In eval mode the detector's own forward. In training its losses and those of imitation.

        Args:
            batched_inputs: the standard input of a Detectron2 model.

        Returns:
            In training {name: scalar}; all of them are added up by the trainer.

        Raises:
            AIDError: training without :meth:`attach_distillation`.
        """
        if not self.training:
            return super().forward(batched_inputs)
        if self.distillation is None:
            raise AIDError(
                f"{type(self).__name__} has no teacher: call attach_distillation(cfg) before "
                "training, or train with aid.engine.AIDTrainer"
            )
        # A dense head's work is not done twice.
        with _Tap(self.backbone) as tap, _Tap(getattr(self, "head", nn.Identity())) as head:
            losses = super().forward(batched_inputs)
        losses.update(self._distill(batched_inputs, tap.input, tap.output, head.output))
        return losses

    def _distill(
        self,
        batched_inputs: list[dict],
        images: Tensor,
        features: dict[str, Tensor],
        predictions: object,
    ) -> dict[str, Tensor]:
        self.teacher.follow(self.device)
        view = self.teacher.view(batched_inputs, tuple(images.shape[-2:]), self.input_format)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        evidence = None
        if self.weighting.needs_evidence:
            background = self.weighting.needs_background
            losses = self.teacher.instance_losses(view, instances, background)
            evidence = Evidence(losses, torch.cat([x.gt_classes for x in instances]))
            if self.weighting.needs_student:
                ours = ImageList(images, view.images.image_sizes)
                evidence.student = self._own_losses(ours, features, instances)
            if self.weighting.needs_quality:
                evidence.quality = self.teacher.quality(view, instances)
        maps = {k: (tuple(features[k].shape[-2:]), v) for k, v in self.strides.items()}
        weights = self.weighting(evidence, [x.gt_boxes.tensor for x in instances], maps)
        self._log(batched_inputs, weights)

        context = Context(instances, self.strides)
        if self.question:
            batch = Batch(view.images, view.features, features, instances, predictions)
            batch.teacher_predictions = evidence and evidence.teacher.predictions
            context.answers = self._answers(batch, evidence, weights)

        terms = {}
        # Norms over a whole map overflow in half precision.
        with torch.autocast(self.device.type, enabled=False):
            student = {level: features[level].float() for level in self.strides}
            teacher = {level: view.features[level].float() for level in self.strides}
            for loss in self.distillation["losses"].values():
                terms.update(loss(student, teacher, weights.maps, context))
        if not terms:
            raise AIDError(
                f"no distillation term came from {', '.join(self.distillation['losses'])}: the "
                "student would train without its teacher; see DISTILLATION.LOSSES"
            )
        return {name: self.distillation_weight * term for name, term in terms.items()}

    def _answers(self, batch: Batch, evidence: Evidence | None, weights: Weights) -> Answers:
        """What both sides say about the same samples, with the weights of their owners."""
        with EventStorage():  # the teacher's RPN writes a log
            answers = ask(self.teacher.detector, self, self.question, batch)
        parts = self.weighting.by_part(evidence, [x.gt_boxes.tensor for x in batch.targets])
        instance = {"all": weights.boxes, "cls": parts.cls, "box": parts.box}
        answers.weigh(instance, parts.background)
        return answers

    @torch.no_grad()
    def _own_losses(
        self, images: ImageList, features: dict[str, Tensor], instances: list[Instances]
    ) -> InstanceLosses:
        """The student's own loss on every instance, taken as the teacher's is: in eval mode."""
        with in_eval_mode(self), EventStorage():
            background = self.weighting.needs_background
            return instance_losses(self, images, features, instances, background)

    def _log(self, batched_inputs: list[dict], weights: Weights) -> None:
        storage = get_event_storage()
        log_now = (storage.iter + 1) % LOG_PERIOD == 0
        if log_now:
            means = [x.mean() for x in weights.maps.values()]
            storage.put_scalar("aid/map_mean", torch.stack(means).mean().item(), False)
        if weights.instance is None:
            return
        if log_now:
            values = _diagnostics(weights)
            storage.put_scalars(smoothing_hint=False, **values)
            if 0 < values["aid/num_instances"] == values.get("aid/num_non_finite"):
                logging.getLogger(__name__).warning(
                    "The teacher's loss is finite on none of the %d instances of iteration %d, so "
                    "that nothing is imitated: evaluate the teacher (TEACHER.EVAL_FIRST)",
                    values["aid/num_instances"],
                    storage.iter,
                )
        if self.vis_period > 0 and storage.iter % self.vis_period == 0:
            sample, (level, stride) = batched_inputs[0], next(iter(self.strides.items()))
            n = len(sample["instances"])
            picture = weight_image(
                sample,
                self.input_format,
                weights.instance[:n],
                weights.loss[:n],
                weights.maps[level][0, 0],
                stride,
            )
            storage.put_image(f"aid/weight and teacher loss D of each box; map of {level}", picture)


def _diagnostics(weights: Weights) -> dict[str, float]:
    """What the log says of a batch's weights; the numbers travel from the device in one piece."""
    if not len(weights.loss):
        return {"aid/num_instances": 0}
    finite = weights.loss.isfinite()
    values = {
        "weight_mean": weights.instance.mean(),
        "weight_min": weights.instance.amin(),
        "weight_below_half": (weights.instance < 0.5).float().mean(),
        "teacher_loss": weights.loss[finite].mean().nan_to_num(),
        "num_non_finite": (~finite).sum(),
        "num_instances": weights.loss.new_tensor(len(weights.loss)),
    }
    numbers = torch.stack([x.float() for x in values.values()]).tolist()
    return {f"aid/{name}": number for name, number in zip(values, numbers, strict=True)}


class _Tap:
    """Keeps what goes into and comes out of a module while it is entered."""

    def __init__(self, module: nn.Module):
        self._module = module
        self.input = self.output = None

    def __enter__(self) -> "_Tap":
        self._handle = self._module.register_forward_hook(self._keep)
        return self

    def __exit__(self, *exc_info) -> None:
        self._handle.remove()

    def _keep(self, module: nn.Module, inputs: tuple, output: object) -> None:
        self.input = inputs[0]
        self.output = output


@META_ARCH_REGISTRY.register()
class AIDGeneralizedRCNN(DistillationMixin, GeneralizedRCNN):
    """Faster, Mask or Cascade R-CNN that learns from a teacher."""


@META_ARCH_REGISTRY.register()
class AIDRetinaNet(DistillationMixin, RetinaNet):
    """RetinaNet that learns from a teacher."""
