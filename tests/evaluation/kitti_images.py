"""Adversarial but plausible input for KITTI's metric, in the form of kitti_reference.py.

Boxes, truncations and overlaps at and around the limits, ties, duplicates, ignored regions.
"""

import random

TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
OFTEN = ("Car", "Car", "Van", "Pedestrian", "Pedestrian", "Person_sitting", "Cyclist", "Cyclist")
HEIGHTS = (24.0, 24.5, 24.99, 25.0, 25.01, 25.75, 26.0, 39.0, 39.5, 39.99, 40.0, 40.01, 41.0)
TRUNCATIONS = (0.0, 0.14, 0.15, 0.16, 0.29, 0.3, 0.31, 0.49, 0.5, 0.51, 1.0)
TIED_SCORES = (0.1, 0.3, 0.5, 0.5, 0.7, 0.9)


def random_images(seed, num_images):
    """Adversarial but plausible images; coordinates, truncation and scores have few decimals.

    Coordinates and truncation survive being written with 2 decimals, scores with 4. How crowded
    the images and how good the detector is differ between seeds; with some seeds, some images have
    no ground truth, no detections, or none of both.
    """
    rng = random.Random(seed)
    style = {
        "clusters": rng.choice((1, 4, 8, 12)),
        "spread": (0.05, 0.15, 0.3, 1.5),
        "main": rng.choice(("Car", "Pedestrian", "Cyclist")),
        "found": rng.choice((0.5, 0.8, 0.95, 1.0)),
        "empty": rng.choice((0.0, 0.0, 0.1)),
        "jitter": rng.choice((0.0, 0.01, 0.02, 0.05)),
        "tricky": rng.choice((0.02, 0.1, 0.3)),
        "confusion": rng.choice((0.0, 0.05, 0.3)),
        "clutter": rng.choice((0, 1, 2, 5)),
        "skill": rng.choice((0.0, 0.4, 0.8)),
        "odd": rng.choice((0.05, 0.2, 0.6)),
        "tied": rng.choice((0.0, 0.3, 1.0)),
    }
    if rng.random() < 0.25:  # all objects found, as needed for 41 thresholds
        style.update(found=1.0, jitter=0.005, tricky=0.0, confusion=0.0, spread=(4.0,))
    return [_random_image(rng, style) for _ in range(num_images)]


