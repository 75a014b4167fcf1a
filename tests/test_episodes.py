"Episodes are pure in (seed, epoch, index); augmentation, batches and manifests."
import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fsrvos.data.episodes import (ClipAugmentation, EpisodeDataset, EpisodeError, PixelClip, PixelSource, boxes_from_masks, collate, crop,
                                  distort_colours, flip, pad_stack, resize, resize_masks, resized_size, support_manifest,
                                  swap_left_right, without_class_name)

CLASSES = ["cat", "dog", "bus"]
SMALL = ClipAugmentation(sizes=(24, 32, 40), longest=56, sizes_before_crop=(40, 50), crop_sides=(30, 50))


def tokenizer(text):
    return {"input_ids": [101, *(len(word) for word in text.split()), 102]}


def make_dataset(corpus, classes=CLASSES, **options):
    return EpisodeDataset(corpus, classes, source=PixelSource(corpus, tokenizer), **{"frames": 3, "shots": 2, "episodes_per_class": 20} | options)


def episodes(dataset, epoch=0):
    dataset.set_epoch(epoch)
    return [dataset.episode(i) for i in range(len(dataset))]


def test_pure_in_seed_epoch_and_index(tiny_corpus):
    corpus = tiny_corpus()
    dataset = make_dataset(corpus)
    first = episodes(dataset)
    assert len(first) == len(dataset) == 60
    fresh = make_dataset(corpus)
    assert [fresh.episode(i) for i in reversed(range(60))] == first[::-1]
    second = episodes(dataset, epoch=1)
    assert second != first and episodes(make_dataset(corpus, seed=1)) != first
    assert episodes(dataset, epoch=0) == first
    np.random.seed(0), torch.manual_seed(0)  # the global generators play no part
    assert dataset.episode(5) == first[5]


def test_same_samples_from_workers(tiny_corpus):
    dataset = make_dataset(tiny_corpus(), episodes_per_class=4, transform=SMALL)
    batches = list(DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=2))
    here = [collate([dataset[i] for i in range(start, start + 4)]) for start in (0, 4, 8)]
    for one, other in zip(batches, here):
        assert torch.equal(one.query[0], other.query[0]) and torch.equal(one.words, other.words) and one.episodes == other.episodes


def test_what_an_episode_is(tiny_corpus):
    corpus = tiny_corpus()
    drawn = episodes(make_dataset(corpus))
    assert Counter(episode.query.class_name for episode in drawn) == {name: 20 for name in CLASSES}
    for episode in drawn:
        query, support = episode.query, episode.support
        assert query.video != support.video and query.class_name == support.class_name == corpus.videos[query.video].category
        assert len(query.object_ids) == len(support.object_ids) == 1 and len(query.frames) == 3 and len(support.frames) == 2
        for clip in (query, support):
            names = corpus.videos[clip.video].frames
            start = names.index(clip.frames[0])
            assert clip.frames == names[start:start + len(clip.frames)]
            assert clip.expression in {e.text for e in corpus.videos[clip.video].expressions}
        assert corpus.read_masks(query.video, query.frames, query.object_ids).any()
        assert corpus.read_masks(support.video, support.frames, support.object_ids).any(axis=(2, 3)).all()
    assert len({episode.query.video for episode in drawn}) == len({episode.support.video for episode in drawn}) == 12  # every video comes up


def test_train_and_test_classes_never_meet(tiny_corpus):
    drawn = episodes(make_dataset(tiny_corpus(), classes=["cat", "dog"]))
    assert {c.class_name for e in drawn for c in (e.query, e.support)} == {"cat", "dog"}


def test_short_videos_repeat_their_last_frame(tiny_corpus):
    dataset = make_dataset(tiny_corpus(frames=2), frames=4)
    assert dataset.episode(0).query.frames == ("00000", "00005", "00005", "00005")
    assert dataset[0].query_levels[0].shape == (4, 3, 32, 48)


def test_class_name_dropout(tiny_corpus):
    corpus = tiny_corpus()
    named = [c.class_named for e in episodes(make_dataset(corpus, class_name_dropout=0)) for c in (e.query, e.support)]
    assert True in named and False in named
    for episode in episodes(make_dataset(corpus, class_name_dropout=1)):
        for clip in (episode.query, episode.support):
            assert clip.class_named is False and clip.class_name not in clip.expression
    half = [c.class_named for e in episodes(make_dataset(corpus, class_name_dropout=0.5)) for c in (e.query, e.support)]
    assert 0 < half.count(True) < named.count(True)


