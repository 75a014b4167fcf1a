"The paper's recipe: dry runs, less memory for the same gradients, first weights from elsewhere, still images as videos."
import shutil

import pytest
import torch
from transformers import ConvNextBackbone, ConvNextConfig

from fsrvos.data.corpus import Corpus, Expression, ObjectTrack, Video, write_frame, write_masks, write_metas
from fsrvos.data.episodes import EpisodeDataset, PixelSource
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.models.published import REFERFORMER, PublishedWeightError, attach_empty_encoders, export_published_weights, load_published_weights
from fsrvos.training.loop import TrainSettings, train, trainable
from fsrvos.training.recipe import NoiseEpisodes, dry_run

SMALL = dict(size=32, ffn=32, heads=4, encoder_layers=1, decoder_layers=1, mask_size=32)
MEMORY = 12  # GiB that the dry run at paper size may take


def free_memory() -> float:
    "GiB, as far as Linux tells; elsewhere it is taken to be there."
    try:
        lines = open("/proc/meminfo").read().splitlines()
    except OSError:
        return float("inf")
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2 ** 20


@pytest.mark.slow
@pytest.mark.skipif(free_memory() < MEMORY, reason=f"less than {MEMORY} GiB of free memory")
def test_a_step_at_paper_size(capsys):
    "Everything at the size of the paper: 360 x 640 pixels, five frames, five shots; some 100 seconds of processor time."
    run = dry_run(FSRVOSConfig.from_preset("paper-resnet50"))
    with capsys.disabled():
        print(f"\npaper-resnet50, float32: {run}")
    assert run.frozen == pytest.approx(23.454912 + 124.645632, abs=.1) and run.trained > 25
    assert 1 < run.memory < MEMORY


@pytest.mark.parametrize("preset", ["paper-resnet101", "paper-swin-t", "paper-video-swin-t"])
def test_a_dry_run_on_other_backbones(preset):
    run = dry_run(FSRVOSConfig.from_preset(preset, **SMALL), frames=2, shots=1, size=(64, 96), amp="bf16")
    assert run.frozen > 124.645632 + 25 and run.seconds > 0


def test_a_dry_run_of_a_preset_that_is_not_the_papers():
    with pytest.raises(PublishedWeightError, match="roberta-base; the configuration names minilm-l6"):
        dry_run(FSRVOSConfig.from_preset("cpu"))


def test_noise_is_the_same_every_time():
    one, two = (NoiseEpisodes(2, 3, 2, (32, 48))[1] for _ in range(2))
    assert torch.equal(one.query_levels[0], two.query_levels[0]) and torch.equal(one.words, two.words)
    assert one.masks.shape == (1, 3, 32, 48) and one.support_masks.shape == (2, 32, 48)
    assert not torch.equal(one.masks[0, 0], one.masks[0, 1]), "the rectangle moves"


