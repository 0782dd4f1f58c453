"""Config keys of the project, with their defaults."""

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

__all__ = ["add_aid_config", "default_config"]


def default_config() -> CN:
    """Create Detectron2's default config with the project's keys."""
    cfg = get_cfg()
    add_aid_config(cfg)
    return cfg


def add_aid_config(cfg: CN) -> None:
    """Add the project's keys, with their defaults, to a Detectron2 config (in place)."""
    _add_teacher(cfg)
    _add_distillation(cfg)
    _add_feature_losses(cfg)
    _add_response_losses(cfg)
    _add_weighting(cfg)
    _add_unlabeled(cfg)
    _add_input(cfg)
    _add_fcos(cfg)
    _add_gfl(cfg)
    _add_torchvision(cfg)
    _add_solver(cfg)
    _add_model_ema(cfg)


def _add_teacher(cfg: CN) -> None:
    """Add the keys of the teachers."""
    cfg.TEACHER = CN()
    # Config file of the teacher: an absolute path, a path relative to the config file that sets
    # this key, or a name in Detectron2's model zoo. A feature teacher, which has no heads, is a
    # TorchScript file (.pt, .ts) or python:package.module:attribute. LazyConfigs (.py) outside the
    # model zoo and feature teachers are programs, which only the command line can name.
    cfg.TEACHER.CONFIG_FILE = ""
    # Weights of the teacher: any path that Detectron2 can read. Empty for TorchScript.
    cfg.TEACHER.WEIGHTS = ""
    # Detections of the training images that any program made, as the first teacher in place of the
    # two keys above: a JSON file of COCO results, with the ids of the training set's images and
    # categories, or a folder of KITTI result files named after the images. Only ResponseLoss can
    # imitate them. Empty: none.
    cfg.TEACHER.DETECTIONS = ""
    # Further teachers, as two lists of the same length. Each entry is like the two keys above.
    cfg.TEACHER.MORE_CONFIG_FILES = []
    cfg.TEACHER.MORE_WEIGHTS = []
    # Map from the teacher's classes to the student's, if they differ: a list of entries
    # "teacher class: student class", and "by name" for all classes with equal names. Several
    # classes of the teacher may be mapped to one class of the student; classes without an entry are
    # background. If names are unknown, entries have ids, from 0. Empty: both have the same classes.
    cfg.TEACHER.CLASS_MAP = []
    # One such list for each further teacher. Empty: all have the student's classes.
    cfg.TEACHER.MORE_CLASS_MAPS = []
    # Outputs of a feature teacher and the student's levels on which they are imitated, as
    # "output: level", e.g. ["0: p3", "0: p4"]. An output is a key of a dict, an index in a list or
    # tuple, or 0 for a single map. Empty: the keys of a dict are levels.
    cfg.TEACHER.FEATURES = []
    # Normalization and channel order ("RGB" or "BGR") of feature teachers, for pixels from 0 to
    # 255. Defaults: mean and standard deviation of ImageNet as in torchvision, times 255.
    cfg.TEACHER.PIXEL_MEAN = [123.675, 116.280, 103.530]
    cfg.TEACHER.PIXEL_STD = [58.395, 57.120, 57.375]
    cfg.TEACHER.FORMAT = "RGB"
    # Initialize the student's FPN and heads from those of the first teacher where names and shapes
    # match, as FGD and MGD do. Takes precedence over MODEL.WEIGHTS; the log lists the parameters.
    cfg.TEACHER.INHERIT = False
    # Device of the teachers: "cpu", a GPU such as "cuda:1", or "" for the student's.
    cfg.TEACHER.DEVICE = ""
    # Precision of the teachers' forward passes, by autocast; their weights are in float32. Options:
    # "float32", "bfloat16", "float16", or "" for the student's, which SOLVER.AMP sets.
    cfg.TEACHER.PRECISION = ""
    # Folder in which feature maps and losses per instance of the teachers are kept, to be read when
    # an image comes again with the same augmentation, also in other runs. For few images with few
    # augmentations, such as flips alone, and for several students of one teacher. For teachers of
    # YAML configs. Empty: none.
    cfg.TEACHER.CACHE = ""
    # Size of the folder in GiB at which nothing more is stored.
    cfg.TEACHER.CACHE_GIB = 10.0
    # Evaluate the teachers on DATASETS.TEST before the first iteration of the student, at their own
    # image size and, if INPUT.MIN_SIZE_TRAIN differs by more than half, also at the student's.
    cfg.TEACHER.EVAL_FIRST = False
    # Number of batches per process, at the start of a run, on which the losses of teachers and
    # student are compared. A warning follows if a teacher's loss is larger. 0 disables it.
    cfg.TEACHER.COMPARE_BATCHES = 4


