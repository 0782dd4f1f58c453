"""Every config key of the project: its default, its unit, and where the default comes from."""

from detectron2.config import CfgNode as CN

__all__ = ["add_aid_config"]


def add_aid_config(cfg: CN) -> None:
    """Add the keys of distillation, with their defaults, to a Detectron2 config (in place)."""
    _add_teacher(cfg)
    _add_distillation(cfg)
    _add_feature_losses(cfg)
    _add_response_losses(cfg)
    _add_weighting(cfg)
    _add_fcos(cfg)
    _add_gfl(cfg)
    _add_solver(cfg)


def _add_teacher(cfg: CN) -> None:
    """The teachers."""
    # The teacher. Its config file: an absolute path, a path relative to the config file that names
    # it, or a name in Detectron2's model zoo. Its weights: any path that Detectron2 can read.
    cfg.TEACHER = CN()
    cfg.TEACHER.CONFIG_FILE = ""
    cfg.TEACHER.WEIGHTS = ""
    # Further teachers, in lists of one length; what was said above holds for each entry.
    cfg.TEACHER.MORE_CONFIG_FILES = []
    cfg.TEACHER.MORE_WEIGHTS = []
    # Start from the first teacher's FPN and heads where names and shapes agree, whatever
    # MODEL.WEIGHTS has for them, as FGD and MGD do. The log says what was taken.
    cfg.TEACHER.INHERIT = False
    # Evaluate the teachers on DATASETS.TEST before the student's first iteration.
    cfg.TEACHER.EVAL_FIRST = False
    # Batches of each process, at the start of a run, on which the losses of teacher and student are
    # compared: if a teacher's is larger, there is a warning. 0 for none.
    cfg.TEACHER.COMPARE_BATCHES = 4


def _add_distillation(cfg: CN) -> None:
    """Distillation losses, their strength and their schedule."""
    cfg.DISTILLATION = CN()
    # Names in DISTILLATION_LOSS_REGISTRY; their losses are added up. The paper's are
    # AttentionGuidedLoss and NonLocalLoss: configs/AID/Paper.
    cfg.DISTILLATION.LOSSES = ["PKDLoss"]
    # lambda of the paper: multiplies every distillation loss.
    cfg.DISTILLATION.WEIGHT = 1.0
    # Norm of the gradient of imitation over that of the detector's own losses, at the feature maps
    # that are imitated: the distillation losses get a further factor that holds this ratio times
    # WEIGHT, so that their own weights matter to each other alone. 0: no such factor, as in the
    # papers. Default: the best of 3, 10 and 30 on rendered scenes, docs/results/recipe.md.
    cfg.DISTILLATION.BALANCE = 10.0
    # When WEIGHT acts, in iterations counted from 0: from START_ITER until before END_ITER (0: it
    # never ends); at other times the teachers are not run. It rises for WARMUP_ITERS; then DECAY,
    # "none", "linear" or "cosine", takes it to 0 at END_ITER, or at SOLVER.MAX_ITER where END_ITER
    # is 0. Defaults: the paper's, always in full.
    cfg.DISTILLATION.SCHEDULE = CN()
    cfg.DISTILLATION.SCHEDULE.START_ITER = 0
    cfg.DISTILLATION.SCHEDULE.END_ITER = 0
    cfg.DISTILLATION.SCHEDULE.WARMUP_ITERS = 0
    cfg.DISTILLATION.SCHEDULE.DECAY = "none"
    # FPN levels to imitate, e.g. ["p3", "p4"]; every teacher must have them. Empty: all levels that
    # a teacher and the student share.
    cfg.DISTILLATION.LEVELS = []
    # "sum": norms over all elements of a level, as in AID's released code: the weights below then
    # depend on image size and channels. "rms": norms divided by the root of the number of elements,
    # FGD's and MGD's sums by that number. The other losses are free of either, and do not read it.
    cfg.DISTILLATION.SCALE = "sum"
    # Standardise the features of both sides, per image and channel over the positions, before they
    # are compared. False: the form of the papers. Read by the attention-guided, non-local, FGD, MGD
    # and FitNet losses; PKD always does.
    cfg.DISTILLATION.STANDARDIZE = True
    # Trainable adapters on the student's features also where both sides have as many channels, as
    # in the authors' code of the attention-guided and non-local losses. False: only where they
    # differ. Read by all losses on features.
    cfg.DISTILLATION.ADAPT_EQUAL_WIDTHS = False
    # Temperatures of attention (attention-guided and FGD losses) in units of the map's mean
    # magnitude. False: absolute, as in the papers.
    cfg.DISTILLATION.RELATIVE_TEMPERATURE = True


