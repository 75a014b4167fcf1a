"""The published computation, written out from its description alone: matrices in full, loops over frames, heads, levels and points, no code of `fsrvos`.

Weights come by their published names. Every function says in one line what it is in the paper. Slow on purpose.
"""
import math

import torch
import torch.nn.functional as F


class Literal:
    "The forward pass of the published model for one clip; `weights`: published names, `options`: the configuration."

    def __init__(self, weights: dict, options):
        self.w, self.o = weights, options

    # -- pieces -----------------------------------------------------------------------------------------------------
    def linear(self, name, x): return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name, x, eps=1e-5):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def conv(self, name, x, **how): return F.conv2d(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), **how)

    def groups(self, name, x, groups): return F.group_norm(x, groups, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def mlp(self, name, x, layers):
        for i in range(layers):
            x = self.linear(f"{name}.layers.{i}", x)
            x = x.clamp(min=0) if i + 1 < layers else x
        return x

    def attention(self, name, queries, keys, values, absent=None):
        "Multi-head attention of one batch element, head by head: queries [Q, C], keys and values [K, C], absent bool [K]."
        c, heads = queries.shape[1], self.o.heads
        weight, bias = self.w[f"{name}.in_proj_weight"], self.w[f"{name}.in_proj_bias"]
        q, k, v = (x @ weight[i * c:(i + 1) * c].T + bias[i * c:(i + 1) * c] for i, x in enumerate((queries, keys, values)))
        parts = []
        for h in range(heads):
            own = slice(h * c // heads, (h + 1) * c // heads)
            score = q[:, own] @ k[:, own].T / math.sqrt(c // heads)
            if absent is not None:
                score[:, absent] = -math.inf
            parts.append(score.softmax(-1) @ v[:, own])
        return self.linear(f"{name}.out_proj", torch.cat(parts, -1))

    def word_positions(self, mask, c):
        "1-D sines; words are counted from 1, the last one is 2π."
        count = mask.float().cumsum(0)
        angle = [[count[i] / (count[-1] + 1e-6) * 2 * math.pi / 10000 ** (2 * (d // 2) / c) for d in range(c)] for i in range(len(mask))]
        return torch.tensor([[math.sin(a) if d % 2 == 0 else math.cos(a) for d, a in enumerate(row)] for row in angle])

    def pixel_positions(self, padding, c):
        "2-D sines [C, h, w], first half y; pixels counted from a half within what is not padded, the last count is 2π."
        present, planes = ~padding, []
        for axis in (0, 1):
            count = present.float().cumsum(axis)
            last = count[-1:] if axis == 0 else count[:, -1:]
            scaled = (count - .5) / (last + 1e-6) * 2 * math.pi
            for d in range(c // 2):
                angle = scaled / 10000 ** (2 * (d // 2) / (c // 2))
                planes.append(angle.sin() if d % 2 == 0 else angle.cos())
        return torch.stack(planes)

    # -- features ---------------------------------------------------------------------------------------------------
    def words(self, features): return self.norm("resizer.layer_norm", self.linear("resizer.fc", features), 1e-12)

    def fused(self, levels, words, mask, transform):
        "Projected, transformed (support), gated by the words (eq. 1): four of [T, C, h, w]."
        out = []
        for i in range(4):
            x = self.conv(f"input_proj.{i}.0", levels[min(i + 1, 3)], **(dict(stride=2, padding=1) if i == 3 else {}))
            x = self.groups(f"input_proj.{i}.1", x, 32)
            if transform and i < 3:
                branch = lambda v: 1 / torch.log(1 / (v + 1e-5) + 1) ** 1.3
                x = torch.where(x > 0, branch(x.clamp(min=0)) - branch(torch.zeros(())), torch.where(x < 0, branch(torch.zeros(())) - branch((-x).clamp(min=0)), torch.zeros(())))
            t, c, h, w = x.shape
            tokens = x.permute(0, 2, 3, 1).reshape(-1, c)
            gate = self.attention("fusion_module.multihead_attn", tokens, words + self.word_positions(mask, c), words, ~mask)
            out.append((tokens * gate).view(t, h, w, c).permute(0, 3, 1, 2))
        return out

    def masked(self, support, masks, size):
        resize = lambda x: x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=True)
        return resize(support) * resize(masks[:, None])

    def affine(self, query, support, masks):
        "Eq. 2 and 3, or the two ablations: [T, C, h, w]."
        t, c, h, w = query.shape
        support = self.masked(support, masks, (h, w))
        first = support[[min(i, len(support) - 1) for i in range(t)]]
        if self.o.affinity == "none":
            return query + first
        project = lambda name, x: self.conv(name, x, padding=1).permute(0, 2, 3, 1).reshape(-1, c // 2)
        middle = query[t // 2:t // 2 + 1]
        q, k, v = project("query_qkv.query", query), project("query_qkv.Key", middle), project("query_qkv.Value", middle)
        q = self.norm("layer_norm", q + (q @ k.T / math.sqrt(c // 2)).softmax(-1) @ v)
        other = first
        if self.o.affinity == "self+cross":
            shown = support[len(support) // 2:len(support) // 2 + 1]
            k, v = project("support_qkv.Key", shown), project("support_qkv.Value", shown)
            q, other = self.norm("layer_norm", q + (q @ k.T / math.sqrt(c // 2)).softmax(-1) @ v), query
        return torch.cat((q.view(t, h, w, -1).permute(0, 3, 1, 2), self.conv("conv_q", other)), 1)

    # -- deformable transformer, one frame ----------------------------------------------------------------------------
    def sample(self, values, shapes, head, level, x, y):
        "Bilinear value at (x, y) in [0, 1] of one head on one level; zero outside."
        h, w = shapes[level]
        start, d = sum(a * b for a, b in shapes[:level]), values.shape[1] // self.o.heads
        px, py, total = x * w - .5, y * h - .5, torch.zeros(d)
        for iy in (math.floor(py), math.floor(py) + 1):
            for ix in (math.floor(px), math.floor(px) + 1):
                if 0 <= iy < h and 0 <= ix < w:
                    total = total + values[start + iy * w + ix, head * d:(head + 1) * d] * (1 - abs(px - ix)) * (1 - abs(py - iy))
        return total

    def deformable(self, name, queries, references, memory, shapes, padding):
        "Multi-scale deformable attention: queries [Q, C], references [Q, levels, 2 or 4], memory [S, C], padding bool [S]."
        values = self.linear(f"{name}.value_proj", memory)
        values[padding] = 0
        heads, levels, points = self.o.heads, len(shapes), self.o.points
        offsets = self.linear(f"{name}.sampling_offsets", queries).view(-1, heads, levels, points, 2)
        weights = self.linear(f"{name}.attention_weights", queries).view(-1, heads, levels * points).softmax(-1).view(-1, heads, levels, points)
        rows = []
        for q in range(len(queries)):
            parts = []
            for m in range(heads):
                total = 0
                for level, (h, w) in enumerate(shapes):
                    r = references[q, level]
                    for p in range(points):
                        ox, oy = offsets[q, m, level, p].tolist()
                        if len(r) == 2:
                            x, y = float(r[0]) + ox / w, float(r[1]) + oy / h
                        else:
                            x, y = float(r[0]) + ox / points * float(r[2]) * .5, float(r[1]) + oy / points * float(r[3]) * .5
                        total = total + weights[q, m, level, p] * self.sample(values, shapes, m, level, x, y)
                parts.append(total)
            rows.append(torch.cat(parts))
        return self.linear(f"{name}.output_proj", torch.stack(rows))

    def feed_forward(self, name, x): return self.linear(f"{name}.linear2", self.linear(f"{name}.linear1", x).clamp(min=0))

    def encode(self, features, paddings):
        "One frame: four of [C, h, w] and bool [h, w] -> (memory [S, C], shapes, padding [S], valid shares [levels, 2])."
        shapes = [tuple(x.shape[-2:]) for x in features]
        tokens = torch.cat([x.flatten(1).T for x in features])
        position = torch.cat([(self.pixel_positions(p, tokens.shape[1]) + self.w["transformer.level_embed"][i][:, None, None]).flatten(1).T for i, p in enumerate(paddings)])
        padding = torch.cat([p.flatten() for p in paddings])
        valid = torch.tensor([[float((~p[0]).float().mean()), float((~p[:, 0]).float().mean())] for p in paddings])
        references = []
        for i, (h, w) in enumerate(shapes):
            for y in range(h):
                for x in range(w):
                    place = torch.tensor([(x + .5) / (float(valid[i, 0]) * w), (y + .5) / (float(valid[i, 1]) * h)])
                    references.append(place[None] * valid)
        references = torch.stack(references)
        for i in range(self.o.encoder_layers):
            name = f"transformer.encoder.layers.{i}"
            tokens = self.norm(f"{name}.norm1", tokens + self.deformable(f"{name}.self_attn", tokens + position, references, tokens, shapes, padding))
            tokens = self.norm(f"{name}.norm2", tokens + self.feed_forward(name, tokens))
        return tokens, shapes, padding, valid

    def box_sines(self, box, c):
        "[N, 4] -> [N, 2c] in the order y, x, w, h, each c/2 channels."
        parts = []
        for k in (1, 0, 2, 3):
            for d in range(c // 2):
                angle = box[:, k] * 2 * math.pi / 10000 ** (2 * (d // 2) / (c // 2))
                parts.append(angle.sin() if d % 2 == 0 else angle.cos())
        return torch.stack(parts, -1)

    def decode(self, memory, shapes, padding, valid, sentence):
        "One frame -> for every layer (hidden [N, C], centres it started from, boxes it ended with)."
        inverse = lambda x: torch.log(x.clamp(0, 1).clamp(min=1e-5) / (1 - x.clamp(0, 1)).clamp(min=1e-5))
        if self.o.anchor_queries:
            x, place = self.w["tgt_embed.weight"], self.w["refpoint_embed.weight"].sigmoid()
        else:
            position = self.w["query_embed.weight"]
            x, place = sentence[None].expand(self.o.queries, -1), self.linear("transformer.reference_points", position).sigmoid()
        layers, name = [], "transformer.decoder"
        for i in range(self.o.decoder_layers):
            width = place.shape[1]
            references = torch.zeros(len(x), len(shapes), width)
            for q in range(len(x)):
                for level in range(len(shapes)):
                    for k in range(width):
                        mistaken = self.o.published and self.o.anchor_queries and i == 0  # the level stands where the coordinate should
                        references[q, level, k] = place[q, level if mistaken else k] * valid[level, k % 2]
            if self.o.anchor_queries:
                position = self.mlp(f"{name}.ref_point_head", self.box_sines(references[:, 0], x.shape[1]), 2)
                position = position * self.mlp(f"{name}.query_scale", x, 2) if i else position
            layer = f"{name}.layers.{i}"
            x = self.norm(f"{layer}.norm2", x + self.attention(f"{layer}.self_attn", x + position, x + position, x))
            x = self.norm(f"{layer}.norm1", x + self.deformable(f"{layer}.cross_attn", x + position, references, memory, shapes, padding))
            x = self.norm(f"{layer}.norm3", x + self.feed_forward(layer, x))
            step = self.mlp(f"bbox_embed.{i}", x, 3)
            step[:, :width] += inverse(place)
            layers.append((x, place[:, :2], step.sigmoid()))
            place = step.sigmoid()
        return layers

    # -- masks ------------------------------------------------------------------------------------------------------
    def pixels(self, features, words, mask, paddings):
        "The pyramid (eq. 4): four of [T, C, h, w], finest first -> mask features [T, D, h4, w4]."
        y = None
        for i, reduction in ((4, 1), (3, 2), (2, 4), (1, 8)):
            x = self.groups(f"pixel_decoder.adapter_{i}.norm", self.conv(f"pixel_decoder.adapter_{i}", features[i - 1]), 8)
            x = self.cross(f"pixel_decoder.cross_attn_{i}", x, words, mask, paddings[i - 1], reduction)
            if y is not None:
                x = x + F.interpolate(y, x.shape[-2:], mode="nearest")
            y = self.groups(f"pixel_decoder.layer_{i}.norm", self.conv(f"pixel_decoder.layer_{i}", x, padding=1), 8).clamp(min=0)
        return self.conv("pixel_decoder.mask_features", y, padding=1)

    def cross(self, name, x, words, mask, padding, reduction):
        t, c, h, w = x.shape
        position = torch.stack([self.pixel_positions(p, c) for p in padding])
        small = (max(h // reduction, 1), max(w // reduction, 1))
        down = lambda v: F.interpolate(v, small, mode="nearest")
        flat = lambda v: v.permute(0, 2, 3, 1).reshape(-1, v.shape[1])
        absent = down(padding[:, None].float()).flatten() > .5
        out = self.attention(f"{name}.self_attn", flat(down(x + position)), flat(down(x + position)), flat(down(x)), absent if absent.any() else None)
        out = F.interpolate(out.view(t, *small, c).permute(0, 3, 1, 2), (h, w), mode="bilinear", align_corners=False)
        tokens = self.norm(f"{name}.norm1", flat(x) + flat(out))
        keys = words + self.word_positions(mask, c)
        tokens = self.norm(f"{name}.norm2", tokens + self.attention(f"{name}.multihead_attn", tokens + flat(position), keys, words, ~mask))
        tokens = self.norm(f"{name}.norm3", tokens + self.feed_forward(name, tokens))
        return tokens.view(t, h, w, c).permute(0, 3, 1, 2)

    def draw(self, features, kernel, centre):
        "Dynamic convolution: mask features [D, h, w], one kernel vector, centre in pixels -> logits [h, w]."
        d, h, w = features.shape
        ramps = [[(float(centre[axis]) - (4 * (ix if axis == 0 else iy) + 2)) * self.o.coordinate_scale for iy in range(h) for ix in range(w)] for axis in (0, 1)]
        x = torch.cat((features.flatten(1), torch.tensor(ramps)))
        widths = [d + 2] + [self.o.mask_channels] * (self.o.mask_layers - 1) + [1]
        sizes = [a * b for a, b in zip(widths, widths[1:])] + widths[1:]
        parts = kernel.split(sizes)
        for i in range(self.o.mask_layers):
            x = parts[i].view(widths[i + 1], widths[i]) @ x + parts[self.o.mask_layers + i][:, None]
            x = x.clamp(min=0) if i + 1 < self.o.mask_layers else x
        return x.view(h, w)

    def forward(self, query, words, mask, support, masks, support_words, support_mask, padding, size, sentence):
        "Levels of [T, C, h, w] and [K, C, h, w], words [L, C], masks [K, H, W], padding bool [T, H, W], size (h, w), sentence [C] -> scores, boxes, masks, centres by layer."
        words, support_words, sentence = self.words(words), self.words(support_words), self.words(sentence)
        q, s = self.fused(query, words, mask, False), self.fused(support, support_words, support_mask, True)
        features = [self.affine(a, b, masks) for a, b in zip(q, s)]
        small = lambda x: F.interpolate(padding[:, None].float(), x.shape[-2:], mode="nearest")[:, 0] > .5
        memories, layers = [], []
        for t in range(len(padding)):
            memory, shapes, flat, valid = self.encode([x[t] for x in features], [small(x)[t] for x in features])
            memories.append([m.T.reshape(-1, *shape) for m, shape in zip(memory.split([h * w for h, w in shapes]), shapes)])
            layers.append(self.decode(memory, shapes, flat, valid, sentence))
        maps = [query[0], *(torch.stack([m[i] for m in memories]) for i in range(3))]
        drawn = self.pixels(maps, words, mask, [small(x) for x in maps])
        results = []
        for i in range(self.o.decoder_layers):
            hidden, starts, boxes = (torch.stack([frame[i][k] for frame in layers]) for k in range(3))
            kernels = self.mlp("controller", hidden, 3)
            centres = boxes[..., :2] * torch.tensor([float(size[1]), float(size[0])])
            pictures = torch.stack([torch.stack([self.draw(drawn[t], kernels[t, n], centres[t, n]) for n in range(hidden.shape[1])]) for t in range(len(hidden))])
            results.append(dict(pred_logits=self.linear(f"class_embed.{i}", hidden), pred_boxes=boxes, pred_masks=pictures, reference_points=starts))
        return results