def _add_distillation(cfg: CN) -> None:
    """Add the keys that all distillation losses share."""
    cfg.DISTILLATION = CN()
    # Names of the distillation losses in DISTILLATION_LOSS_REGISTRY; the total is their sum. The
    # AID paper uses AttentionGuidedLoss and NonLocalLoss, see configs/AID/Paper.
    cfg.DISTILLATION.LOSSES = ["PKDLoss"]
    # Factor on all distillation losses; lambda in the AID paper.
    cfg.DISTILLATION.WEIGHT = 1.0
    # Target ratio of gradient norms at the imitated feature maps: distillation losses / detector's
    # own losses. A factor on the distillation losses holds the ratio at BALANCE * WEIGHT, so that
    # the weights of the single losses only set their proportions. 0 disables the factor, as in the
    # papers. Default: the best of 3, 10 and 30 on rendered scenes, see docs/results/recipe.md.
    cfg.DISTILLATION.BALANCE = 10.0
    # Schedule of WEIGHT. Defaults: constant, as in the AID paper.
    cfg.DISTILLATION.SCHEDULE = CN()
    # First iteration that imitates, counted from 0. The teachers do not run before it.
    cfg.DISTILLATION.SCHEDULE.START_ITER = 0
    # First iteration that does not imitate any more. 0: imitation never ends.
    cfg.DISTILLATION.SCHEDULE.END_ITER = 0
    # Number of iterations of the linear warm-up from START_ITER on.
    cfg.DISTILLATION.SCHEDULE.WARMUP_ITERS = 0
    # Decay to 0 from the end of the warm-up to END_ITER, or to SOLVER.MAX_ITER if END_ITER is 0.
    # Options: "none", "linear", "cosine".
    cfg.DISTILLATION.SCHEDULE.DECAY = "none"
    # FPN levels to imitate, e.g. ["p3", "p4"]; all teachers must have them. Empty: all levels that
    # the student shares with a teacher.
    cfg.DISTILLATION.LEVELS = []
    # Scale of the attention-guided, non-local, FGD and MGD losses. Options:
    # "sum": norms over all elements of a level, as in AID's released code. Suitable loss weights
    # then depend on image size and number of channels.
    # "rms": norms divided by the square root of the number of elements; the sums of FGD and MGD
    # divided by the number.
    cfg.DISTILLATION.SCALE = "sum"
    # Standardize the features of teacher and student, per image and channel over the positions,
    # before they are compared. Applies to the attention-guided, non-local, FGD, MGD and FitNet
    # losses; PKD always standardizes. False: as in the papers.
    cfg.DISTILLATION.STANDARDIZE = True
    # Use trainable adapters on the student's features even if teacher and student have equal
    # numbers of channels, as in the authors' code of the attention-guided and non-local losses.
    # Applies to all feature losses. False: only if the numbers differ.
    cfg.DISTILLATION.ADAPT_EQUAL_WIDTHS = False
    # Made no difference on standardized features; now always absolute, as in the papers.
    cfg.register_deprecated_key("DISTILLATION.RELATIVE_TEMPERATURE")


