"""LIMPQ's joint training against a loop by hand, cut off and on two workers; and what follows from its indicators."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.api import EpochReport, ensure_reference, run_trial, survey, time_steps
from trainables.checkpoint import Checkpoint
from trainables.choices import Choices
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.data import load_data
from trainables.distributed import Workers, make_repeatable
from trainables.errors import ConfigError, DivergedError, InfeasibleBudgetError
from trainables.finetune_config import FinetuneConfig
from trainables.indicators import Indicators
from trainables.method_config import LimpqConfig
from trainables.methods import limpq
from trainables.methods.limpq import JointNetwork, Widths, nearest_pass, uniform_passes
from trainables.methods.offered import offered
from trainables.models import build_network
from trainables.policy import BitPolicy, LayerBits
from trainables.quantizers.layers import quant_layers
from trainables.quantizers.lsq import LsqActivations, LsqWeights
from trainables.reference import Bench, load_bench, make_bench
from trainables.report import ReferenceRecord
from trainables.supernet import deploy
from trainables.training import train

ALONE = Workers(0, 1, torch.device("cpu"))
TINY = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8, fraction=0.3),
    reference=ReferenceConfig(epochs=2),
    method=LimpqConfig(epochs=2, batch_size=64, weight_bits=(2, 3, 4, 5), act_bits=(2, 3, 4, 5)),
    finetune=FinetuneConfig(epochs=1, batch_size=64),
    budget=BudgetConfig(compression=80.0),
)


class CutOffError(Exception):
    """The process was killed here."""


def quiet(epoch: EpochReport) -> None:
    """No report is wanted."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TINY, quiet, store=folder)
    return folder


