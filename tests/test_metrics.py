"J and F: the published definition, the golden file, hand-made cases, bad input."
from pathlib import Path

import cv2
import numpy as np
import pytest

from fsrvos.evaluation.metrics import boundary_map, contour_accuracy, region_and_contour, region_similarity
from fsrvos.kernels import build, contour
from fsrvos.kernels.contour import contour_counts

GOLDEN = Path(__file__).parent / "golden" / "metric_golden.npz"


@pytest.fixture(params=["C++", "NumPy"], autouse=True)
def counted_by(request, monkeypatch):
    "Every test is of both ways to count."
    if request.param == "NumPy":
        monkeypatch.setenv("FSRVOS_KERNELS", "reference")
    if request.param == "C++" and contour_counts() is None:
        pytest.skip("no C++ compiler here: NumPy counts")
    assert (contour_counts() is None) == (request.param == "NumPy")


def slow_boundary(mask):
    "The Berkeley rule, pixel by pixel."
    height, width = mask.shape
    boundary = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            neighbours = []
            if x + 1 < width:
                neighbours.append(mask[y, x + 1])
            if y + 1 < height:
                neighbours.append(mask[y + 1, x])
            if x + 1 < width and y + 1 < height:
                neighbours.append(mask[y + 1, x + 1])
            boundary[y, x] = any(neighbour != mask[y, x] for neighbour in neighbours)
    return boundary


def slow_f(prediction, truth, bound_th):
    "F straight from its definition: every outline pixel's nearest pixel on the other outline."
    radius = bound_th if bound_th >= 1 else np.ceil(bound_th * np.hypot(*prediction.shape))
    outlines = [np.argwhere(slow_boundary(mask)) for mask in (prediction, truth)]
    if not len(outlines[0]) or not len(outlines[1]):
        return float(len(outlines[0]) == len(outlines[1]))
    squared = ((outlines[0][:, None] - outlines[1][None]) ** 2).sum(-1)
    precision = (squared.min(1) <= radius ** 2).mean()
    recall = (squared.min(0) <= radius ** 2).mean()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def slow_j(prediction, truth):
    union = (prediction | truth).sum()
    return 1.0 if union == 0 else (prediction & truth).sum() / union