def _add_feature_losses(cfg: CN) -> None:
    """Add the keys of the losses on features."""
    # AttentionGuidedLoss (Zhang & Ma, ICLR 2021). Defaults: AID's released code for two-stage
    # detectors; for single-stage detectors it has 0.1, 5.6e-4, 2.4e-2 and 2.4e-2.
    cfg.DISTILLATION.ATTENTION = CN()
    cfg.DISTILLATION.ATTENTION.TEMPERATURE = 0.5  # of the softmax in both attentions
    cfg.DISTILLATION.ATTENTION.FEATURE_WEIGHT = 4e-5  # of features, weighted by both attentions
    cfg.DISTILLATION.ATTENTION.CHANNEL_WEIGHT = 8e-3  # of the means over positions, by channel
    cfg.DISTILLATION.ATTENTION.SPATIAL_WEIGHT = 8e-3  # of the means over channels, by position

    cfg.DISTILLATION.NON_LOCAL = CN()
    # Weight of NonLocalLoss (Zhang & Ma, ICLR 2021). Default: AID's released code for two-stage
    # detectors; for single-stage detectors it has 4.9e-4.
    cfg.DISTILLATION.NON_LOCAL.WEIGHT = 4e-5
    # Kernel sizes of the max-pooling of keys and values in NonLocalLoss, finest level first; the
    # last one also applies to all further levels.
    cfg.DISTILLATION.NON_LOCAL.SUBSAMPLE = [8, 4, 2, 2, 2]
    # Train a non-local block on the teacher's features, too, as in the authors' code. False: the
    # target is the teacher's features themselves.
    cfg.DISTILLATION.NON_LOCAL.TRAIN_TEACHER = False

    # FGDLoss (Yang et al., CVPR 2022). Defaults: the authors' configs for Faster R-CNN. Their
    # RetinaNet has weights 1e-3, 5e-4, 5e-4 and 5e-6, their FCOS temperature 0.8 and weights
    # 1.6e-3, 8e-4, 8e-4 and 8e-6.
    cfg.DISTILLATION.FGD = CN()
    cfg.DISTILLATION.FGD.TEMPERATURE = 0.5  # of the softmax in both attentions
    cfg.DISTILLATION.FGD.FOREGROUND_WEIGHT = 5e-5  # alpha in the paper
    cfg.DISTILLATION.FGD.BACKGROUND_WEIGHT = 2.5e-5  # beta in the paper
    cfg.DISTILLATION.FGD.ATTENTION_WEIGHT = 5e-5  # gamma in the paper
    cfg.DISTILLATION.FGD.GLOBAL_WEIGHT = 5e-7  # lambda in the paper

    cfg.DISTILLATION.PKD = CN()
    # Weight of PKDLoss (Cao et al., NeurIPS 2022). Default: the authors' code in MMRazor for Faster
    # R-CNN; for RetinaNet it has 10.0.
    cfg.DISTILLATION.PKD.WEIGHT = 6.0

    # CWDLoss (Shu et al., ICCV 2021). Defaults: MMRazor for Faster R-CNN and RetinaNet. The
    # detection code that the authors refer to has weight 5.0 for RetinaNet.
    cfg.DISTILLATION.CWD = CN()
    cfg.DISTILLATION.CWD.TEMPERATURE = 1.0  # of the softmax over positions
    cfg.DISTILLATION.CWD.WEIGHT = 10.0

    # MGDLoss (Yang et al., ECCV 2022). Defaults: the authors' configs for Faster R-CNN; for
    # RetinaNet they have 2e-5 and 0.65.
    cfg.DISTILLATION.MGD = CN()
    cfg.DISTILLATION.MGD.WEIGHT = 5e-7  # alpha in the paper
    cfg.DISTILLATION.MGD.MASKED_SHARE = 0.45  # of the student's positions; lambda in the paper

    cfg.DISTILLATION.FITNET = CN()
    # Weight of FitNetLoss (Romero et al., ICLR 2015), which has none in the paper.
    cfg.DISTILLATION.FITNET.WEIGHT = 1.0