def _add_feature_losses(cfg: CN) -> None:
    """Losses on features."""
    # Attention-guided distillation (Zhang & Ma, ICLR 2021). Defaults: the two-stage setting in
    # AID's released code; its single-stage one is TEMPERATURE 0.1, 5.6e-4, 2.4e-2, 2.4e-2.
    cfg.DISTILLATION.ATTENTION = CN()
    cfg.DISTILLATION.ATTENTION.TEMPERATURE = 0.5
    cfg.DISTILLATION.ATTENTION.FEATURE_WEIGHT = 4e-5
    cfg.DISTILLATION.ATTENTION.CHANNEL_WEIGHT = 8e-3
    cfg.DISTILLATION.ATTENTION.SPATIAL_WEIGHT = 8e-3

    # Non-local distillation (same paper). Single-stage: WEIGHT 4.9e-4.
    cfg.DISTILLATION.NON_LOCAL = CN()
    cfg.DISTILLATION.NON_LOCAL.WEIGHT = 4e-5
    # Max-pooling of keys and values, finest level first; the last entry serves all further levels.
    cfg.DISTILLATION.NON_LOCAL.SUBSAMPLE = [8, 4, 2, 2, 2]
    # Train a non-local block on the teacher's features, too, as in the authors' code. False: its
    # features themselves are the target.
    cfg.DISTILLATION.NON_LOCAL.TRAIN_TEACHER = False

    # FGDLoss (Yang et al., CVPR 2022). Defaults: the authors' configs of Faster R-CNN; of RetinaNet
    # 1e-3, 5e-4, 5e-4, 5e-6; of FCOS TEMPERATURE 0.8 and 1.6e-3, 8e-4, 8e-4, 8e-6.
    cfg.DISTILLATION.FGD = CN()
    cfg.DISTILLATION.FGD.TEMPERATURE = 0.5
    cfg.DISTILLATION.FGD.FOREGROUND_WEIGHT = 5e-5  # alpha of the paper
    cfg.DISTILLATION.FGD.BACKGROUND_WEIGHT = 2.5e-5  # beta
    cfg.DISTILLATION.FGD.ATTENTION_WEIGHT = 5e-5  # gamma
    cfg.DISTILLATION.FGD.GLOBAL_WEIGHT = 5e-7  # lambda

    # PKDLoss (Cao et al., NeurIPS 2022). Default: Faster R-CNN in MMRazor, where the authors' code
    # is; RetinaNet there 10.0.
    cfg.DISTILLATION.PKD = CN()
    cfg.DISTILLATION.PKD.WEIGHT = 6.0

    # CWDLoss (Shu et al., ICCV 2021). Defaults: Faster R-CNN and RetinaNet in MMRazor; WEIGHT 5.0
    # for RetinaNet in the detection code that the authors refer to.
    cfg.DISTILLATION.CWD = CN()
    cfg.DISTILLATION.CWD.TEMPERATURE = 1.0
    cfg.DISTILLATION.CWD.WEIGHT = 10.0

    # MGDLoss (Yang et al., ECCV 2022). Defaults: the authors' configs of Faster R-CNN; of RetinaNet
    # 2e-5 and 0.65.
    cfg.DISTILLATION.MGD = CN()
    cfg.DISTILLATION.MGD.WEIGHT = 5e-7  # alpha of the paper
    cfg.DISTILLATION.MGD.MASKED_SHARE = 0.45  # lambda: of the positions of the student's features

    # FitNetLoss (Romero et al., ICLR 2015). The authors, who trained by it alone, have no weight.
    cfg.DISTILLATION.FITNET = CN()
    cfg.DISTILLATION.FITNET.WEIGHT = 1.0


