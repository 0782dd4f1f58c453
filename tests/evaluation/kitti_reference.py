"""Reference of KITTI's 2D detection metric: slow and literal.

It transcribes the rules of KITTI's development kit (cpp/evaluate_object.cpp) one by one: image by
image, threshold by threshold, detection by detection. Pure Python doubles, no imports from the
project.

An image is (ground_truth, detections), both in file order:
    ground_truth: [(type, truncated, occluded, (x1, y1, x2, y2)), ...]
    detections: [(type, (x1, y1, x2, y2), score), ...]
"""

MIN_IOU = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
NEIGHBOR = {"Car": "Van", "Pedestrian": "Person_sitting", "Cyclist": None}
MIN_HEIGHT = {"easy": 40, "moderate": 25, "hard": 25}
MAX_OCCLUSION = {"easy": 0, "moderate": 1, "hard": 2}
MAX_TRUNCATION = {"easy": 0.15, "moderate": 0.30, "hard": 0.50}
SAMPLES = 41

VALID, IGNORED, ABSENT, ACTIVE, SMALL = "valid", "ignored", "absent", "active", "small"


def evaluate(images):
    """{class: {"AP_R40" or "AP_R11": {difficulty: percent, unrounded}}} of all images together."""
    result = {}
    for name in MIN_IOU:
        result[name] = {"AP_R40": {}, "AP_R11": {}}
        for difficulty in MIN_HEIGHT:
            precision = precision_samples(images, name, difficulty)
            result[name]["AP_R40"][difficulty] = 100.0 * sum(precision[1:]) / 40
            result[name]["AP_R11"][difficulty] = 100.0 * sum(precision[::4]) / 11
    return result


def same_type(a, b):
    return a is not None and b is not None and a.lower() == b.lower()


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height


def iou(a, b):
    inter = intersection(a, b)
    if inter == 0.0:
        return 0.0
    return inter / (area(a) + area(b) - inter)


def covered_part(detection_box, dontcare_box):
    inter = intersection(detection_box, dontcare_box)
    if inter == 0.0:
        return 0.0
    return inter / area(detection_box)


def ground_truth_state(entry, name, difficulty):
    """State of a ground truth by rules 2 and 3."""
    kind, truncated, occluded, box = entry
    if same_type(kind, NEIGHBOR[name]):
        return IGNORED
    if not same_type(kind, name):
        return ABSENT
    # Equality passes here; public copies of the kit with the 3D metrics mostly have <=.
    if box[3] - box[1] < MIN_HEIGHT[difficulty]:
        return IGNORED
    if occluded > MAX_OCCLUSION[difficulty]:
        return IGNORED
    if truncated > MAX_TRUNCATION[difficulty]:
        return IGNORED
    return VALID


def detection_state(entry, name, difficulty):
    """State of a detection by rule 4: the height precedes the class."""
    kind, box, _ = entry
    if int(abs(box[1] - box[3])) < MIN_HEIGHT[difficulty]:
        return SMALL
    if same_type(kind, name):
        return ACTIVE
    return ABSENT


def first_pass(image, name, difficulty):
    """Apply rules 5 and 6 without a threshold: (number of valid objects, scores of TP)."""
    ground_truth, detections = image
    used = [False] * len(detections)
    num_valid = 0
    scores = []
    for entry in ground_truth:
        state = ground_truth_state(entry, name, difficulty)
        if state == ABSENT:
            continue
        if state == VALID:
            num_valid += 1
        best = None
        for d in range(len(detections)):
            if used[d] or detection_state(detections[d], name, difficulty) == ABSENT:
                continue
            if not iou(detections[d][1], entry[3]) > MIN_IOU[name]:
                continue
            if best is None or detections[d][2] > detections[best][2]:
                best = d
        if best is None:
            continue
        used[best] = True
        if state == VALID and detection_state(detections[best], name, difficulty) == ACTIVE:
            scores.append(detections[best][2])
    return num_valid, scores


def second_pass(image, name, difficulty, threshold):
    """Apply rules 5 to 7 at one threshold: (TP, FP). FN do not enter the AP."""
    ground_truth, detections = image
    used = [False] * len(detections)
    tp = 0
    for entry in ground_truth:
        state = ground_truth_state(entry, name, difficulty)
        if state == ABSENT:
            continue
        best_active = None
        best_iou = 0.0
        first_small = None
        for d in range(len(detections)):
            _, box, score = detections[d]
            if used[d] or score < threshold:
                continue
            overlap = iou(box, entry[3])
            if not overlap > MIN_IOU[name]:
                continue
            detection = detection_state(detections[d], name, difficulty)
            if detection == ACTIVE and (best_active is None or overlap > best_iou):
                best_active = d
                best_iou = overlap
            if detection == SMALL and first_small is None:
                first_small = d
        if best_active is not None:
            used[best_active] = True
            if state == VALID:
                tp += 1
        elif first_small is not None:
            used[first_small] = True

    fp = 0
    for d in range(len(detections)):
        _, box, score = detections[d]
        if used[d] or score < threshold:
            continue
        if detection_state(detections[d], name, difficulty) != ACTIVE:
            continue
        fp += 1
        for kind, _, _, dontcare_box in ground_truth:
            if not same_type(kind, "DontCare"):
                continue
            if covered_part(box, dontcare_box) > MIN_IOU[name]:
                fp -= 1
                break
    return tp, fp


def score_thresholds(scores, num_valid):
    """Score thresholds by rule 8."""
    scores = sorted(scores, reverse=True)
    thresholds = []
    target = 0.0
    for i in range(len(scores)):
        is_last = i == len(scores) - 1
        left = (i + 1) / num_valid
        right = left if is_last else (i + 2) / num_valid
        if right - target < target - left and not is_last:
            continue
        thresholds.append(scores[i])
        target += 1.0 / 40
    assert len(thresholds) <= SAMPLES  # follows from the rule: left and right never pass 1
    return thresholds


def precision_samples(images, name, difficulty):
    """41 samples of the precision by rule 9, all 0 without valid ground truth."""
    num_valid = 0
    scores = []
    for image in images:
        valid_here, scores_here = first_pass(image, name, difficulty)
        num_valid += valid_here
        scores += scores_here
    precision = [0.0] * SAMPLES
    for k, threshold in enumerate(score_thresholds(scores, num_valid)):
        tp = 0
        fp = 0
        for image in images:
            tp_here, fp_here = second_pass(image, name, difficulty, threshold)
            tp += tp_here
            fp += fp_here
        if tp + fp > 0:
            precision[k] = tp / (tp + fp)
    for k in range(SAMPLES):
        precision[k] = max(precision[k:])
    return precision
