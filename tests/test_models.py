"""The model across modules: features from the store are those of the frames, frozen stays frozen, controls do not see what they must not."""
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch

from fsrvos.data.corpus import Corpus, write_frame
from fsrvos.data.episodes import EpisodeDataset, collate
from fsrvos.models.encoders import EncoderError, FeatureStore, load_vision_encoder
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel, WeightError, select
from fsrvos.training.losses import Criterion
from fsrvos.training.loop import forward

OURS = dict(similarity_prior=True, referring_head="look", dense_auxiliary=True, match_all_objects=True, soft_positive_iou=0.6, support_metric=16)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    from tests.tiny import make_tiny_corpus
    root = tmp_path_factory.mktemp("corpus")
    make_tiny_corpus(root / "tiny")
    return Corpus.load(root / "tiny")


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
    return FeatureStore.build(tmp_path_factory.mktemp("features"), corpus, progress=False)


@pytest.fixture(scope="module")
def batch(corpus, store):
    dataset = EpisodeDataset(corpus, sorted(corpus.videos_by_class), source=store, frames=3, shots=2, episodes_per_class=2)
    return collate([dataset[0], dataset[1]])


def tiny_model(**options):
    torch.manual_seed(0)
    return FSRVOSModel(FSRVOSConfig.from_preset("tiny", **options))


def decode(model, batch, **changed):
    inputs = dict(query_levels=batch.query, words=batch.words, word_mask=batch.word_mask, support_levels=batch.support,
                  support_masks=batch.support_masks, support_words=batch.support_words, support_word_mask=batch.support_word_mask)
    with torch.no_grad():
        return model.eval().decode(**{**inputs, **changed})


def test_the_store_holds_what_the_encoder_gives(corpus, store):
    video = next(iter(corpus.videos.values()))
    encoder = load_vision_encoder("efficientnet-lite0")
    pixels = torch.from_numpy(corpus.read_frames(video.id, video.frames[1:3])).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = encoder((pixels.float() - 127) / 128)
    for stored, level in zip(store.frames(video.id, video.frames[1:3]), wanted, strict=True):
        assert torch.allclose(stored, level, atol=2e-2, rtol=2e-3)  # kept as float16


def test_the_store_is_built_once(corpus, store):
    root = store.folder.parent
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    FeatureStore.build(root, corpus, progress=False)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_a_store_that_was_not_built_is_one_clear_error(corpus, tmp_path):
    with pytest.raises(EncoderError, match="features"):
        FeatureStore.open(tmp_path, corpus)


def changed_copy(corpus, folder):
    "The corpus elsewhere, with other pixels in one frame in the middle of a clip."
    shutil.copytree(corpus.root, folder)
    copy = Corpus.load(folder)
    video = next(iter(copy.videos.values()))
    write_frame(video.frame_path(video.frames[2]), 255 - copy.read_frames(video.id, video.frames[2:3])[0])
    return copy


def test_another_picture_under_an_old_name_has_other_features(corpus, store, tmp_path):
    root = store.folder.parent
    assert FeatureStore.open(root, Corpus.load(shutil.copytree(corpus.root, tmp_path / "same"))).folder == store.folder, "where it lies is no part of what it is"
    with pytest.raises(EncoderError, match="run the stage 'features' first"):
        FeatureStore.open(root, changed_copy(corpus, tmp_path / "changed"))


def test_an_encoder_that_was_trained_on_in_its_folder_has_other_features(corpus, tmp_path):
    folder = tmp_path / "backbone"
    folder.mkdir()
    places = []
    for weights in (b"as it was", b"trained on", b"as it was"):
        (folder / "model.safetensors").write_bytes(weights)
        places.append(FeatureStore.folder_for(tmp_path, corpus, str(folder), "minilm-l6"))
    assert places[0] == places[2] != places[1]