@pytest.mark.parametrize("text, name, expected", [
    ("the brown dog", "dog", "the brown one"), ("two Dogs", "dog", "two ones"), ("a dog on the left", "dog", "an object on the left"),
    ("an airplane", "airplane", "an object"), ("hot dogma", "dog", "hot dogma"), ("the panda", "giant_panda", "the one"),
    ("giant pandas eat", "giant_panda", "ones eat"), ("the earless seal", "earless_seal", "the one"), ("the foxes", "fox", "the ones")])
def test_without_class_name(text, name, expected):
    assert without_class_name(text, name) == expected


def test_sample(tiny_corpus):
    corpus = tiny_corpus()
    dataset = make_dataset(corpus)
    for i in range(20):
        sample = dataset[i]
        query = sample.episode.query
        ids = [1, 2]  # both squares are visible in any three frames
        assert sample.masks.dtype == torch.bool and torch.equal(sample.masks, torch.from_numpy(corpus.read_masks(query.video, query.frames, ids)))
        assert sample.referred.tolist() == [i in query.object_ids for i in ids]
        assert sample.support_masks.shape == (2, 32, 48) and sample.support_masks.dtype == torch.float32
        assert sample.words.tolist() == tokenizer(query.expression)["input_ids"]


def test_masks_cover_visible_objects_only(tiny_corpus):
    dataset = make_dataset(tiny_corpus(), frames=1)
    counts = Counter((sample.episode.query.frames[0] == "00025", len(sample.masks)) for sample in (dataset[i] for i in range(60)))
    assert set(counts) == {(False, 2), (True, 1)}  # object 2 is gone in the last frame