def plain_net(*, normalised: bool) -> nn.Sequential:
    """Stem, two searched layers, head."""
    torch.manual_seed(1)
    parts: list[nn.Module] = []
    for channels, out in ((3, 6), (6, 8), (8, 8)):
        parts += [nn.Conv2d(channels, out, 3, 2, padding=1), nn.BatchNorm2d(out) if normalised else nn.Identity()]
        parts += [nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def bench_of(net: nn.Module, workers: Workers = ALONE) -> Bench:
    torch.set_num_threads(1)
    record = ReferenceRecord(key="none", top1=0.0, device_hours=0.0, data_fingerprint="")
    return make_bench(TINY, load_data(TINY.data), net, record, Checkpoint(None, workers), workers=workers)


TOY = LimpqConfig(epochs=2, batch_size=64, weight_bits=(2, 4), act_bits=(3, 4), lr=0.05, weight_decay=0.01)
FIRST, SECOND = "3", "6"
"""The searched layers of `plain_net`; the batch normalisation of each follows it."""


def test_every_width_on_offer_has_a_uniform_pass() -> None:
    assert uniform_passes((4, 2, 3), (2, 3, 4)) == ((2, 2), (3, 3), (4, 4))
    assert uniform_passes((2, 3, 4), (8,)) == ((2, 8), (3, 8), (4, 8))
    assert uniform_passes((2,), (3,)) == ((2, 3),)
    # Of two that are as near the smaller.
    assert uniform_passes((2, 4, 8), (2, 3, 6)) == ((2, 2), (2, 3), (4, 3), (4, 6), (8, 6))
    assert [nearest_pass(((2, 2), (2, 3), (4, 3)), *pair) for pair in ((2, 2), (2, 8), (4, 2))] == [0, 1, 2]


def test_widths_are_drawn_evenly_from_seed_epoch_and_step_alone() -> None:
    joint = JointNetwork(bench_of(plain_net(normalised=False)), TOY)
    assert joint.draw(0, 1, 2) == joint.draw(0, 1, 2)
    found = [joint.draw(0, epoch, step) for epoch, step in itertools.product(range(20), range(20))]
    seen = [(*widths.weights.values(), *widths.acts.values()) for widths in found]
    assert all(set(widths.weights) == set(widths.acts) == {FIRST, SECOND} for widths in found)
    counts = [seen.count(one) for one in itertools.product((2, 4), (2, 4), (3, 4), (3, 4))]
    # 400 draws of 16 policies: 25 each, up to five standard deviations.
    assert sum(counts) == 400
    assert max(abs(count - 25) for count in counts) < 25
    assert [joint.draw(1, 0, step) for step in range(9)] != found[:9]


def test_steps_start_from_what_a_layer_reads_in_the_pass_of_its_width_as_it_is_normalised_in_training() -> None:
    bench = bench_of(plain_net(normalised=True))
    joint = JointNetwork(bench, TOY)
    joint.net.eval()
    for norm in (joint.net[4], joint.net[7]):
        # Far from the batch's own, with which training normalises.
        norm.running_mean.fill_(5.0)
        norm.train()
    read: list[Tensor] = []
    joint.net[6].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    for place, (_, act_bits) in enumerate(joint.passes):
        joint.use_uniform(place)
        joint.net(bench.calibration_images(TOY.batch_size))
        expected = 2 * float(read[place].detach().abs().mean()) / math.sqrt(2**act_bits - 1)
        assert joint.indicators().acts[SECOND][act_bits] == pytest.approx(expected, rel=1e-5)


def by_hand(bench: Bench, joint: JointNetwork) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and steps after the joint training of TOY, with a quantiser for each width and a normalisation for each
    pass: no network, no loop and no layer of ours."""
    stem, stem_norm, first, _, second, _, head = [m for m in bench.reference if len(list(m.parameters()))]
    layers = {name: getattr(bench.reference, name) for name in (FIRST, SECOND)}
    for parameter in bench.reference.parameters():
        parameter.requires_grad_(True)
    weights = {(n, b): LsqWeights((b,)) for n in layers for b in TOY.weight_bits}
    acts = {(n, b): LsqActivations((b,), signed=False) for n in layers for b in TOY.act_bits}
    for (name, bits), quantizer in weights.items():
        quantizer.step.data.fill_(joint.mixtures[name].weights.steps()[bits])
    for (name, bits), quantizer in acts.items():
        quantizer.step.data.fill_(joint.mixtures[name].activations.steps()[bits])
    norms = {(n, k): nn.BatchNorm2d(8) for n in layers for k in range(len(joint.passes))}
    steps = [quantizer.step for quantizer in (*weights.values(), *acts.values())]
    one = torch.ones(1)

    def loss_of(images: Tensor, labels: Tensor, widths: dict[str, tuple[int, int, int]]) -> Tensor:
        x = F.relu(stem_norm(stem(images)))
        for name, layer in layers.items():
            w, a, k = widths[name]
            read, weight = acts[name, a](x, one), weights[name, w](layer.weight, one)
            x = F.relu(norms[name, k](F.conv2d(read, weight, layer.bias, stride=2, padding=1)))
        logits = head(x.mean((2, 3), keepdim=True).flatten(1))
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    decayed = [module.weight for module in (stem, first, second, head)]
    free = [*steps, *(p for norm in (stem_norm, *norms.values()) for p in norm.parameters())]
    free += [module.bias for module in (stem, first, second, head)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    stem_norm.train()
    for epoch in (0, 1):
        batches = list(bench.training_batches(epoch, 64))
        taken = round(len(batches) / 2)
        assert 1 < taken < len(batches)
        for step, batch in enumerate(batches[:taken]):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 + math.cos(math.pi * (epoch + step / taken) / 2)) / 2
            optimizer.zero_grad()
            drawn = joint.draw(bench.config.seed, epoch, step)
            passes = [dict.fromkeys(layers, (w, a, k)) for k, (w, a) in enumerate(((2, 3), (4, 4)))]
            passes.append({n: (drawn.weights[n], drawn.acts[n], int(drawn.weights[n] == 4)) for n in layers})
            for widths in passes:
                loss_of(batch.images, batch.labels, widths).backward()
            optimizer.step()
    return [p.detach() for p in (*decayed, *(module.bias for module in (stem, first, second, head)))], steps


def test_the_joint_training_is_a_loop_by_hand_bit_for_bit() -> None:
    bench, other = (bench_of(plain_net(normalised=True)) for _ in range(2))
    joint = JointNetwork(bench, TOY)
    assert joint.passes == ((2, 3), (4, 4))
    expected, expected_steps = by_hand(other, JointNetwork(other, TOY))
    plan, passes = limpq.joint_plan(bench, joint, TOY), limpq.pass_terms(joint.net, joint, TOY)
    kept = Checkpoint(None, ALONE).begin("search", joint.net)
    train(joint.net, plan, passes, workers=ALONE, on_epoch=lambda epoch, means: None, checkpoint=kept)
    modules = [m for m in joint.net if isinstance(m, nn.Conv2d | nn.Linear)]
    found = [p.detach() for p in (*(m.weight for m in modules), *(m.bias for m in modules))]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    mixtures = [joint.mixtures[name] for name in (FIRST, SECOND)]
    steps = torch.cat([m.weights.step for m in mixtures] + [m.activations.step for m in mixtures])
    assert torch.equal(steps, torch.stack(expected_steps))
    start = JointNetwork(bench, TOY).mixtures[FIRST].weights.step
    assert not bool((start == steps[:2]).any())


def test_the_task_risk_by_which_early_stopping_ranks_is_the_random_passs_without_label_smoothing() -> None:
    bench = bench_of(plain_net(normalised=True))
    joint = JointNetwork(bench, TOY)
    batch = next(iter(limpq.joint_plan(bench, joint, TOY).batches(0)))
    joint.net.train()
    *uniform, drawn = limpq.pass_terms(joint.net, joint, TOY)
    found = drawn(batch)
    with torch.no_grad():
        expected = F.cross_entropy(joint.net(batch.images), batch.labels)
    torch.testing.assert_close(found["task_risk"], expected)
    assert abs(found["loss_random"].item() - expected.item()) > 1e-4
    assert all("task_risk" not in terms(batch) for terms in uniform)


def test_widths_that_are_in_use_are_those_of_the_deployed_network_with_the_same_steps() -> None:
    """With an activation that a pinned layer fixes, and sums whose widths are tied; every parameter is in use."""
    network = NetworkConfig(name="resnet8", tie_residuals=True, pinned={"layer2.0.downsample.*": 6})
    torch.set_num_threads(1)
    config = replace(TINY, network=network)
    data = load_data(config.data)
    torch.manual_seed(0)
    net = build_network("resnet8", num_classes=10, image_size=8)
    record = ReferenceRecord(key="none", top1=0.0, device_hours=0.0, data_fingerprint="")
    bench = make_bench(config, data, net, record, Checkpoint(None, ALONE), workers=ALONE)
    joint = JointNetwork(bench, replace(TINY.method, batch_size=32))
    joint.net.train()(bench.probe)
    widths = joint.draw(5)
    joint.use(widths)
    joint.net.train()(bench.probe).sum().backward()
    assert all(p.grad is not None for p in joint.net.parameters())
    bits = {name: LayerBits(b, b) for name, b in bench.roles.pinned.items()}
    bits |= {name: LayerBits(32, 32) for name in bench.roles.float_in_search}
    for name, weight_bits in widths.weights.items():
        group = bench.roles.group_of[name]
        bits[name] = LayerBits(weight_bits, bench.roles.fixed_acts.get(group, widths.acts[group]))
    assert {bits[name].act for name in joint.mixtures if bench.roles.group_of[name] in bench.roles.fixed_acts} == {6}
    ordered = {name: bits[name] for name in bench.costs.layers}
    policy = BitPolicy(network="resnet8", bits=ordered, pinned=frozenset(bench.roles.pinned))
    deployed = deploy(bench.reference, bench.costs, policy, "lsq")
    for name, layer in quant_layers(deployed).items():
        if name in joint.mixtures:
            ours = joint.mixtures[name]
            layer.mixture.weights.step.data.fill_(ours.weights.steps()[bits[name].weight])
            layer.mixture.activations.step.data.fill_(ours.activations.steps()[bits[name].act])
        else:
            layer.mixture.load_state_dict(quant_layers(joint.net)[name].mixture.state_dict())
    # In training both normalise by the batch's own statistics; scales and shifts are still the reference's.
    assert torch.equal(joint.net.train()(bench.probe), deployed.train()(bench.probe))


def trained(workers: Workers, *, normalised: bool) -> tuple[dict[str, Tensor], Choices]:
    """The joint network and its choices after a short search on this worker's shares."""
    bench = bench_of(plain_net(normalised=normalised), workers)
    make_repeatable(0)
    config = replace(TOY, batch_size=65, epochs=1, fraction=0.3)
    joint = JointNetwork(bench, config)
    model = workers.wrap(joint.net)
    plan, passes = limpq.joint_plan(bench, joint, config), limpq.pass_terms(model, joint, config)
    reports: list[dict[str, float]] = []
    kept = Checkpoint(None, workers).begin("search", joint.net)
    train(model, plan, passes, workers=workers, on_epoch=lambda _, means: reports.append(means), checkpoint=kept)
    assert set(reports[0]) == {"loss", "loss_w2a3", "loss_w4a4", "loss_random", "task_risk", "images_per_s"}
    return joint.net.state_dict(), joint.indicators().choices(offered(bench, config))


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    workers = Workers(rank, 2, torch.device("cpu"))
    for normalised in (False, True):
        state, choices = trained(workers, normalised=normalised)
        torch.save((state, choices.to_content()), f"{folder}/{rank}-{normalised}.pt")
    dist.destroy_process_group()


def test_two_workers_train_as_one_and_end_with_the_same_choices(tmp_path: Path) -> None:
    """Shares of 33 and 32 images. Batch normalisation sees a share each, so that one worker is not two with it."""
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    for normalised in (False, True):
        (state, choices), (other, others) = (
            torch.load(tmp_path / f"{rank}-{normalised}.pt", weights_only=True) for rank in (0, 1)
        )
        assert choices == others
        assert all(torch.equal(state[name], other[name]) for name in state)
    alone, _ = trained(ALONE, normalised=False)
    two, _ = torch.load(tmp_path / "0-False.pt", weights_only=True)
    for name, tensor in alone.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


def test_indicators_fall_with_every_bit_and_have_been_learned(store: Path) -> None:
    bench = load_bench(TINY, store=store)
    make_repeatable(0)
    start = JointNetwork(bench, TINY.method).indicators()
    choices = limpq.search(bench, TINY.method, TINY.budget, quiet)
    alpha = TINY.method.alpha
    for name, scores in choices.weights.items():
        assert scores.widths == (2, 3, 4, 5)
        indicators = [-value / alpha for value in scores.values]
        assert indicators == sorted(indicators, reverse=True)
        assert all(abs(s / b - 1) > 1e-4 for s, b in zip(indicators, start.weights[name].values(), strict=True))
    for scores in choices.acts.values():
        assert list(scores.values) == sorted(scores.values)
    # The file has all widths in the authors' format, and the same choices follow from it again.
    kept = Choices.from_content(json.loads(choices.to_json()), origin="choices.json")
    assert kept == choices
    learned = Indicators.from_content(kept.indicators, "choices.json")
    again = learned.choices(offered(bench, TINY.method), alpha=alpha)
    assert replace(again, indicators=kept.indicators) == choices
    assert kept.indicators["layer_name"] == list(choices.weights)
    with pytest.raises(ConfigError, match=r"c\.json: 'indicators' are '\[1\]'; expected an object, or leave it out"):
        Choices.from_content({**choices.to_content(), "indicators": [1]}, origin="c.json")


def run(config: TrialConfig, store: Path, file: Path | None) -> tuple[object, dict[str, float], list[EpochReport]]:
    reports: list[EpochReport] = []
    result = run_trial(config, reports.append, store=store, checkpoint=file)
    metrics = {name: value for name, value in result.metrics.items() if not name.endswith(("_hours", "_per_s"))}
    return (result.record, result.choices), metrics, reports


def test_a_trial_that_is_cut_off_at_any_step_goes_on_to_the_same_end(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limpq, "CHECKPOINT_EVERY", 2)
    whole, metrics, reports = run(TINY, store, None)
    assert [(r.stage, r.epoch) for r in reports] == [("search", 1), ("search", 2), ("finetune", 1)]
    names = {"loss", *(f"loss_w{b}a{b}" for b in (2, 3, 4, 5)), "loss_random", "task_risk", "images_per_s"}
    assert set(reports[0].metrics) == names | {"policy_bops_g", "excluded_widths"}
    assert metrics["compression"] >= 80
    assert metrics["bops_g"] == reports[1].metrics["policy_bops_g"]
    use, calls = JointNetwork.use, []

    def use_until_cut_off(joint: JointNetwork, widths: Widths) -> None:
        calls.append(widths)
        if len(calls) == cut:
            raise CutOffError
        use(joint, widths)

    assert survey(TINY).search_steps == 6
    for cut in (1, 3, 6):
        calls.clear()
        file = tmp_path / f"{cut}.pt"
        with monkeypatch.context() as patch:
            patch.setattr(JointNetwork, "use", use_until_cut_off)
            with pytest.raises(CutOffError):
                run(TINY, store, file)
        torch.rand(3)
        assert run(TINY, store, file)[:2] == (whole, metrics)


def test_widths_that_are_excluded_come_back_where_the_budget_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(plain_net(normalised=False))
    template = offered(bench, TOY)
    indicators = Indicators(
        {FIRST: {2: 0.1, 4: 0.3}, SECOND: {2: 0.4, 4: 0.2}}, {name: {3: 0.4, 4: 0.2} for name in (FIRST, SECOND)}
    )
    monkeypatch.setattr(JointNetwork, "indicators", lambda _: indicators)
    monkeypatch.setattr(limpq, "train", lambda *_, **__: None)
    loose, floor = BudgetConfig(compression=1.0), bench.costs.of(template.smallest)["bops_g"]
    found = limpq.search(bench, TOY, loose, quiet)
    assert (found.weights[FIRST].widths, found.weights[SECOND].widths) == ((4,), (2, 4))
    tight = BudgetConfig(bops_g=floor)
    found = limpq.search(bench, TOY, tight, quiet)
    assert dict(zip(found.weights[FIRST].widths, found.weights[FIRST].values, strict=True)) == {2: -0.6, 4: -0.6}
    assert dict(zip(found.weights[SECOND].widths, found.weights[SECOND].values, strict=True)) == {2: -0.8, 4: -0.4}


def test_a_budget_below_the_floor_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limpq, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InfeasibleBudgetError, match="bops_g"):
        limpq.search(bench_of(plain_net(normalised=False)), TOY, BudgetConfig(bops_g=1e-6), quiet)


def test_steps_that_are_no_longer_finite_are_named() -> None:
    joint = JointNetwork(bench_of(plain_net(normalised=False)), TOY)
    joint.mixtures[FIRST].weights.step.data[1] = math.nan
    with pytest.raises(DivergedError, match=r"indicators are no longer finite; try a smaller method\.lr"):
        joint.indicators()


def test_a_step_is_timed_with_all_its_passes() -> None:
    few, many = (
        replace(TINY, method=replace(TINY.method, weight_bits=widths, act_bits=(4,)), budget=BudgetConfig(bops_g=1.0))
        for widths in ((4,), (2, 3, 4, 5, 6, 7, 8))
    )
    assert time_steps(many, threads=1).search_s > 1.5 * time_steps(few, threads=1).search_s > 0
