"""The black-box search: budgets by enumeration, what it finds by brute force, going on after a cut-off bit for bit."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import cross_entropy

from tests.science.reports import Reports
from tests.science.test_random_policy import COSTS, all_policies, small_choices
from trainables.allocate import allocate
from trainables.checkpoint import Checkpoint
from trainables.choices import Choices
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.data import load_data
from trainables.distributed import Workers, make_repeatable
from trainables.errors import ConfigError, DivergedError, InfeasibleBudgetError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import BlackboxConfig
from trainables.methods import blackbox
from trainables.methods.blackbox import Tried
from trainables.methods.genome import Genome
from trainables.methods.quick_score import QuickScore, parts
from trainables.policy import BitPolicy
from trainables.quantizers.layers import calibrate
from trainables.random_policy import random_policies
from trainables.reference import Bench, ensure_reference, untrained_bench
from trainables.supernet import deploy
from trainables.survey import survey
from trainables.trial import run_trial


def share_of(choices: Choices, share: float, *names: str) -> BudgetConfig:
    """Limits so far between the smallest and the largest widths."""
    low, high = COSTS.of(choices.smallest), COSTS.of(choices.best)
    return BudgetConfig(**{name: low[name] + share * (high[name] - low[name]) for name in names})


def kept_by(policies: list[BitPolicy], budget: BudgetConfig) -> list[BitPolicy]:
    return [policy for policy in policies if not budget.broken(COSTS.of(policy))]


def grown(choices: Choices, policy: BitPolicy) -> list[BitPolicy]:
    """All policies with one width more in one place."""
    member = {group: layer for layer, group in choices.group_of.items()}
    weights = {layer: policy.bits[layer].weight for layer in choices.weights}
    acts = {group: policy.bits[member[group]].act for group in choices.acts}
    more = [({**weights, k: b + 1}, acts) for k, b in weights.items() if b + 1 in choices.weights[k].widths]
    more += [(weights, {**acts, k: b + 1}) for k, b in acts.items() if b + 1 in choices.acts[k].widths]
    return [choices.policy(*pair) for pair in more]


@pytest.mark.parametrize(
    ("names", "share", "fixed"),
    [(("bops_g",), 0.4, None), (("bops_g",), 0.1, {"a": 3}), (("bops_g",), 0.0, {"a": 2}), (("bops_g",), 1.0, {"a": 4}),
     (("bops_paper_g", "storage_mb"), 0.4, {"c": 2}), (("mean_act_bits",), 0.3, {"d": 4}),
     (("bops_g", "mean_weight_bits", "mean_act_bits"), 0.45, {"a": 3})],
)  # fmt: skip
def test_whatever_is_written_down_keeps_every_limit_and_no_width_more_would(
    names: tuple[str, ...], share: float, fixed: dict[str, int] | None
) -> None:
    """All genomes; and every policy that could be tried is one of theirs, itself unchanged."""
    choices = small_choices(fixed)
    budget = share_of(choices, share, *names)
    genome = Genome(choices, COSTS, budget)
    reached = set()
    for widths in itertools.product(*genome.genes.values()):
        reached.add(tuple(genome.within(dict(zip(genome.genes, widths, strict=True))).items()))
    assert all(genome.within(dict(repaired)) == dict(repaired) for repaired in reached)
    full = [p for p in kept_by(all_policies(choices), budget) if not kept_by(grown(choices, p), budget)]
    assert {genome.policy(dict(repaired)).hash for repaired in reached} == {policy.hash for policy in full}


def test_widths_are_lowered_in_turn_from_the_first_layer_and_only_where_that_helps() -> None:
    choices = small_choices()
    budget = share_of(choices, 0.9, "bops_g")
    genome = Genome(choices, COSTS, budget)
    widest = {gene: offered[-1] for gene, offered in genome.genes.items()}
    lowered = dict(widest)
    genome._lower(lowered)
    changed = [gene for gene in genome.genes if lowered[gene] < widest[gene]]
    # The first gene of the first layer was enough, and everything behind it was left alone.
    assert changed == list(genome.genes)[: len(changed)]
    assert kept_by([genome.policy(lowered)], budget) != []
    assert kept_by([genome.policy({**lowered, changed[-1]: widest[changed[-1]]})], budget) == []
    light = Genome(choices, COSTS, share_of(choices, 0.5, "storage_mb"))
    stored = light.within(widest)
    assert {stored[gene] for gene in light.genes if gene.startswith("activation")} == {4}
    with pytest.raises(InfeasibleBudgetError, match=r"budget\.bops_g is .* give at least"):
        Genome(choices, COSTS, BudgetConfig(bops_g=0.9 * COSTS.bops_g(choices.smallest)))


def loss_of(choices: Choices, seed: int) -> Callable[[BitPolicy], float]:
    """A score whose widths are not worth the same in all layers, and not independent of each other."""
    draw = np.random.default_rng(seed)
    weights = {layer: float(np.exp(draw.normal())) for layer in choices.weights}
    acts = {layer: float(np.exp(draw.normal())) for layer in choices.acts}
    pair = draw.choice(list(choices.weights), 2, replace=False)

    def score(policy: BitPolicy) -> float:
        lost = sum(worth * 4.0 ** -policy.bits[layer].weight for layer, worth in weights.items())
        lost += sum(worth * 4.0 ** -policy.bits[layer].act for layer, worth in acts.items())
        return -lost - 0.2 * abs(policy.bits[pair[0]].weight - policy.bits[pair[1]].act) / 16

    return score


def test_it_finds_the_best_of_all_policies_or_one_next_to_it_and_more_than_as_many_random_draws() -> None:
    choices, evaluations = small_choices(), 30
    budget = share_of(choices, 0.4, "bops_g")
    genome, policies = Genome(choices, COSTS, budget), kept_by(all_policies(choices), budget)
    ranks: dict[str, list[int]] = {"search": [], "draws": []}
    for seed in range(5):
        score = loss_of(choices, seed)
        tried = Tried(genome, seed=seed)
        for _ in range(evaluations):
            widths = tried.propose()
            assert tried.score_of(widths) is None
            tried.add(widths, score(genome.policy(widths)))
        draws = random_policies(choices, COSTS, bops_g=budget.bops_g, count=evaluations, seed=seed)
        found = {"search": max(tried.scores), "draws": max(map(score, draws))}
        values = [score(policy) for policy in policies]
        for name, best in found.items():
            ranks[name].append(sum(value > best + 1e-12 for value in values))
    assert len(policies) > 1000
    assert max(ranks["search"]) <= 5
    assert sum(ranks["search"]) < 0.5 * sum(ranks["draws"])


def test_what_is_proposed_follows_from_seed_number_and_scores_alone() -> None:
    choices = small_choices()
    genome, score = Genome(choices, COSTS, share_of(choices, 0.4, "bops_g")), loss_of(choices, 0)

    def gone_on(tried: Tried, count: int) -> list[dict[str, int]]:
        while len(tried.scores) < count:
            widths = tried.propose()
            tried.add(widths, score(genome.policy(widths)))
        return tried.widths

    whole = Tried(genome, seed=3)
    gone_on(whole, 14)
    for cut in (0, 1, 6, 13):
        part, rest = Tried(genome, seed=3), Tried(genome, seed=3)
        gone_on(part, cut)
        # Proposals that were cut off before they were scored leave nothing behind.
        part.propose()
        rest.load_state_dict(json.loads(json.dumps(part.state_dict())))
        assert gone_on(rest, 14) == whole.widths
        assert rest.best == whole.best
    other = Tried(genome, seed=4)
    assert gone_on(other, 14) != whole.widths


METHOD = BlackboxConfig(evaluations=5, tune_steps=2, batch_size=32, images=60)
TRIAL = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8, fraction=0.3),
    reference=ReferenceConfig(epochs=2),
    method=METHOD,
    budget=BudgetConfig(compression=90.0),
    finetune=FinetuneConfig(epochs=1, batch_size=128),
)


def bench_of(workers: Workers | None = None, *, checkpoint: Path | None = None) -> Bench:
    torch.set_num_threads(1)
    workers = workers or Workers(0, 1, torch.device("cpu"))
    torch.manual_seed(0)
    bench = untrained_bench(TRIAL, load_data(TRIAL.data), workers)
    make_repeatable(TRIAL.seed)
    return replace(bench, checkpoint=Checkpoint(checkpoint, workers))


def test_every_evaluation_is_reported_keeps_the_budget_and_the_best_is_what_comes_out(tmp_path: Path) -> None:
    reports = Reports()
    # Validation images would be missed at once.
    bench = bench_of()
    bench = replace(bench, data=replace(bench.data, validation=None))
    choices = blackbox.search(bench, METHOD, TRIAL.budget, reports)
    assert [(r.stage, r.epoch, r.epochs) for r in reports.seen] == [("search", n, 5) for n in range(1, 6)]
    scores = [report.metrics["score"] for report in reports.seen]
    assert len(set(scores)) == 5
    for n, report in enumerate(reports.seen, 1):
        assert report.metrics["best"] == max(scores[:n]) == -report.metrics["task_risk"]
        assert bench.costs.full_bops_g / report.metrics["tried_bops_g"] >= TRIAL.budget.compression
        assert report.metrics["tried_bops_g"] > 0.9 * bench.costs.full_bops_g / TRIAL.budget.compression
    policy = allocate(choices, bench.costs, TRIAL.budget)
    best = scores.index(max(scores))
    assert bench.costs.bops_g(policy) == reports.seen[best].metrics["tried_bops_g"]
    assert policy == choices.best == choices.smallest
    make_repeatable(TRIAL.seed)
    assert QuickScore(bench, METHOD)(policy) == scores[best]


def test_a_search_that_was_cut_off_repeats_no_evaluation_and_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, whole_score = [], QuickScore.__call__

    def counted(self: QuickScore, policy: BitPolicy) -> float:
        evaluated.append(policy.hash)
        return whole_score(self, policy)

    monkeypatch.setattr(QuickScore, "__call__", counted)
    whole = Reports()
    expected = blackbox.search(bench_of(), METHOD, TRIAL.budget, whole)
    undisturbed, file = list(evaluated), tmp_path / "checkpoint.pt"
    evaluated.clear()
    with pytest.raises(KeyboardInterrupt):
        blackbox.search(bench_of(checkpoint=file), METHOD, TRIAL.budget, Reports(2))
    rest = Reports()
    assert blackbox.search(bench_of(checkpoint=file), METHOD, TRIAL.budget, rest) == expected
    assert evaluated == undisturbed
    # The third was kept, and its report, which was cut off, is told again.
    assert rest.seen == whole.seen[2:]


def ranked(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    reports = Reports()
    bench = bench_of(Workers(rank, 2, torch.device("cpu")))
    choices = blackbox.search(bench, METHOD, TRIAL.budget, reports)
    told = [dict(report.metrics) for report in reports.seen]
    Path(f"{folder}/{rank}.json").write_text(json.dumps([choices.to_content(), told]))
    dist.destroy_process_group()


@pytest.mark.long
def test_two_workers_end_with_the_same_choices_and_tell_the_same(tmp_path: Path) -> None:
    mp.spawn(ranked, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first[1]) == METHOD.evaluations


def test_a_score_is_the_cross_entropy_of_held_out_images_that_the_tuning_never_sees() -> None:
    bench = bench_of()
    train = bench.data.train
    tuned, held_out = parts(train, METHOD, seed=0)
    assert sorted(torch.cat([tuned.chosen, held_out.chosen]).tolist()) == list(range(len(train)))
    assert len(held_out) == pytest.approx(METHOD.images, abs=5)
    assert held_out.labels.unique().tolist() == list(range(10))
    images, labels = held_out.batch(torch.arange(len(held_out)), None)
    torch.testing.assert_close(images, train.batch(held_out.chosen, None)[0])
    policy = bench_policy(bench)
    net = deploy(bench.reference, bench.costs, policy, "pact")
    score = QuickScore(bench, replace(METHOD, tune_steps=0))
    calibrate(net, score._calibration())
    with torch.no_grad():
        expected = -float(cross_entropy(net.eval()(images), labels))
    assert score(policy) == pytest.approx(expected, rel=1e-5)
    assert QuickScore(bench, replace(METHOD, tune_steps=12, lr=0.003))(policy) > expected


def bench_policy(bench: Bench) -> BitPolicy:
    low = blackbox.offered(bench, METHOD)
    return low.smallest


def test_images_that_leave_too_few_to_tune_with_are_an_error_before_anything_is_computed() -> None:
    told = r"method\.images is 420 and method\.batch_size 64, but of the 434 training images \d+ are left to tune with"
    config = replace(TRIAL, method=BlackboxConfig(images=420))
    with pytest.raises(ConfigError, match=told):
        survey(config, load_data(TRIAL.data))
    assert survey(TRIAL, load_data(TRIAL.data)).search_steps == METHOD.evaluations
    with pytest.raises(ConfigError, match="budget: blackbox chooses bits for a budget, and there is none"):
        replace(TRIAL, budget=BudgetConfig())


def test_a_tuning_that_diverges_is_no_score_and_if_all_do_that_is_told() -> None:
    bench = bench_of()
    with pytest.raises(DivergedError, match=r"blackbox: no policy had a finite loss; try a smaller method\.lr"):
        blackbox.search(bench, replace(METHOD, evaluations=1, lr=1e30), TRIAL.budget, Reports())


def test_a_trial_ends_with_the_best_policy_finetuned(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    ensure_reference(TRIAL, Reports(), store=tmp_path)
    reports = Reports()
    result = run_trial(replace(TRIAL, method=replace(METHOD, quantizer="lsq")), reports, store=tmp_path)
    assert [report.stage for report in reports.seen] == ["search"] * 5 + ["finetune"]
    assert result.record.method == "blackbox"
    assert TRIAL.budget.broken(result.metrics) == []
    assert result.metrics["bops_g"] == reports.seen[4].metrics["policy_bops_g"]
    assert result.metrics["search_device_hours"] > 0


def test_the_estimator_is_loaded_when_the_method_runs_and_not_before() -> None:
    code = "import trainables.methods, trainables.survey, sys; print('optuna' in sys.modules, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True"]
