"""The training loop: resumes without a trace, refuses what is not its own, writes nothing half."""
import csv
import os
import signal
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from fsrvos.data.episodes import collate
from fsrvos.training.losses import Criterion
from fsrvos.training.loop import TrainError, TrainSettings, epoch_order, forward, learning_rate, train
from tests.toy import ToyEpisodes, ToyModel

SETTINGS = TrainSettings(epochs=3, lr=0.03, warmup_steps=3, ema=0.9, checkpoint_every=0)


def changed(**fields):
    return TrainSettings(**asdict(SETTINGS) | fields)


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def numbers(path):
    """The log without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "waiting")} for row in rows(path)]


def final_weights(result):
    return load_file(result.final / "model.safetensors")


class Interrupted(ToyEpisodes):
    """Does something the first time it is asked for one episode of one epoch."""

    def __init__(self, epoch, happening):
        super().__init__()
        self.when, self.happening = epoch, happening

    def __getitem__(self, i):
        if self.epoch == self.when and i == 5 and self.happening:
            happening, self.happening = self.happening, None
            happening()
        return super().__getitem__(i)


def fail():
    raise OSError("gone")


def noisy_validation(model):
    torch.rand(3)  # draws that must not move training
    return dict(weight=float(model.rest.weight.norm()))


@pytest.mark.parametrize("settings", [SETTINGS, changed(ema=0, schedule="step", milestones=(1, 2)), changed(amp="bf16"), changed(batch_size=2, accumulate=2)],
                         ids=["cosine", "step", "bf16", "accumulate"])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, settings, epoch):
    whole = train(ToyModel(), ToyEpisodes(), settings, tmp_path / "whole", validate=noisy_validation)
    with pytest.raises(OSError):
        train(ToyModel(), Interrupted(epoch, fail), settings, tmp_path / "broken", validate=noisy_validation)
    torch.rand(7)  # another process would have another random state
    resumed = train(ToyModel(), ToyEpisodes(), settings, tmp_path / "broken", validate=noisy_validation)
    assert numbers(resumed.history) == numbers(whole.history)
    assert numbers(resumed.validation) == numbers(whole.validation) and len(rows(whole.validation)) == 3
    a, b = final_weights(whole), final_weights(resumed)
    assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_rows_after_the_last_checkpoint_are_not_there_twice(tmp_path):
    rare = changed(checkpoint_every=3600)
    with pytest.raises(OSError):
        train(ToyModel(), Interrupted(1, fail), rare, tmp_path / "broken")
    result = train(ToyModel(), ToyEpisodes(), rare, tmp_path / "broken")
    assert [int(row["step"]) for row in rows(result.history)] == list(range(9))


def test_sigterm_saves_after_the_step_and_leaves(tmp_path):
    rare = changed(checkpoint_every=3600)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        train(ToyModel(), Interrupted(1, lambda: os.kill(os.getpid(), signal.SIGTERM)), rare, tmp_path / "run")
    assert left.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert 4 <= torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] <= 6
    resumed = train(ToyModel(), ToyEpisodes(), rare, tmp_path / "run")
    whole = train(ToyModel(), ToyEpisodes(), rare, tmp_path / "whole")
    assert numbers(resumed.history) == numbers(whole.history)


def test_finished_run_is_not_run_again(tmp_path):
    first = train(ToyModel(), ToyEpisodes(), SETTINGS, tmp_path)
    model = ToyModel(seed=1)
    again = train(model, Interrupted(0, fail), SETTINGS, tmp_path)
    assert again.steps == first.steps and again.seconds == first.seconds and not model.training
    assert torch.equal(model.masks.weight, final_weights(first)["masks.weight"])


@pytest.mark.parametrize("change", ["setting", "model", "data", "identity"])
def test_checkpoint_of_another_run_is_refused(tmp_path, change):
    train(ToyModel(), ToyEpisodes(), SETTINGS, tmp_path, identity=dict(data="a"))
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    model = ToyModel(queries=3) if change == "model" else ToyModel()
    data = ToyEpisodes(n=16) if change == "data" else ToyEpisodes()
    settings = changed(lr=0.5) if change == "setting" else SETTINGS
    with pytest.raises(TrainError, match="belongs to another run") as error:
        train(model, data, settings, tmp_path, identity=dict(data="b" if change == "identity" else "a"))
    named = dict(setting="settings.lr: 0.03 there, 0.5 here", model="model.queries: 2 there, 3 here",
                 data="episodes.number: 12 there, 16 here", identity="identity.data: a there, b here")
    assert named[change] in str(error.value) and "\n" not in str(error.value)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_settings_that_change_no_weight_may_change(tmp_path):
    train(ToyModel(), ToyEpisodes(), SETTINGS, tmp_path)
    train(ToyModel(), ToyEpisodes(), changed(log_every=4, checkpoint_every=9), tmp_path)


def test_unreadable_checkpoint_is_one_clear_error(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainError, match="checkpoint.pt is not a readable checkpoint"):
        train(ToyModel(), ToyEpisodes(), SETTINGS, tmp_path)


def test_checkpoint_holds_trainable_weights_only_and_leaves_no_other_file(tmp_path):
    train(ToyModel(), ToyEpisodes(), SETTINGS, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(state["weights"]) == {"masks.weight", "masks.bias", "rest.weight", "rest.bias"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "history.csv", "validation.csv", "model"}


def test_frozen_weights_stay_and_the_average_is_what_is_kept(tmp_path):
    model = ToyModel()
    frozen = model.frozen.weight.clone()
    result = train(model, ToyEpisodes(), SETTINGS, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.equal(model.frozen.weight, frozen)
    assert torch.equal(final_weights(result)["rest.weight"], state["average"]["rest.weight"])
    assert not torch.equal(state["average"]["rest.weight"], state["weights"]["rest.weight"])


def test_no_averaging_keeps_the_last_weights(tmp_path):
    result = train(ToyModel(), ToyEpisodes(), changed(ema=0), tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.equal(final_weights(result)["rest.weight"], state["weights"]["rest.weight"])


def undisturbed(model):
    """Without dropout, so that parts of a batch are asked what the whole batch is asked."""
    model.dropout.p = 0.0
    return model


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_batches_learn_what_one_batch_learns(tmp_path, parts):
    whole = train(undisturbed(ToyModel()), ToyEpisodes(), SETTINGS, tmp_path / "whole")
    in_parts = train(undisturbed(ToyModel()), ToyEpisodes(), changed(batch_size=4 // parts, accumulate=parts), tmp_path / "parts")
    assert in_parts.steps == whole.steps == 9
    for mine, theirs in zip(rows(in_parts.history), rows(whole.history), strict=True):
        assert [float(mine[k]) for k in ("total", "grad_norm", "lr")] == pytest.approx([float(theirs[k]) for k in ("total", "grad_norm", "lr")], rel=1e-4)
    a, b = final_weights(whole), final_weights(in_parts)
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_compiled_forward_learns_the_same(tmp_path, monkeypatch):
    compiled, compile = [], torch.compile
    def quickly(function):  # the graphs as they are, without minutes of a compiler
        compiled.append(function)
        return compile(function, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", quickly)
    plain = train(undisturbed(ToyModel()), ToyEpisodes(), SETTINGS, tmp_path / "plain")
    assert not compiled
    fast = train(undisturbed(ToyModel()), ToyEpisodes(), changed(compile=True), tmp_path / "compiled")
    assert compiled == [forward]
    a, b = final_weights(plain), final_weights(fast)
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_loss_falls_and_log_has_the_columns(tmp_path):
    result = train(ToyModel(), ToyEpisodes(48), changed(epochs=10), tmp_path)
    log = rows(result.history)
    assert float(log[-1]["total"]) < 0.6 * float(log[0]["total"])
    assert list(log[0]) == ["step", "epoch", "lr", "seconds", "waiting", "grad_norm", "total",
                            "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"]
    assert all(0 <= float(row["waiting"]) <= 1 for row in log)
    assert float(log[5]["lr"]) == learning_rate(5, 12, changed(epochs=10))


def test_loss_that_is_not_finite_stops_with_the_last_checkpoint_whole(tmp_path):
    model = ToyModel()
    model.rest.weight.data[0] = float("nan")
    with pytest.raises(TrainError, match=r"step 0: the loss is not finite \(.*loss_ce = nan"):
        train(model, ToyEpisodes(), SETTINGS, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_order_depends_on_seed_and_epoch_only():
    orders = {(seed, epoch): tuple(epoch_order(20, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    torch.manual_seed(5)
    assert tuple(epoch_order(20, 1, 1)) == orders[1, 1]


def test_workers_change_nothing(tmp_path):
    alone = train(ToyModel(), ToyEpisodes(), changed(epochs=1), tmp_path / "alone")
    helped = train(ToyModel(), ToyEpisodes(), changed(epochs=1, num_workers=1), tmp_path / "helped")
    assert numbers(alone.history) == numbers(helped.history)


def test_pixels_and_token_ids_are_encoded_first():
    model = ToyModel()
    batch = collate([ToyEpisodes(pixels=True)[i] for i in range(3)])
    forward(model, batch)
    call = model.calls[0]
    assert call["words"].shape == (3, 2, 3) and call["query_levels"][0].shape == (3, 2, 3, 8, 12)
    assert call["query_padding"] is None and call["query_sizes"] is None


def test_queries_that_start_from_the_sentence_are_given_it():
    model = ToyModel()
    batch = collate([ToyEpisodes(pixels=True)[i] for i in range(3)])
    forward(model, batch)
    assert "sentence" not in model.calls[0]
    model.config.anchor_queries = False
    model.encode_sentence = lambda ids, mask: ids.float() * mask
    forward(model, batch)
    assert torch.equal(model.calls[1]["sentence"], batch.words.float() * batch.word_mask)


def test_another_criterion(tmp_path):
    class Doubled(Criterion):
        def total(self, losses): return 2 * super().total(losses)
    settings = changed(epochs=1)
    plain, doubled = (train(ToyModel(), ToyEpisodes(), settings, tmp_path / c.__name__, criterion=c) for c in (Criterion, Doubled))
    assert float(rows(doubled.history)[0]["total"]) == pytest.approx(2 * float(rows(plain.history)[0]["total"]))


def test_padded_batches_say_how_large_each_clip_is():
    model = ToyModel()
    data = ToyEpisodes(sizes=((32, 48), (28, 40)))
    forward(model, collate([data[0], data[1]]))
    assert model.calls[0]["query_sizes"].tolist() == [[32, 48], [28, 40]]


@pytest.mark.parametrize("fields, message", [
    (dict(schedule="linear"), "schedule='linear': one of cosine, step"), (dict(amp="fp16"), "amp='fp16': one of none, bf16"),
    (dict(lr=-1), "lr=-1: more than 0"), (dict(ema=1.0), "ema=1.0: less than 1"), (dict(batch_size=0), "batch_size=0: at least 1"),
    (dict(accumulate=0), "accumulate=0: at least 1")])
def test_bad_settings_are_named(fields, message):
    with pytest.raises(TrainError, match="training settings: ") as error:
        TrainSettings(**fields)
    assert message in str(error.value)


def test_too_few_episodes_and_disagreement_are_told(tmp_path):
    with pytest.raises(TrainError, match="3 episodes in an epoch, fewer than batch_size=4"):
        train(ToyModel(), ToyEpisodes(3), SETTINGS, tmp_path)
    with pytest.raises(TrainError, match="12 episodes in an epoch, fewer than batch_size=4 × accumulate=4"):
        train(ToyModel(), ToyEpisodes(), changed(accumulate=4), tmp_path)
    data = ToyEpisodes()
    data.episodes_per_class = 7
    with pytest.raises(TrainError, match="ask for 100 episodes per class, the dataset has 7"):
        train(ToyModel(), data, SETTINGS, tmp_path)
