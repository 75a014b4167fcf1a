"Backbones of many kinds, tiny and with random weights, saved to a folder and read from it by path, as downloaded ones would be."
import json

import pytest
import torch
from transformers import (ConvNextBackbone, ConvNextConfig, Dinov2Backbone, Dinov2Config, ResNetBackbone, ResNetConfig, RobertaConfig, RobertaModel,
                          SwinBackbone, SwinConfig)

from fsrvos.models.encoders import EncoderError, TextEncoder, load_vision_encoder, sees_clips
from fsrvos.models.fsrvos import PRESETS, FSRVOSConfig, FSRVOSModel
from fsrvos.models.video_swin import VideoSwin

BACKBONES = {
    "resnet": (ResNetBackbone, ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1])),
    "swin": (SwinBackbone, SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4)),
    "convnext": (ConvNextBackbone, ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1])),
    "dinov2": (Dinov2Backbone, Dinov2Config(image_size=56, hidden_size=16, num_hidden_layers=8, num_attention_heads=2, reshape_hidden_states=True)),
}


@pytest.fixture(params=BACKBONES)
def folder(request, tmp_path):
    torch.manual_seed(0)
    kind, config = BACKBONES[request.param]
    kind(config).save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def test_a_backbone_gives_four_levels(folder):
    encoder = load_vision_encoder(str(folder))
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters()) and not sees_clips(encoder)
    with torch.no_grad():
        levels = encoder(torch.randn(2, 3, 64, 96))
    assert [tuple(x.shape[-2:]) for x in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [x.shape[1] for x in levels] == list(encoder.channels)


def test_a_model_runs_on_it(folder):
    channels = load_vision_encoder(str(folder)).channels
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", vision=str(folder), vision_channels=channels)).eval()
    ids, mask = model.encoders()[1].tokenize(["the left one"])
    with torch.no_grad():
        output = model(torch.randn(1, 2, 3, 64, 96), ids, mask, torch.randn(1, 2, 3, 64, 96), torch.ones(1, 2, 64, 96), ids, mask)
    assert output.pred_masks.shape == (1, 2, 5, 16, 24)


def test_video_swin_sees_the_clip(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("fsrvos.models.video_swin", fromlist=["VIDEO_SWIN"]).VIDEO_SWIN, "video-swin-t", (8, (1, 2, 2, 4), (1, 1, 1, 1)))
    torch.manual_seed(0)
    weights = VideoSwin.named("video-swin-t", patch_frames=2).state_dict()
    torch.save(weights, tmp_path / "swin3d_t.pth")
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", vision=f"video-swin-t:{tmp_path / 'swin3d_t.pth'}", vision_channels=(8, 16, 32, 64))).eval()
    clip = torch.randn(1, 4, 3, 64, 64)
    changed = clip.clone()
    changed[:, 3] = 0
    whole, other = model.encode_frames(clip), model.encode_frames(changed)
    assert [tuple(x.shape) for x in whole] == [(1, 4, 8, 16, 16), (1, 4, 16, 8, 8), (1, 4, 32, 4, 4), (1, 4, 64, 2, 2)]
    assert not torch.allclose(whole[-1][:, 0], other[-1][:, 0]), "a frame's features depend on the others"


@pytest.mark.parametrize("name, told", [
    ("/nowhere/swin", "not found"), ("video-swin-t", "download torchvision's swin3d_t"), ("video-swin-t:/nowhere/x.pth", "No such file"), ("video-swin-x:/tmp", "choose one of")])
def test_a_backbone_that_is_not_there_is_one_clear_error(name, told):
    with pytest.raises(EncoderError, match=told):
        load_vision_encoder(name)


def test_a_language_model_is_no_backbone(tmp_path):
    RobertaModel(RobertaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="is no backbone"):
        load_vision_encoder(str(tmp_path))


@pytest.fixture
def roberta(tmp_path):
    "A tiny RoBERTa with its tokenizer in a folder, as a downloaded one lies there."
    from transformers import RobertaTokenizer
    letters = [*"abcdefghijklmnopqrstuvwxyz", "\u0120"]
    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    RobertaTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path / "roberta")
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(vocab), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=40)
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    return tmp_path / "roberta"


def test_roberta_from_a_folder(roberta):
    text = TextEncoder(str(roberta))
    ids, mask = text.tokenize(["a dog", "the brown dog"])
    words = text(ids, mask)
    assert words.shape == (2, ids.shape[1], 16) and mask.sum(1).tolist() == [7, 15] and text.sentence(ids, mask).shape == (2, 16)
    alone = text(*(x[:1, :7] for x in (ids, mask)))
    torch.testing.assert_close(words[0, :7], alone[0], atol=1e-5, rtol=1e-4)  # padding does nothing


def test_without_pooler_weights_a_sentence_is_the_mean_of_its_words(roberta):
    from transformers import AutoConfig
    RobertaModel(AutoConfig.from_pretrained(roberta), add_pooling_layer=False).save_pretrained(roberta)
    text = TextEncoder(str(roberta))
    ids, mask = text.tokenize(["a dog", "the brown dog"])
    words = text(ids, mask)
    assert not text.pools
    torch.testing.assert_close(text.sentence(ids, mask)[0], words[0, :7].mean(0), atol=1e-6, rtol=1e-5)


def test_a_sentence_is_pooled():
    text = TextEncoder("minilm-l6")
    ids, mask = text.tokenize(["a dog", "the brown dog on the left"])
    with torch.no_grad():
        pooled = text.sentence(ids, mask)
    assert pooled.shape == (2, 384) and not torch.equal(pooled[0], pooled[1])


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith("paper-")])
def test_presets_of_the_paper_build(name):
    with torch.device("meta"):
        model = FSRVOSModel(FSRVOSConfig.from_preset(name))
    count = sum(p.numel() for p in model.parameters())
    assert 20e6 < count < 40e6 and model.input_proj[2][0].in_channels == model.config.vision_channels[3]