def test_a_store_that_does_not_fit_is_refused_before_anything_is_encoded(corpus, store, tmp_path, monkeypatch):
    size = sum(p.stat().st_size for p in store.folder.glob("level*.npy"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/level0.npy").write_bytes(bytes(10_000))
    fits = (size + 10_000) / 1e9
    with pytest.raises(EncoderError, match=r"features_max_gb in params.yaml allows .* raise it, remove stores of .* or keep none \(features.keep: false\)"):
        FeatureStore.build(tmp_path, corpus, progress=False, max_gb=fits - 2e-6)
    assert not list(tmp_path.glob("*/index.json")) and not [p for p in tmp_path.rglob("*.npy") if "other" not in p.parts]
    monkeypatch.setattr("fsrvos.models.encoders.shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(EncoderError, match="the disk of .* has 1e-06 GB left"):
        FeatureStore.build(tmp_path, corpus, progress=False)
    monkeypatch.undo()
    built = FeatureStore.build(tmp_path, corpus, progress=False, max_gb=fits)
    assert sum(p.stat().st_size for p in built.folder.glob("level*.npy")) <= size


def test_what_is_kept_in_memory_is_bounded(corpus, store):
    "Masks that were dropped are read again, the same."
    small, ids = FeatureStore(store.folder, corpus), {v.id: sorted(v.objects) for v in corpus.videos.values()}
    one = small._packed_masks(next(iter(ids)))[0].nbytes
    small._masks.limit = 2 * one
    for video in [*ids, *ids]:
        frames = corpus.videos[video].frames
        assert torch.equal(small.masks(video, frames, ids[video]), store.masks(video, frames, ids[video]))
        assert small._masks.held <= max(2 * one, small._packed_masks(video)[0].nbytes)


def test_a_process_that_reads_can_be_handed_the_store(corpus, store):
    "Where processes are not forked, all of it is pickled."
    video = next(iter(corpus.videos.values()))
    handed = pickle.loads(pickle.dumps(store))
    assert torch.equal(handed.masks(video.id, video.frames, sorted(video.objects)), store.masks(video.id, video.frames, sorted(video.objects)))


def test_a_sentence_outside_of_the_corpus_is_encoded_on_demand(corpus, store):
    known = next(e.text for v in corpus.videos.values() for e in v.expressions)
    assert torch.equal(store.words("a sentence nobody wrote"), store.words("a sentence nobody wrote"))
    assert store.words("a sentence nobody wrote").shape[1] == store.words(known).shape[1]


@pytest.mark.parametrize("options", [{}, dict(affinity="none"), dict(affinity="self"), dict(support_frames="all"), OURS])
def test_every_trainable_weight_learns(batch, options):
    model = tiny_model(**options).train()
    criterion = Criterion(model.config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):  # layers that start at zero let no gradient through before the first step
        optimiser.zero_grad()
        criterion.total(criterion(forward(model, batch), batch.targets)).backward()
        optimiser.step()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle, idle


def test_encoders_are_frozen_and_not_saved(tmp_path):
    model = tiny_model().train()
    vision, text = model.encoders()
    assert not vision.training and not text.training and not any(p.requires_grad for e in (vision, text) for p in e.parameters())
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4e6
    loaded = FSRVOSModel.from_pretrained(tmp_path)
    loaded.encoders()
    loaded.config.encoder_digest, loaded._encoders = "0" * 16, None
    with pytest.raises(WeightError, match="trained with other weights"):
        loaded.encoders()


def test_without_support_the_support_changes_nothing(batch):
    model = tiny_model(**OURS, use_support=False)
    other = decode(model, batch, support_levels=[x + 1 for x in batch.support], support_masks=1 - batch.support_masks)
    assert torch.equal(decode(model, batch).pred_masks, other.pred_masks)
    assert not torch.equal(decode(tiny_model(**OURS), batch).pred_masks,
                           decode(tiny_model(**OURS), batch, support_masks=1 - batch.support_masks).pred_masks)


def test_without_words_the_words_change_nothing(batch):
    model = tiny_model(**OURS, use_words=False)
    assert torch.equal(decode(model, batch).pred_masks, decode(model, batch, words=batch.words.flip(1)).pred_masks)


@pytest.mark.parametrize("options", [{}, OURS])
def test_a_batch_of_two_is_two_batches_of_one(batch, options):
    model = tiny_model(**options)
    both = decode(model, batch)
    for i in range(2):
        words, support_words = int(batch.word_mask[i].sum()), int(batch.support_word_mask[i].sum())
        one = decode(model, batch, query_levels=[x[i:i + 1] for x in batch.query], support_levels=[x[i:i + 1] for x in batch.support],
                     support_masks=batch.support_masks[i:i + 1], words=batch.words[i:i + 1, :words], word_mask=batch.word_mask[i:i + 1, :words],
                     support_words=batch.support_words[i:i + 1, :support_words], support_word_mask=batch.support_word_mask[i:i + 1, :support_words])
        for name in ("pred_logits", "pred_boxes", "pred_masks"):
            assert torch.allclose(both[name][i:i + 1], one[name], atol=1e-3), name


def test_the_best_sequence_is_one_query_over_all_frames(batch):
    output = decode(tiny_model(), batch)
    masks, scores, query = select(output, tuple(batch.targets[0]["masks"].shape[-2:]))
    assert masks.shape == (2, 3, *batch.targets[0]["masks"].shape[-2:])
    means = output.pred_logits.sigmoid().mean(1).squeeze(-1)
    assert torch.equal(query, means.argmax(1)) and torch.equal(scores, means.amax(1))


def test_further_sentences_are_asked_at_once(corpus, store):
    dataset = EpisodeDataset(corpus, sorted(corpus.videos_by_class), source=store, frames=3, shots=2, episodes_per_class=2, other_sentences=4)
    several = collate([dataset[0], dataset[1]])
    model = tiny_model(**OURS).eval()
    output = forward(model, several)
    layers = 1 + len(output.aux_outputs)
    assert output.other_logits.shape == (layers, 2, 4, *output.pred_logits.shape[1:3])
    # the scores of a further sentence are those of the same head, had it been asked the sentence itself
    asked = decode(model, several, other_words=several.words[:, None], other_word_mask=several.word_mask[:, None])
    assert torch.allclose(asked.other_logits[0, :, 0], output.pred_logits.squeeze(-1), atol=1e-4)
    losses = Criterion(model.config)(output, several.targets)
    assert losses["loss_other"] > 0


def test_the_metric_of_objects_is_for_training_and_for_the_looking_head(batch):
    model = tiny_model(**OURS).train()
    output = forward(model, batch)
    b, t = batch.query[2].shape[:2]
    assert output.metric_maps.shape == (b, t, 16, *batch.query[2].shape[-2:]) and output.metric_support.shape == (b, 16)
    assert decode(model, batch).metric_maps is None
    with pytest.raises(ValueError, match="support_metric needs referring_head 'look'"):
        FSRVOSConfig.from_preset("tiny", support_metric=16)