def _add_response_losses(cfg: CN) -> None:
    """Add the keys of the losses on predictions."""
    # ResponseLoss imitates the teacher's classes (Hinton et al., arXiv 1503.02531) and boxes.
    cfg.DISTILLATION.RESPONSE = CN()
    cfg.DISTILLATION.RESPONSE.TEMPERATURE = 1.0  # of the classes
    cfg.DISTILLATION.RESPONSE.CLS_WEIGHT = 1.0  # of the classes
    cfg.DISTILLATION.RESPONSE.BOX_WEIGHT = 1.0  # of the boxes
    # Of BoxResponseLoss, which version 0.2 removed: config.yaml of earlier runs has it.
    cfg.register_deprecated_key("DISTILLATION.RESPONSE.WEIGHT")
    # Number of the teacher's top-scoring proposals per image that are compared, in addition to the
    # ground-truth boxes. Two-stage detectors only. With TEACHER.DETECTIONS the largest number of
    # detections per image, for all detectors.
    cfg.DISTILLATION.RESPONSE.NUM_ROIS = 64
    # Class score above which background samples are imitated, in ResponseLoss and CrossKDLoss of
    # dense detectors. The score of an FCOS is class score times centerness. With TEACHER.DETECTIONS
    # score above which detections are imitated, for all detectors. Default: Detectron2's
    # SCORE_THRESH_TEST, the least score of a detection.
    cfg.DISTILLATION.RESPONSE.MIN_SCORE = 0.05

    # LocalisationLoss (LD, arXiv 2102.12252): distributions of box edges, for GFL. Defaults: LD's
    # code in MMDetection, which sums over positives; the loss is their mean here.
    cfg.DISTILLATION.LOCALISATION = CN()
    cfg.DISTILLATION.LOCALISATION.TEMPERATURE = 10.0  # of the softmax over a distribution
    cfg.DISTILLATION.LOCALISATION.WEIGHT = 0.25

    cfg.DISTILLATION.CROSS_KD = CN()
    # Number of convolutions at the end of each branch of the teacher's head that CrossKDLoss (Wang
    # et al., CVPR 2024, arXiv 2306.11369) applies to the student's features, besides the
    # predictors. The heads have 4. Default: the authors' config for RetinaNet; for FCOS it is 2.
    cfg.DISTILLATION.CROSS_KD.NUM_CONVS = 1
    # Weights of CrossKDLoss for classes and boxes. Defaults: the authors' config for RetinaNet,
    # which sums over anchors; the loss is their mean here. For GFL 1.0 and 4.0, FCOS 0.4 and 0.75.
    cfg.DISTILLATION.CROSS_KD.CLS_WEIGHT = 1.0
    cfg.DISTILLATION.CROSS_KD.BOX_WEIGHT = 1.0


def _add_weighting(cfg: CN) -> None:
    """Add the keys of the imitation weights."""
    cfg.AID = CN()
    # Weighting rule, which maps the teacher's per-instance loss D to the imitation weight w: a name
    # in WEIGHTING_REGISTRY. `--register studies/rules.py` adds experimental rules.
    cfg.AID.WEIGHTING = "ExponentialWeighting"
    # Decay of the weight in ExponentialWeighting, w = exp(-ALPHA * D). 0.0 is plain distillation.
    # Default: the AID paper.
    cfg.AID.ALPHA = 0.1
    # Region that one weight covers. Options: "instance" (a ground-truth box), "level" (an FPN level
    # of an image; scale-wise in the AID paper), "image", "none" (plain distillation without D).
    cfg.AID.GRANULARITY = "instance"
    # Weight of the background if GRANULARITY is "instance". Options: "mean" (mean weight of the
    # image's instances), "loss" (from the teacher's loss on the background), "one". With "mean",
    # images without instances use "loss".
    cfg.AID.BACKGROUND = "mean"
    # Weight in ConstantWeighting.
    cfg.AID.CONSTANT = 1.0
    # Of rules that are in studies/rules.py now and have constants instead.
    cfg.register_deprecated_key("AID.DISTRUSTED_CLASSES")
    cfg.register_deprecated_key("AID.MOMENTUM")
    # Divide the weight map of each level by its mean over the batch: weights then redistribute
    # imitation without changing its overall strength.
    cfg.AID.NORMALIZE = False
    # Coefficients of the components of the per-instance loss: D is their weighted sum, which
    # amounts to an ALPHA for each component.
    cfg.AID.COEFFICIENTS = CN()
    cfg.AID.COEFFICIENTS.CLS = 1.0  # classification
    cfg.AID.COEFFICIENTS.BOX = 1.0  # box regression
    cfg.AID.COEFFICIENTS.RPN_CLS = 1.0  # objectness; two-stage teachers only
    cfg.AID.COEFFICIENTS.RPN_BOX = 1.0  # proposals; two-stage teachers only
    cfg.AID.COEFFICIENTS.CTR = 1.0  # centerness; FCOS only