def blobs(seed, height, width):
    "A random mask with structure: coarse noise, or speckle."
    rng = np.random.default_rng(seed)
    step = int(rng.integers(1, 9))
    coarse = rng.random((-(-height // step), -(-width // step))) < rng.random()
    return np.kron(coarse, np.ones((step, step), bool))[:height, :width]


@pytest.mark.parametrize("bound_th", [0.008, 0.010, 0.03, 0.08, 1, 2, 7])
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_definition_on_random_masks(seed, bound_th):
    height, width = np.random.default_rng(seed).integers(1, 70, 2)
    prediction, truth = blobs(2 * seed, height, width), blobs(2 * seed + 1, height, width)
    assert contour_accuracy(prediction, truth, bound_th) == pytest.approx(slow_f(prediction, truth, bound_th), abs=1e-12)
    assert region_similarity(prediction, truth) == pytest.approx(slow_j(prediction, truth), abs=1e-12)


def dilated_f(prediction, truth, bound_th):
    "F as the DAVIS toolkit computes it: both outlines of the whole frame dilated by a disk."
    radius = bound_th if bound_th >= 1 else np.ceil(bound_th * np.linalg.norm(prediction.shape))
    steps = np.arange(-int(radius), int(radius) + 1)
    disk = (steps[:, None] ** 2 + steps ** 2 <= radius ** 2).astype(np.uint8)
    outlines = boundary_map(np.stack([prediction, truth]))
    found = outlines.sum((1, 2))
    if not found.all():
        return float(not found.any())
    precision, recall = (np.sum(outlines[k] * cv2.dilate(outlines[1 - k].astype(np.uint8), disk)) / found[k] for k in (0, 1))
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def any_mask(rng, height, width):
    "Empty, full, one pixel, a box or all but a box (often at the border), blobs or speckle."
    kind, mask = rng.integers(6), np.zeros((height, width), bool)
    if kind == 0:
        mask[rng.integers(height), rng.integers(width)] = True
    elif kind in (1, 2):
        (top, bottom), (left, right) = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        mask[top:bottom, left:right] = True
    elif kind > 3:
        return blobs(rng.integers(1 << 30), height, width)
    return mask ^ (rng.random() < .3)


@pytest.mark.parametrize("largest", [7, 40, 130, 300])
def test_equals_the_dilation_to_the_last_bit(largest):
    "Thousands of pairs of any size, also of one row or column, at tolerances of the field, in pixels, in fractions of one, and wider than the frame."
    rng, kinds = np.random.default_rng(largest), set()
    for _ in range(4000 // largest + 100):
        height, width = rng.integers(1, largest + 1, 2)
        prediction, truth = any_mask(rng, height, width), any_mask(rng, height, width)
        kinds.add((prediction.any(), prediction.all()))
        assert region_similarity(prediction, truth) == slow_j(prediction, truth)
        for bound_th in rng.choice((0, .008, .010, .05, 1, 1.5, 2, 2.5, 3, 8, 21), 4, replace=False):
            assert region_and_contour(prediction, truth, bound_th) == (slow_j(prediction, truth), dilated_f(prediction, truth, bound_th)), (height, width, bound_th)
    assert len(kinds) == 3


def test_equals_the_dilation_at_480p():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:480, :854]
    for size in (20, 120, 400):
        prediction, truth = (np.hypot(rows - rng.integers(480), columns - rng.integers(854)) < size * (1 + .2 * np.sin(rows / 9) + .1 * rng.random((480, 854))) for _ in range(2))
        for bound_th in (.008, .010, 40):
            assert region_and_contour(prediction, truth, bound_th) == (region_similarity(prediction, truth), dilated_f(prediction, truth, bound_th))


def test_golden():
    stored = np.load(GOLDEN)
    cases = sorted(name[:2] for name in stored.files if name.endswith("_shape"))
    assert len(cases) == 20
    for case in cases:
        height, width = stored[f"{case}_shape"]
        prediction, truth = (np.unpackbits(stored[f"{case}_{which}_bits"])[:height * width].reshape(height, width).astype(bool)
                             for which in ("pred", "gt"))
        assert abs(region_similarity(prediction, truth) - stored[f"{case}_J"]) < 1e-9, case
        for bound_th in ("0.008", "0.010"):
            assert abs(contour_accuracy(prediction, truth, float(bound_th)) - stored[f"{case}_F_th{bound_th}"]) < 1e-9, (case, bound_th)


def mask_with(*slices, shape=(32, 48)):
    mask = np.zeros(shape, bool)
    for part in slices:
        mask[part] = True
    return mask


EMPTY, FULL = mask_with(), ~mask_with()
PIXEL, CORNER = mask_with(np.s_[10, 10]), mask_with(np.s_[31, 47])


@pytest.mark.parametrize("prediction, truth, j, f", [
    (EMPTY, EMPTY, 1, 1), (FULL, FULL, 1, 1), (PIXEL, PIXEL, 1, 1), (CORNER, CORNER, 1, 1),
    (EMPTY, PIXEL, 0, 0), (PIXEL, EMPTY, 0, 0),
    (FULL, EMPTY, 0, 1), (EMPTY, FULL, 0, 1),                      # a full mask has no outline
    (FULL, mask_with(np.s_[:, :24]), .5, 0),
    (mask_with(np.s_[:, :24]), mask_with(np.s_[:, :25]), 24 / 25, 1),   # touches three borders; outlines one pixel apart
    (mask_with(np.s_[:8, :8]), mask_with(np.s_[24:, 40:]), 0, 0),
], ids=str)
def test_hand_made(prediction, truth, j, f):
    assert region_similarity(prediction, truth) == pytest.approx(j, abs=1e-12)
    assert contour_accuracy(prediction, truth) == pytest.approx(f, abs=1e-12)


def test_corner_pixel_is_seen_by_its_upper_left_neighbours_only():
    assert slow_boundary(CORNER).sum() == 3
    assert contour_accuracy(CORNER, EMPTY) == 0


def test_clip_is_frame_by_frame():
    prediction, truth = np.stack([EMPTY, FULL, PIXEL]), np.stack([EMPTY, EMPTY, CORNER])
    assert region_similarity(prediction, truth).tolist() == [1, 0, 0]
    assert contour_accuracy(prediction, truth).tolist() == [1, 1, 0]
    j, f = region_and_contour(prediction, truth)
    assert j.tolist() == [1, 0, 0] and f.tolist() == [1, 1, 0]
    assert all(measure.shape == (0,) for measure in (region_similarity(prediction[:0], truth[:0]), *region_and_contour(prediction[:0], truth[:0])))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (1, 9), (9, 1)])
def test_hardly_a_frame(shape):
    for value in (np.zeros(shape, bool), np.ones(shape, bool)):
        assert region_similarity(value, value) == contour_accuracy(value, value) == 1 and region_and_contour(value, value) == (1, 1)


@pytest.mark.parametrize("width", [1, 63, 64, 65, 127, 128, 129, 300])
@pytest.mark.parametrize("bound_th", [1, 5.5, 40, 70, 200, 1000])
def test_words_rows_and_disks_of_any_size(width, bound_th, monkeypatch):
    rng = np.random.default_rng(width)
    prediction, truth = (rng.random((3, 37, width)) < np.array([.003, .5, .99])[:, None, None] for _ in range(2))
    counted = region_and_contour(prediction, truth, bound_th)
    monkeypatch.setenv("FSRVOS_KERNELS", "reference")
    assert all(np.array_equal(a, b) for a, b in zip(counted, region_and_contour(prediction, truth, bound_th)))


def test_without_a_compiler_numpy_counts(monkeypatch):
    monkeypatch.delenv("FSRVOS_KERNELS", raising=False)
    monkeypatch.setattr(build, "load", lambda source: (_ for _ in ()).throw(RuntimeError("no compiler")))
    contour._kernel.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"no C\+\+ kernel for J and F \(RuntimeError: no compiler\); NumPy counts"):
            assert region_and_contour(PIXEL, PIXEL) == (1, 1)
        assert contour_counts() is None
    finally:
        contour._kernel.cache_clear()


