"LBDT across modules: the criterion, the loop's forward with features and with token ids, the evaluation."
import pytest
import torch

from fsrvos.models.baselines import new_model
from fsrvos.models.lbdt import LBDTConfig
from fsrvos.models.fsrvos import select
from fsrvos.training.loop import forward
from tests.one_mask import fit, pixel_source, predict, tiny_batch


def test_it_learns_one_batch_of_episodes(tiny):
    first, last, iou = fit("lbdt", tiny_batch(*tiny), steps=80)
    assert last < first / 3 and iou > 0.8


def test_bfloat16_trains(tiny):
    first, last, _ = fit("lbdt", tiny_batch(*tiny), steps=8, amp=True)
    assert last < first


def test_pixels_and_token_ids_give_what_their_features_give(tiny):
    corpus, store = tiny
    torch.manual_seed(0)
    model = new_model("lbdt", "tiny").eval()
    with torch.no_grad():
        pixels, stored = (forward(model, tiny_batch(corpus, source)).pred_masks for source in (pixel_source(corpus, model), store))
    torch.testing.assert_close(pixels, stored, atol=0.1, rtol=0.05)  # stored as float16


def test_padded_pixels_give_nothing_to_the_words(tiny):
    torch.manual_seed(0)
    transfer = new_model("lbdt", "tiny").eval().transfer[0]
    spatial, temporal, words = torch.randn(2, 32, 4, 6), torch.randn(2, 32, 4, 6), torch.randn(2, 3, 32)
    present, word_mask = torch.ones(2, 4, 6, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    present[..., 4:] = False
    louder = [x.masked_fill(~present[:, None], 7.0) for x in (spatial, temporal)]
    with torch.no_grad():
        for a, b in zip(transfer(spatial, temporal, present, words, word_mask), transfer(*louder, present, words, word_mask)):
            assert torch.allclose(a[..., :4], b[..., :4], atol=1e-5) and not torch.allclose(a, b, atol=1e-3)


def test_a_padded_batch_is_decoded(tiny):
    batch = tiny_batch(*tiny)
    batch.query_padding = torch.zeros(2, 3, 32, 48, dtype=torch.bool)
    batch.query_padding[0, :, :, 32:] = True
    with torch.no_grad():
        output = forward(new_model("lbdt", "tiny").eval(), batch)
    assert output.pred_masks.shape == (2, 3, 1, 8, 12) and output.pred_masks.isfinite().all()


@pytest.mark.parametrize("chunk", [10, 4])
def test_it_is_evaluated(tiny, chunk):
    torch.manual_seed(0)
    answers, queries = predict(new_model("lbdt", "tiny"), *tiny, chunk=chunk, overlap=2, clips=2, amp=True)
    assert len(answers) == 6 and all(a.masks.shape == (len(q.frames), *q.size) and a.score == 0.5 for a, q in zip(answers, queries))


def test_its_answer_is_its_mask(tiny):
    model = new_model("lbdt", "tiny").eval()
    with torch.no_grad():
        output = forward(model, tiny_batch(*tiny))
    masks, score, query = select(output, (8, 12))
    assert torch.equal(masks, output.pred_masks[:, :, 0] > 0) and score.tolist() == [0.5, 0.5] and query.tolist() == [0, 0]


def test_options_of_another_model_are_refused():
    with pytest.raises(ValueError, match="LBDTConfig does not read referring_head"):
        LBDTConfig.from_preset("cpu", referring_head="look")
    assert LBDTConfig.from_preset("paper-resnet50").loss_weights["bbox"] == 0