def _add_response_losses(cfg: CN) -> None:
    """Losses on predictions."""
    # ResponseLoss: the teacher's classes as soft targets (Hinton et al., arXiv 1503.02531), and its
    # boxes.
    cfg.DISTILLATION.RESPONSE = CN()
    cfg.DISTILLATION.RESPONSE.TEMPERATURE = 1.0
    # Weights of its two terms.
    cfg.DISTILLATION.RESPONSE.CLS_WEIGHT = 1.0
    cfg.DISTILLATION.RESPONSE.BOX_WEIGHT = 1.0
    # Two-stage teachers: their best proposals in each image, beside the ground-truth boxes.
    cfg.DISTILLATION.RESPONSE.NUM_ROIS = 64
    # Dense teachers: where no instance is, they are imitated if the score of a class is above this.
    # Default: Detectron2's SCORE_THRESH_TEST, from which on a score can become a detection. An
    # FCOS's is class score times centerness. Of CrossKDLoss likewise.
    cfg.DISTILLATION.RESPONSE.MIN_SCORE = 0.05

    # LocalisationLoss: distributions of box edges, from GFL to GFL. Defaults: LD's code in
    # mmdetection (arXiv 2102.12252), whose sum over positives is a mean here.
    cfg.DISTILLATION.LOCALISATION = CN()
    cfg.DISTILLATION.LOCALISATION.TEMPERATURE = 10.0
    cfg.DISTILLATION.LOCALISATION.WEIGHT = 0.25

    # CrossKDLoss (Wang et al., CVPR 2024, arXiv 2306.11369), of dense detectors. Defaults: the
    # authors' configs of RetinaNet, whose sums over anchors are means here.
    cfg.DISTILLATION.CROSS_KD = CN()
    # Convolutions at the end of each branch of the teacher's head that the student's features go
    # through before its predictors. The authors' FCOS 2, of 4 that there are in all families.
    cfg.DISTILLATION.CROSS_KD.NUM_CONVS = 1
    # Of the two terms. The authors' GFL 1 and 4, FCOS 0.4 and 0.75.
    cfg.DISTILLATION.CROSS_KD.CLS_WEIGHT = 1.0
    cfg.DISTILLATION.CROSS_KD.BOX_WEIGHT = 1.0


def _add_weighting(cfg: CN) -> None:
    """Weights of imitation."""
    cfg.AID = CN()
    # Name in WEIGHTING_REGISTRY: how the teacher's loss D becomes the weight of imitation. More are
    # under study, behind --register studies/rules.py.
    cfg.AID.WEIGHTING = "ExponentialWeighting"
    # w = exp(-ALPHA * D); 0.1 in the paper. 0.0 is plain distillation.
    cfg.AID.ALPHA = 0.1
    # Where one weight holds: "instance" (inside a ground-truth box), "level" (image and FPN level,
    # the paper's scale-wise form), "image", or "none" (plain distillation, D is not computed).
    cfg.AID.GRANULARITY = "instance"
    # The rest of the map under "instance": "mean" (the image's mean instance weight), "loss" (from
    # the teacher's loss on the background) or "one". Images without instances use "loss".
    cfg.AID.BACKGROUND = "mean"
    # ConstantWeighting: the weight.
    cfg.AID.CONSTANT = 1.0
    # ClassWeighting: names of the classes that are not to be learned from this teacher.
    cfg.AID.DISTRUSTED_CLASSES = []
    # RelativeWeighting: momentum of the running mean of D, per iteration.
    cfg.AID.MOMENTUM = 0.99
    # Divide each level's map by its mean over the batch: weights then move imitation from place to
    # place and leave its overall strength alone.
    cfg.AID.NORMALIZE = False
    # D = sum of these coefficients times the parts of the teacher's loss on an instance, so that
    # each part has an alpha of its own. A dense teacher has CLS and BOX only, FCOS also CTR.
    cfg.AID.COEFFICIENTS = CN()
    cfg.AID.COEFFICIENTS.CLS = 1.0
    cfg.AID.COEFFICIENTS.BOX = 1.0
    cfg.AID.COEFFICIENTS.RPN_CLS = 1.0
    cfg.AID.COEFFICIENTS.RPN_BOX = 1.0
    cfg.AID.COEFFICIENTS.CTR = 1.0  # centerness