def test_masks_that_must_not_be_written_to(recwarn):
    mask = np.eye(9, dtype=bool)
    mask.setflags(write=False)
    assert region_and_contour(mask, mask) == (1, 1) and not recwarn.list


def test_inputs_stay_as_they_were():
    prediction, truth = blobs(1, 40, 50), blobs(2, 40, 50)
    before = prediction.copy(), truth.copy()
    contour_accuracy(prediction, truth)
    assert (prediction == before[0]).all() and (truth == before[1]).all()


def test_non_contiguous_masks():
    prediction, truth = blobs(3, 80, 90), blobs(4, 80, 90)
    strided = contour_accuracy(prediction[::2, ::-1], truth[::2, ::-1])
    assert strided == contour_accuracy(prediction[::2, ::-1].copy(), truth[::2, ::-1].copy())


@pytest.mark.parametrize("measure", [region_similarity, contour_accuracy, region_and_contour])
@pytest.mark.parametrize("prediction, truth, message", [
    (PIXEL, PIXEL[1:], "must have one shape"),
    (PIXEL[None, None], PIXEL[None, None], "must have one shape"),
    (PIXEL.astype(np.uint8) * 255, PIXEL, "prediction has dtype uint8"),
    (PIXEL, PIXEL.astype(float), "ground_truth has dtype float64"),
])
def test_bad_input_is_one_clear_error(measure, prediction, truth, message):
    with pytest.raises(ValueError, match=message):
        measure(prediction, truth)


def test_negative_tolerance():
    with pytest.raises(ValueError, match="bound_th is -1"):
        contour_accuracy(PIXEL, PIXEL, -1)
