"Video Swin: windows by brute force, weights of torchvision's names and shapes, features of every frame."
import itertools

import pytest
import torch

from fsrvos.models.video_swin import VIDEO_SWIN, VideoSwin, VideoSwinError, WindowAttention


def slow_attention(attention: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    "Token by token: who is in my window after the shift, and was my neighbour before it? Zeros where the clip was padded."
    size = x.shape[1:4]
    window = [min(s, w) for s, w in zip(size, attention.window)]
    shift = [0 if s <= w else k for s, w, k in zip(size, attention.window, attention.shift)]
    padded = [-(-s // w) * w for s, w in zip(size, window)]
    places = list(itertools.product(*map(range, padded)))
    inside = lambda p: all(i < s for i, s in zip(p, size))
    vector = {p: x[0, p[0], p[1], p[2]] if inside(p) else torch.zeros(x.shape[-1]) for p in places}
    q, k, v = ({p: part for p, part in zip(places, attention.qkv(torch.stack([vector[p] for p in places])).chunk(3, -1)[i])} for i in range(3))
    group, order = {}, {}
    for p in places:
        moved = [(i - s) % n for i, s, n in zip(p, shift, padded)]
        zone = tuple(0 if s == 0 or m < n - w else 1 if m < n - s else 2 for m, s, n, w in zip(moved, shift, padded, window))
        group[p] = (tuple(m // w for m, w in zip(moved, window)), zone)
        order[p] = (moved[0] % window[0] * window[1] + moved[1] % window[1]) * window[2] + moved[2] % window[2]
    out, heads = torch.zeros_like(x), attention.heads
    for p in filter(inside, places):
        mates = [m for m in places if group[m] == group[p]]
        rows = torch.stack([attention.relative_position_bias_table[attention.relative_position_index[order[p], order[m]]] for m in mates])  # [mates, heads]
        parts = []
        for h, (a, b, c) in enumerate(zip(q[p].chunk(heads), torch.stack([k[m] for m in mates]).chunk(heads, -1), torch.stack([v[m] for m in mates]).chunk(heads, -1))):
            parts.append((b @ a / len(a) ** .5 + rows[:, h]).softmax(0) @ c)
        out[0, p[0], p[1], p[2]] = attention.proj(torch.cat(parts))
    return out


@pytest.mark.parametrize("size", [(4, 6, 6), (3, 5, 7), (2, 3, 8), (1, 2, 2), (5, 4, 4)])
@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 1, 1)])
def test_windows_by_brute_force(size, shift):
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, (2, 3, 3), shift)
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(1, *size, 8)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), slow_attention(attention, x), atol=1e-5, rtol=1e-4)


def tiny(**options):
    torch.manual_seed(0)
    return VideoSwin(8, (1, 2, 2, 4), (2, 2, 2, 2), window=(2, 3, 3), **options).eval()


def test_every_frame_keeps_its_features():
    with torch.no_grad():
        for frames in (1, 2, 5):
            levels = tiny()(torch.randn(2, frames, 3, 40, 60))
            assert [tuple(x.shape) for x in levels] == [(2, frames, 8, 10, 15), (2, frames, 16, 5, 8), (2, frames, 32, 3, 4), (2, frames, 64, 2, 2)]


def test_patches_of_two_frames_load_into_patches_of_one():
    "On a still clip a patch of two equal frames is the sum of the two halves of its kernel."
    two, one = tiny(patch_frames=2), tiny()
    one.load_torchvision(two.state_dict() | {"norm.weight": torch.ones(64), "head.bias": torch.ones(400)})
    still = torch.randn(1, 1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(one.patch_embed(still.transpose(1, 2)), two.patch_embed(still.repeat(1, 2, 1, 1, 1).transpose(1, 2)), atol=1e-5, rtol=1e-4)


def test_weights_of_another_size_are_refused():
    with pytest.raises(VideoSwinError, match="of another shape, such as features.0.0.attn.proj.bias"):
        tiny().load_torchvision(VideoSwin(16, (1, 2, 2, 4), (2, 2, 2, 2), window=(2, 3, 3)).state_dict())
    with pytest.raises(VideoSwinError, match="1 missing, such as features.1.norm.bias; 1 unexpected, such as layers"):
        weights = tiny().state_dict()
        tiny().load_torchvision({k: v for k, v in weights.items() if k != "features.1.norm.bias"} | {"layers": torch.ones(1)})
    with pytest.raises(ValueError, match="choose one of video-swin-t, video-swin-s, video-swin-b"):
        VideoSwin.named("video-swin-l")


@pytest.mark.parametrize("name", VIDEO_SWIN)
def test_names_are_those_of_torchvision(name):
    with torch.device("meta"):
        names = VideoSwin.named(name).state_dict()
    assert {"patch_embed.proj.weight", "patch_embed.norm.bias", "features.0.0.attn.relative_position_bias_table", "features.0.1.attn.relative_position_index",
            "features.1.reduction.weight", "features.4.1.mlp.3.bias", "features.6.1.norm2.weight"} <= names.keys()
    assert names["features.0.0.attn.relative_position_bias_table"].shape[0] == 15 * 13 * 13
    assert names["features.0.0.attn.relative_position_index"].shape == (392, 392)


def test_a_model_that_sees_clips_answers_as_it_was_trained():
    "`Inference` folds and slices what encodes frames; what sees clips is asked as it is."
    from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
    from fsrvos.models.inference import Inference
    torch.manual_seed(0)
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", vision_channels=[8, 16, 32, 64])).eval()
    encoder = tiny()
    model._encoders = encoder, torch.nn.Identity()
    frames = torch.randn(1, 3, 3, 40, 60)
    with torch.no_grad():
        for found, wanted in zip(Inference(model).encode_frames(frames), encoder(frames), strict=True):
            torch.testing.assert_close(found, wanted)