def test_pixel_source(tiny_corpus):
    corpus = tiny_corpus()
    frames = ("00000", "00005")
    pixels = torch.from_numpy(corpus.read_frames("cat_0", frames)).permute(0, 3, 1, 2).float()
    lite = PixelSource(corpus, tokenizer, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    assert torch.allclose(lite.frames("cat_0", frames)[0], (pixels - 127) / 128, atol=1e-5)
    large = PixelSource(corpus, tokenizer, size=(360, 640))
    assert large.frames("cat_0", frames)[0].shape == (2, 3, 360, 540)
    assert large.masks("cat_0", frames, (2, 1)).shape == (2, 2, 360, 540), "as large as the frames"
    assert large.words("a cat").tolist() == [101, 1, 3, 102]


@pytest.mark.parametrize("size, expected", [((720, 1280), (360, 640)), ((128, 192), (360, 540)), ((1280, 720), (640, 360)), ((100, 400), (160, 640))])
def test_resized_size(size, expected):
    assert resized_size(*size, 360, 640) == expected


def test_swap_left_right():
    assert swap_left_right("Left one, upright and bright, moves right") == "Right one, upright and bright, moves left"
    assert swap_left_right("leftmost rightwards copyright left-hand") == "rightmost leftwards copyright right-hand"


def coloured_clip():
    frames, masks = np.zeros((2, 40, 60, 3), np.uint8), np.zeros((2, 2, 40, 60), bool)
    frames[:, 5:20, 5:20], masks[0, :, 5:20, 5:20] = (200, 30, 30), True
    frames[:, 25:35, 40:55], masks[1, :, 25:35, 40:55] = (30, 30, 200), True
    return PixelClip(frames, masks, "the red one on the left")


def assert_masks_fit(clip, part=0.75):
    "The red pixels are those of mask 0, but for blurred edges."
    red = (clip.frames[..., 0].astype(int) - clip.frames[..., 2]) > 30
    union = (red | clip.masks[0]).sum()
    assert (red & clip.masks[0]).sum() > part * union


def test_masks_move_with_frames():
    clip = coloured_clip()
    assert_masks_fit(clip)
    flipped = flip(clip)
    assert_masks_fit(flipped)
    assert flipped.text == "the red one on the right" and flipped.masks[0, 0, :, 50].any()
    assert np.array_equal(flip(flipped).frames, clip.frames) and flip(flipped).text == clip.text
    assert_masks_fit(resize(clip, 64, None))
    assert_masks_fit(resize(clip, 24, 40))
    for seed in range(20):
        changed = SMALL(clip, np.random.default_rng(seed))
        assert changed.frames.shape[1:3] == changed.masks.shape[2:] and changed.masks.any(axis=(1, 2, 3)).all()
        assert changed.frames.shape[0] == 2 and changed.frames.dtype == np.uint8
        assert_masks_fit(changed, part=0.5)  # a crop may leave a sliver, which is nearly all edge


def test_crop_keeps_every_object():
    clip = coloured_clip()
    for seed in range(30):
        cropped = crop(clip, 15, 45, np.random.default_rng(seed))
        assert cropped.masks.any(axis=(1, 2, 3)).all()
    assert crop(clip, 1, 1, np.random.default_rng(0)) is clip  # no such crop: left alone


def test_distortion_is_one_for_a_clip():
    clip = coloured_clip()
    results = [distort_colours(clip, np.random.default_rng(seed)) for seed in range(10)]
    assert all(np.array_equal(result.frames[0], result.frames[1]) for result in results)
    assert len({result.frames.tobytes() for result in results}) > 5
    assert all((result.frames[0, 10, 10, 0] > result.frames[0, 10, 10, 2]) for result in results)  # red stays redder than blue


def test_the_papers_sizes():
    clip = coloured_clip()
    shapes = [ClipAugmentation()(clip, np.random.default_rng(seed)).frames.shape[1:3] for seed in range(8)]
    assert all(min(shape) <= 512 and max(shape) <= 640 for shape in shapes)


@pytest.mark.parametrize("rows, columns, box", [(slice(2, 6), slice(5, 11), (7.5 / 20, 3.5 / 10, 5 / 20, 3 / 10)),
                                                (slice(0, 10), slice(0, 20), (9.5 / 20, 4.5 / 10, 19 / 20, 9 / 10)),
                                                (slice(9, 10), slice(19, 20), (19 / 20, 9 / 10, 0, 0)), (slice(0, 0), slice(0, 0), (0.0, 0.0, 0.0, 0.0))])
def test_boxes(rows, columns, box):
    mask = torch.zeros(10, 20, dtype=torch.bool)
    mask[rows, columns] = True
    assert torch.allclose(boxes_from_masks(mask), torch.tensor(box))
    assert torch.allclose(boxes_from_masks(mask.float().expand(2, 3, 10, 20)), torch.tensor(box).expand(2, 3, 4))


def test_batch_of_equal_sizes(tiny_corpus):
    batch = collate([make_dataset(tiny_corpus())[i] for i in range(4)])
    assert [list(level.shape) for level in batch.query] == [[4, 3, 3, 32, 48]] and [list(level.shape) for level in batch.support] == [[4, 2, 3, 32, 48]]
    assert batch.query_padding is None and batch.support_padding is None
    assert batch.words.shape == batch.word_mask.shape and batch.word_mask.sum(1).tolist() == [len(e.query.expression.split()) + 2 for e in batch.episodes]
    assert (batch.words[~batch.word_mask] == 0).all()
    target = batch.targets[0]
    assert {key: (list(value.shape), value.dtype) for key, value in target.items()} == {
        "masks": ([2, 3, 32, 48], torch.float32), "boxes": ([2, 3, 4], torch.float32), "valid": ([2, 3], torch.bool),
        "labels": ([2], torch.int64), "referred": ([2], torch.bool), "other_referred": ([0, 2], torch.bool), "class_code": ([], torch.int64)}
    assert batch.to("cpu").targets[0]["valid"].any() and batch.to("meta").query[0].device.type == "meta" and batch.to("meta").query_padding is None


def test_batch_of_unequal_sizes(tiny_corpus):
    dataset = make_dataset(tiny_corpus(), transform=SMALL)
    samples = [dataset[i] for i in range(6)]
    batch = collate(samples)
    height, width = batch.query_padding.shape[-2:]
    assert len({sample.masks.shape[-2:] for sample in samples}) > 1 and batch.query[0].shape[-2:] == (height, width)
    for b, sample in enumerate(samples):
        h, w = sample.masks.shape[-2:]
        assert not batch.query_padding[b, :, :h, :w].any() and batch.query_padding[b].sum() == 3 * (height * width - h * w)
        assert torch.equal(batch.query[0][b, ..., :h, :w], sample.query_levels[0])
        assert (batch.query[0][b] * batch.query_padding[b, :, None]).abs().sum() == 0 and (batch.targets[b]["masks"] * batch.query_padding[b]).sum() == 0
        assert torch.equal(batch.targets[b]["boxes"], boxes_from_masks(sample.masks))  # parts of the image, not of the padded one
    assert batch.support_padding.shape == batch.support_masks.shape


def test_word_features_are_padded_too(tiny_corpus):
    dataset = make_dataset(tiny_corpus())
    dataset.source.words = lambda text: torch.ones(len(text.split()), 5)
    batch = collate([dataset[i] for i in range(4)])
    assert batch.words.shape == (*batch.word_mask.shape, 5) and torch.equal(batch.words[..., 0].bool(), batch.word_mask)


def test_pad_stack():
    stacked = pad_stack([torch.ones(2, 3, 4), torch.ones(2, 4, 3)])
    assert stacked.shape == (2, 2, 4, 4) and stacked.sum() == 48


@pytest.mark.parametrize("options, words", [({"classes": ["cat", "whale"]}, "whale"), ({"classes": []}, "no classes"), ({"frames": 0}, "at least 1"),
                                            ({"class_name_dropout": 1.5}, "probability")])
def test_data_sets_that_cannot_be(tiny_corpus, options, words):
    with pytest.raises(EpisodeError, match=words):
        make_dataset(tiny_corpus(), **options)


def test_transform_needs_pixels(tiny_corpus):
    corpus = tiny_corpus()
    with pytest.raises(EpisodeError, match="use a PixelSource"):
        EpisodeDataset(corpus, CLASSES, source=object(), transform=SMALL)
    with pytest.raises(IndexError):
        make_dataset(corpus).episode(60)


def queries(manifest, run):
    return {tuple(query) for drawn in manifest["runs"][run]["queries"].values() for query in drawn}


def test_manifest(tiny_corpus):
    corpus = tiny_corpus()
    manifest = support_manifest(corpus, CLASSES, runs=4, shots=3, seed=0, max_queries=18)
    assert manifest == json.loads(json.dumps(manifest)) == support_manifest(corpus, CLASSES, runs=4, shots=3, seed=0, max_queries=18)
    assert manifest["runs"] != support_manifest(corpus, CLASSES, runs=4, shots=3, seed=1, max_queries=18)["runs"]
    for number, run in enumerate(manifest["runs"]):
        assert run["run"] == number and list(run["support"]) == list(run["queries"]) == CLASSES
        for name, support in run["support"].items():
            video = corpus.videos[support["video"]]
            expression = next(e for e in video.expressions if e.id == support["expression_id"])
            assert video.category == name and len(support["frames"]) == 3
            assert expression.text == support["expression"] and expression.object_ids == (support["object_id"],)
            assert corpus.read_masks(video.id, support["frames"], [support["object_id"]]).any(axis=(2, 3)).all()
        for name, drawn in run["queries"].items():
            assert len(drawn) == 6
            for video_id, expression_id in drawn:
                expression = next(e for e in corpus.videos[video_id].expressions if e.id == expression_id)
                assert video_id != run["support"][name]["video"] and len(expression.object_ids) == 1
                assert corpus.videos[video_id].category == name
            kinds = Counter(next(e for e in corpus.videos[v].expressions if e.id == x).kind for v, x in drawn)
            assert kinds["attribute"] in (2, 3, 4) and kinds["motion"] in (2, 3, 4)
    assert len({run["support"]["cat"]["video"] for run in manifest["runs"]}) == 4  # four videos, four runs


def test_the_same_queries_in_all_runs_but_for_the_support(tiny_corpus):
    corpus = tiny_corpus(videos_per_class=8)
    manifest = support_manifest(corpus, CLASSES, runs=5, shots=2, seed=3, max_queries=12)
    for run in range(5):
        supports = {entry["video"] for entry in manifest["runs"][run]["support"].values()}
        for other in range(5):
            gone = queries(manifest, other) - queries(manifest, run)
            # four queries a class are about four videos: at most one a class is the support's, at most one a class replaces another
            assert len(queries(manifest, run)) == 12 and len(gone) <= 6 and len({video for video, _ in gone} - supports) <= 3


def test_all_queries(tiny_corpus):
    corpus = tiny_corpus()
    manifest = support_manifest(corpus, CLASSES, runs=2, shots=2)
    for run in manifest["runs"]:
        assert all(len(drawn) == 3 * 6 for drawn in run["queries"].values())  # three other videos, six single-object expressions each
    assert manifest["max_queries"] is None


def test_poor_classes_leave_their_share(tiny_corpus):
    corpus = tiny_corpus(videos_per_class=6)
    for video_id in ("cat_2", "cat_3", "cat_4", "cat_5"):
        del corpus.videos[video_id]
    manifest = support_manifest(corpus, CLASSES, runs=2, shots=2, max_queries=30)
    assert {name: len(drawn) for name, drawn in manifest["runs"][0]["queries"].items()} == {"cat": 6, "dog": 12, "bus": 12}


@pytest.mark.parametrize("options", [{"runs": 0}, {"shots": 0}, {"max_queries": 2}])
def test_manifests_that_cannot_be(tiny_corpus, options):
    with pytest.raises(EpisodeError, match="at least"):
        support_manifest(tiny_corpus(), CLASSES, **options)


def test_resize_masks_keeps_order():
    masks = np.zeros((2, 1, 4, 4), bool)
    masks[1, 0, :2] = True
    assert resize_masks(masks, (8, 2)).sum(axis=(1, 2, 3)).tolist() == [0, 8]