def _add_fcos(cfg: CN) -> None:
    """FCOS."""
    # FCOS (arXiv 1904.01355). Defaults: Detectron2's own, which it keeps for LazyConfig.
    cfg.MODEL.FCOS = CN()
    cfg.MODEL.FCOS.NUM_CLASSES = 80
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions of each of the head's two branches, and their norm as in the paper; "" for none.
    cfg.MODEL.FCOS.NUM_CONVS = 4
    cfg.MODEL.FCOS.NORM = "GN"
    # Probability of every class at the start, as in RetinaNet.
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    # Distance from a point to each side of its box at the start, in strides. At 0, which Detectron2
    # has, boxes are all but empty, where IoU has no gradient: small heads may stay there for good.
    cfg.MODEL.FCOS.PRIOR_DISTANCE = 0.0
    # A point may belong to a box whose center is nearer than this, in strides (arXiv 2006.09214).
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    # Of the focal loss, as RetinaNet's.
    cfg.MODEL.FCOS.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.FCOS.FOCAL_LOSS_GAMMA = 2.0
    # Of the root of class score times centerness, hence 0.2 where RetinaNet has 0.05.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.2
    # Per level, before suppression at this IoU.
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6


def _add_gfl(cfg: CN) -> None:
    """GFL."""
    # GFL. Where nothing else is said, the authors' settings (arXiv 2006.04388 and its code).
    cfg.MODEL.GFL = CN()
    cfg.MODEL.GFL.NUM_CLASSES = 80  # COCO's
    cfg.MODEL.GFL.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions of each branch, and their norm: "", "GN" or another that Detectron2 knows.
    cfg.MODEL.GFL.NUM_CONVS = 4
    cfg.MODEL.GFL.NORM = "GN"
    # Largest distance of a cell from a side of its box, and side of the anchor from which
    # assignment starts; both in cells.
    cfg.MODEL.GFL.REG_MAX = 16
    cfg.MODEL.GFL.ANCHOR_SCALE = 8.0
    # Candidates per level and instance, of ATSS (arXiv 1912.02424).
    cfg.MODEL.GFL.TOPK = 9
    # Exponent of the quality focal loss, whose own weight is 1, and weights of the boxes' losses.
    cfg.MODEL.GFL.QUALITY_BETA = 2.0
    cfg.MODEL.GFL.GIOU_WEIGHT = 2.0
    cfg.MODEL.GFL.DISTRIBUTION_WEIGHT = 0.25
    # All scores at the start of a training, as RetinaNet's.
    cfg.MODEL.GFL.PRIOR_PROB = 0.01
    # At test: the least score, candidates per level, and the IoU at which a detection suppresses
    # another one of its class.
    cfg.MODEL.GFL.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.GFL.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.GFL.NMS_THRESH_TEST = 0.6


def _add_solver(cfg: CN) -> None:
    """The solver: what Detectron2 has no keys for."""
    # "SGD" as in Detectron2, or "AdamW", with which small nets learn from scratch in a few hundred
    # iterations. The other SOLVER keys apply to both.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Micro-batches of an iteration, whose gradients are averaged: IMS_PER_BATCH images are divided
    # by it and by the number of processes, and take as much less memory.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