def gradients(checkpointing: bool) -> dict:
    torch.manual_seed(0)
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", dropout=.1)).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    levels = lambda n: [torch.randn(1, n, c, 64 // s, 96 // s) for c, s in zip((24, 40, 112, 320), (4, 8, 16, 32))]
    words, mask = torch.randn(1, 4, 384), torch.ones(1, 4, dtype=torch.bool)
    out = model.decode(levels(3), words, mask, levels(2), torch.ones(1, 2, 64, 96), words, mask)
    (out.pred_masks.square().mean() + out.pred_logits.mean() + out.pred_boxes.sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_checkpointing_changes_no_gradient():
    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys() and any(k.startswith("encoder.layers") for k in plain)
    assert all(torch.equal(plain[k], checkpointed[k]) for k in plain)


def test_checkpointing_keeps_less(monkeypatch):
    kept = []
    for checkpointing in (False, True):
        stored = 0

        def count(tensor):
            nonlocal stored
            stored += tensor.numel()
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            gradients(checkpointing)
        kept.append(stored)
    assert kept[1] < .9 * kept[0]


def test_the_published_affinity_does_not_learn():
    names = lambda published: {n for n in trainable(FSRVOSModel(FSRVOSConfig.from_preset("tiny", levels=4, published=published))) if n.startswith("affinity.")}
    assert names(True) == {"affinity.layer_norm.weight", "affinity.layer_norm.bias"}
    assert "affinity.support_qkv.Key.weight" in names(False) and "affinity.support_qkv.query.weight" not in names(False)


# ---- first weights from elsewhere

def test_referformers_weights_are_a_start(monkeypatch):
    "Its state dict: sentence queries, no anchors, no affinity, class heads for other classes."
    from fsrvos.models import published
    monkeypatch.setitem(published.RESNETS, "microsoft/resnet-50", (1, 1, 1, 1))
    monkeypatch.setattr(published, "ROBERTA", dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    options = dict(SMALL, text_size=16)
    there = FSRVOSModel(FSRVOSConfig.from_preset("paper-resnet50", anchor_queries=False, affinity="none", **options))
    attach_empty_encoders(there)
    weights = export_published_weights(there) | {"class_embed.0.weight": torch.zeros(65, 32), "class_embed.0.bias": torch.zeros(65)}
    here = FSRVOSModel(FSRVOSConfig.from_preset("paper-resnet50", **options))
    anchors = here.refpoint_embed.weight.clone()
    report = load_published_weights(here, weights, **REFERFORMER)
    assert torch.equal(here.encoder.layers[0].linear1.weight, there.encoder.layers[0].linear1.weight) and torch.equal(here.refpoint_embed.weight, anchors)
    assert {name.split(".")[0] for name in report.missing} == {"affinity", "tgt_embed", "refpoint_embed", "decoder"}
    assert {name.split(".")[0] for name in report.unexpected} == {"query_embed", "transformer"}
    del weights["transformer.encoder.layers.0.linear1.weight"]
    with pytest.raises(PublishedWeightError, match="1 missing, such as encoder.layers.0.linear1.weight"):
        load_published_weights(here, weights, **REFERFORMER)


def test_encoders_beside_a_model_stay_beside_it(tmp_path):
    "A converted model that is trained further and saved elsewhere takes its encoders along."
    widths = [8, 12, 16, 24]
    FSRVOSModel(FSRVOSConfig.from_preset("tiny", vision="vision", vision_channels=widths)).save_pretrained(tmp_path / "first")
    ConvNextBackbone(ConvNextConfig(hidden_sizes=widths, depths=[1, 1, 1, 1])).save_pretrained(tmp_path / "first/vision")
    FSRVOSModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second.tmp")
    (tmp_path / "second.tmp").rename(tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    assert FSRVOSModel.from_pretrained(tmp_path / "second").encoders()[0].channels == tuple(widths)


# ---- pretraining on still images

@pytest.fixture
def stills(tmp_path):
    "Two classes of two images, each a video of one frame, as a corpus of referring expressions on images becomes."
    videos = []
    for name in ("cup", "chair"):
        for number in range(2):
            video = f"{name}{number}"
            ids = torch.zeros(32, 48, dtype=torch.uint8)
            ids[8:20, 10 + 4 * number:26] = 1
            write_masks(tmp_path / "train/Annotations" / video / "00000.png", ids.numpy())
            write_frame(tmp_path / "train/JPEGImages" / video / "00000.jpg", (ids[..., None] * 200).expand(-1, -1, 3).numpy())
            track, sentence = ObjectTrack(1, name, ("00000",)), Expression("0", f"the {name}", (1,), "class", True)
            videos.append(Video(video, ("00000",), {1: track}, (sentence,), tmp_path / "train/JPEGImages" / video, ".jpg"))
    write_metas(tmp_path, videos)
    return Corpus.load(tmp_path)


def test_still_images_are_a_pretraining_corpus(stills, tmp_path):
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny"))
    dataset = EpisodeDataset(stills, ["cup", "chair"], source=PixelSource(stills, model.encoders()[1].tokenizer), frames=3, shots=2, episodes_per_class=1)
    sample = dataset[0]
    assert sample.masks.shape == (1, 3, 32, 48) and torch.equal(sample.query_levels[0][0], sample.query_levels[0][2])
    done = train(model, dataset, TrainSettings(episodes_per_class=1, batch_size=2), tmp_path / "out")
    assert done.steps == 1 and (done.final / "model.safetensors").exists()