def _add_unlabeled(cfg: CN) -> None:
    """Add the keys of images without labels."""
    # Names of registered datasets whose images are used without labels: annotations, if any, are
    # ignored. Needs SHARE below and a student that distills.
    cfg.DATASETS.UNLABELED = ()
    cfg.UNLABELED = CN()
    # Share of the images of each forward pass that is drawn from DATASETS.UNLABELED, rounded to the
    # nearest number of images, halves up. At least one image has labels. 0.0: no such images.
    cfg.UNLABELED.SHARE = 0.0
    # Least score of the detections of the first teacher that become labels of these images. The
    # teacher's own thresholds apply before. Default: within 0.01 of the best F1 of the detections
    # of small Faster R-CNN and GFL teachers on rendered scenes; for a RetinaNet it is 0.3.
    cfg.UNLABELED.SCORE_THRESH = 0.5
    # Exponent of the imitation weight of such a label, w = score ** ALPHA. Default: weight 1 for
    # all, as 1.0 gained nothing with a loss on features, see docs/unlabeled.md.
    cfg.UNLABELED.ALPHA = 0.0


def _add_input(cfg: CN) -> None:
    """Add the key of regions that training ignores."""
    # Train without negatives in regions that the metric ignores: annotations with iscrowd 1, among
    # them KITTI's DontCare regions and neighbor classes such as Van. Anchors and proposals are no
    # negatives if more than half of their area is in such a region, points of FCOS and cells of GFL
    # if their center is in it; this applies to the student's own losses and the teacher's loss D.
    # False: such regions are background, as in Detectron2.
    cfg.INPUT.IGNORE_REGIONS = False


def _add_fcos(cfg: CN) -> None:
    """Add the keys of FCOS, which Detectron2 configures by LazyConfig only."""
    cfg.MODEL.FCOS = CN()
    # Number of foreground classes. FCOS is arXiv 1904.01355; unless noted, the defaults of its keys
    # are those of Detectron2, which has them for LazyConfig.
    cfg.MODEL.FCOS.NUM_CLASSES = 80
    # FPN levels that the head reads.
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Number of convolutions in each of the two branches of the head.
    cfg.MODEL.FCOS.NUM_CONVS = 4
    # Normalization of these convolutions. Options: "" (none), "GN" or another that Detectron2 has.
    cfg.MODEL.FCOS.NORM = "GN"
    # Initial probability of every class, as in RetinaNet.
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    # Initial distance from a point to each side of its box, in strides. Boxes are almost empty at
    # 0, Detectron2's value, where IoU has no gradient; small heads may not recover from it.
    cfg.MODEL.FCOS.PRIOR_DISTANCE = 0.0
    # Radius of center sampling (arXiv 2006.09214), in strides: only points closer to the center of
    # a box are assigned to it.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    # Parameters of the focal loss, as in RetinaNet.
    cfg.MODEL.FCOS.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.FCOS.FOCAL_LOSS_GAMMA = 2.0
    # Least score of a detection. A score is the square root of class score times centerness, hence
    # 0.2 in place of RetinaNet's 0.05.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.2
    # Number of top-scoring candidates per level before NMS.
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    # IoU threshold of NMS.
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6


