"""The model across modules: features from the store are those of the frames, frozen stays frozen, controls do not see what they must not."""
import pytest
import torch

from fsrvos.data.corpus import Corpus
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