def _random_image(rng, style):
    ground_truth = []
    for _ in range(rng.randint(style["clusters"] // 2, style["clusters"])):
        ground_truth += _random_cluster(rng, style)
    for _ in range(rng.choice((0, 0, 1, 2))):
        x, y = rng.randint(0, 900), rng.randint(100, 200)
        box = (x, y, x + rng.randint(5, 20) * 10, y + rng.randint(20, 120))
        for shift in rng.choice(((0,), (0, 10))):
            shifted = _rounded((box[0] + shift, box[1], box[2] + shift, box[3]))
            ground_truth.append(("DontCare", -1, -1, shifted))
    rng.shuffle(ground_truth)

    tied = rng.random() < style["tied"]
    detections = []
    for kind, _, _, box in ground_truth:
        if kind == "DontCare":
            detections += _detections_at_dontcare(rng, style, box, tied)
        elif rng.random() < style["found"]:
            detections += _detections_of_object(rng, style, kind, box, tied)
    for _ in range(rng.randint(0, style["clutter"])):
        box = _random_box(rng, rng.uniform(0, 1000), rng.uniform(100, 250))
        detections.append((rng.choice(OFTEN), box, _random_score(rng, tied, 0.0)))
    rng.shuffle(detections)

    emptied = rng.choice(("ground truth", "detections", "both"))
    if rng.random() < style["empty"]:
        ground_truth = [] if emptied != "detections" else ground_truth
        detections = [] if emptied != "ground truth" else detections
    ground_truth = [(_random_case(rng, entry[0]), *entry[1:]) for entry in ground_truth]
    detections = [(_random_case(rng, entry[0]), *entry[1:]) for entry in detections]
    return ground_truth, detections


def _random_cluster(rng, style):
    """Objects of one size, mostly of one class, adjacent or overlapping."""
    main = style["main"] if rng.random() < 0.3 else rng.choice(OFTEN)
    first = _random_box(rng, rng.uniform(0, 1000), rng.uniform(100, 250))
    spread = rng.choice(style["spread"])
    cluster = []
    for _ in range(rng.randint(1, 5)):
        kind = main if rng.random() < 0.8 else rng.choice(TYPES)
        odd = rng.random() < style["odd"]
        truncated = rng.choice(TRUNCATIONS) if odd else 0.0
        occluded = rng.choice((0, 1, 2, 3)) if odd else 0
        width, height = first[2] - first[0], first[3] - first[1]
        x = first[0] + rng.uniform(-spread, spread) * width
        y = first[1] + rng.uniform(-spread, spread) * height
        if rng.random() < 0.5:
            x, y = round(x), round(y)
        if rng.random() < style["odd"]:
            height = rng.choice(HEIGHTS)
        cluster.append((kind, truncated, occluded, _rounded((x, y, x + width, y + height))))
    return cluster


def _random_box(rng, x, y):
    """Random box, in half of the cases on whole pixels, where IoU can equal the limits."""
    height = rng.choice(HEIGHTS) if rng.random() < 0.4 else rng.uniform(20, 150)
    width = rng.uniform(0.4, 2.0) * height
    if rng.random() < 0.5:
        x, y, width = round(x), round(y), 10 * max(1, round(width / 10))
    return _rounded((x, y, x + width, y + height))


def _detections_of_object(rng, style, kind, box, tied):
    detections = []
    for _ in range(rng.choice((2, 3)) if rng.random() < style["tricky"] else 1):
        x1, y1, x2, y2 = box
        width, height = x2 - x1, y2 - y1
        predicted = rng.choice(TYPES) if rng.random() < style["confusion"] else kind
        score = _random_score(rng, tied, style["skill"])
        variant = rng.choice(("exact", "height", "copy", "mirror", "mirror"))
        if rng.random() >= style["tricky"]:
            variant = "jitter"
        if variant == "exact":  # IoU of exactly 0.5 or 0.7 where possible
            x2 = x1 + rng.choice((0.5, 0.7)) * width
        elif variant == "height":
            y2 = y1 + rng.choice(HEIGHTS)
        elif variant == "mirror":  # two boxes of equal IoU, left and right
            shift = round(rng.uniform(0.0, 0.15) * width)
            detections.append((predicted, _rounded((x1 - shift, y1, x2 - shift, y2)), score))
            x1, x2 = x1 + shift, x2 + shift
        elif variant == "jitter":
            x1 += rng.gauss(0, style["jitter"]) * width
            x2 += rng.gauss(0, style["jitter"]) * width
            y1 += rng.gauss(0, style["jitter"]) * height
            y2 += rng.gauss(0, style["jitter"]) * height
        if x2 - x1 < 1 or y2 - y1 < 1:
            x1, y1, x2, y2 = box
        detections.append((predicted, _rounded((x1, y1, x2, y2)), score))
    if rng.random() < style["tricky"] / 2:
        detections.append(detections[0])
    return detections


def _detections_at_dontcare(rng, style, box, tied):
    """Detections inside the region, or with exactly 0.5 or 0.7 of their width in it."""
    detections = []
    for _ in range(rng.randint(0, style["clutter"])):
        width = rng.randint(2, 5) * 10
        height = rng.choice(HEIGHTS)
        inside = rng.choice((0.4, 0.5, 0.5, 0.6, 0.7, 0.7, 0.8, 1.0))
        x1 = box[2] - inside * width
        detected = _rounded((x1, box[1], x1 + width, box[1] + height))
        detections.append((rng.choice(OFTEN), detected, _random_score(rng, tied, 0.0)))
    return detections


def _random_score(rng, tied, skill):
    if tied:
        return rng.choice(TIED_SCORES)
    return round(skill + (1 - skill) * rng.random(), 4)


def _random_case(rng, kind):
    return rng.choice((kind, kind, kind, kind.lower(), kind.upper(), kind.swapcase()))


def _rounded(box):
    return tuple(round(float(v), 2) for v in box)