def _add_gfl(cfg: CN) -> None:
    """Add the keys of GFL."""
    cfg.MODEL.GFL = CN()
    # Number of foreground classes. GFL is arXiv 2006.04388; unless noted, the defaults of its keys
    # are the authors' settings.
    cfg.MODEL.GFL.NUM_CLASSES = 80
    # FPN levels that the head reads.
    cfg.MODEL.GFL.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Number of convolutions in each of the two branches of the head.
    cfg.MODEL.GFL.NUM_CONVS = 4
    # Normalization of these convolutions. Options: "" (none), "GN" or another that Detectron2 has.
    cfg.MODEL.GFL.NORM = "GN"
    # Largest distance from a cell to a side of its box, in cells.
    cfg.MODEL.GFL.REG_MAX = 16
    # Side of the anchors that assign cells to instances, in cells.
    cfg.MODEL.GFL.ANCHOR_SCALE = 8.0
    # Number of candidates per level and instance in the assignment, ATSS (arXiv 1912.02424).
    cfg.MODEL.GFL.TOPK = 9
    # Exponent of the quality focal loss, whose weight is 1.
    cfg.MODEL.GFL.QUALITY_BETA = 2.0
    # Weight of the GIoU loss.
    cfg.MODEL.GFL.GIOU_WEIGHT = 2.0
    # Weight of the distribution focal loss.
    cfg.MODEL.GFL.DISTRIBUTION_WEIGHT = 0.25
    # Initial probability of every class, as in RetinaNet.
    cfg.MODEL.GFL.PRIOR_PROB = 0.01
    # Least score of a detection.
    cfg.MODEL.GFL.SCORE_THRESH_TEST = 0.05
    # Number of top-scoring candidates per level before NMS.
    cfg.MODEL.GFL.TOPK_CANDIDATES_TEST = 1000
    # IoU threshold of NMS.
    cfg.MODEL.GFL.NMS_THRESH_TEST = 0.6


def _add_torchvision(cfg: CN) -> None:
    """Add the keys of the backbones from torchvision."""
    cfg.MODEL.TORCHVISION = CN()
    # Classification model of torchvision for MODEL.BACKBONE.NAME "build_torchvision_fpn_backbone",
    # e.g. "mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny".
    cfg.MODEL.TORCHVISION.NAME = "mobilenet_v3_large"
    # Batch norm of the model, like MODEL.RESNETS.NORM. Options: "BN", "FrozenBN", "SyncBN". Stages
    # that MODEL.BACKBONE.FREEZE_AT freezes have FrozenBN.
    cfg.MODEL.TORCHVISION.NORM = "FrozenBN"


def _add_solver(cfg: CN) -> None:
    """Add the keys of the solver that Detectron2 lacks."""
    # Options: "SGD", as in Detectron2; "AdamW", with which small networks learn from scratch in a
    # few hundred iterations. The other SOLVER keys apply to both.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Number of micro-batches per iteration, whose gradients are averaged. A process handles
    # IMS_PER_BATCH / ACCUMULATION_STEPS / number of processes images at a time, which determines
    # the memory.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Precision of the student if SOLVER.AMP.ENABLED is True. Options: "float16", as in Detectron2,
    # on a GPU only; "bfloat16", which has the range of float32 and needs no scaling of the loss.
    cfg.SOLVER.AMP.DTYPE = "float16"


def _add_model_ema(cfg: CN) -> None:
    """Add the keys of the average of the student's weights; names and default as in d2go."""
    cfg.MODEL_EMA = CN()
    # Average the weights over the iterations. The average is evaluated, and saved in checkpoints
    # under "model".
    cfg.MODEL_EMA.ENABLED = False
    # Decay per iteration of the exponential moving average; in iteration t, from 0, it is at most
    # (1 + t) / (10 + t).
    cfg.MODEL_EMA.DECAY = 0.999
