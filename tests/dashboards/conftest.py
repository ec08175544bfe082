"""Sweeps that were never run, of any size, as pages see them."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from service.front import find_front
from service.records import SweepRecord, TrialRecord
from service.space import Domain, parse_domain
from service.view import SweepView
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

SPACE = {
    "method.zeta": {"loguniform": [0.03, 1.5]},
    "method.eta": {"uniform": [0.0, 2.0]},
    "method.capacity": {"choice": [12.0, 24.0, 36.0]},
    "method.top_k": {"int": [6, 16]},
    "method.start": {"choice": ["reference", "scratch"]},
    "method.weight_lr": {"loguniform": [0.01, 1.0], "when": {"method.start": "scratch"}},
}
SWEEP = SweepRecord(
    name="many",
    spec_hash="h",
    facts={"network": "resnet8", "data": "digits", "method": "gmpq"},
    total_trials=0,
    created_ms=1_700_000_000_000,
    ended_ms=1_700_003_600_000,
    end="finished",
    references={"a": {"top1": 97.5, "device_hours": 0.2}},
)
MakeView = Callable[..., SweepView]


def one_policy(draw: random.Random, network: str, num_layers: int) -> BitPolicy:
    layers = ["stem", *(f"layer{i // 4 + 1}.{i % 4}.conv" for i in range(num_layers - 2)), "fc"]
    bits = {name: LayerBits(draw.choice([2, 3, 4]), draw.choice([2, 3, 4])) for name in layers}
    bits["stem"] = bits["fc"] = LayerBits(8, 8)
    return BitPolicy(network=network, bits=bits, pinned=frozenset({"stem", "fc"}))


def settings_of(draw: random.Random, networks: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "method.zeta": math.exp(draw.uniform(math.log(0.03), math.log(1.5))),
        "method.eta": draw.uniform(0, 2),
        "method.capacity": draw.choice([12.0, 24.0, 36.0]),
        "method.top_k": draw.randint(6, 16),
        "method.start": draw.choice(["reference", "scratch"]),
    }
    if settings["method.start"] == "scratch":
        settings["method.weight_lr"] = math.exp(draw.uniform(math.log(0.01), 0))
    if len(networks) > 1:
        settings["network.name"] = draw.choice(list(networks))
    return settings


def metrics_of(draw: random.Random, zeta: float, *, spread: float) -> dict[str, float]:
    bops = 0.02 * zeta**-0.5 * math.exp(draw.gauss(0, spread))
    top1 = 97 - 3 * zeta - abs(draw.gauss(0, 2 * spread))
    ard = 0.6 + 0.8 * zeta + abs(draw.gauss(0, spread))
    return {
        "top1": top1, "bops_g": bops, "ard": ard, "ard_normalised": ard / 5.3, "entropy": 2.0 + ard / 10,
        "bops_paper_g": bops * 1.1, "compression": 3.2 / bops, "storage_mb": bops, "storage_mib": bops / 1.048576,
        "mean_weight_bits": 2 + 10 * bops, "mean_act_bits": 3.0, "float_mb": 0.3, "reference_top1": 97.5,
        "search_device_hours": 0.01, "finetune_device_hours": 0.02, "device_hours": 0.03,
    }  # fmt: skip


def on_a_sphere(draw: random.Random, radius: float) -> dict[str, float]:
    """Objectives that are better the further out they are: none on one sphere dominates another."""
    gains = [abs(draw.gauss(0, 1)) for _ in range(3)]
    x, y, z = (radius * gain / math.hypot(*gains) for gain in gains)
    return {"top1": 90 + 7 * x, "bops_g": 0.2 * math.exp(-2 * y), "ard": 3 - 2 * z}


def make_view(
    folder: Path,
    *,
    num_trials: int,
    num_layers: int = 10,
    networks: Sequence[str] = ("resnet8",),
    spread: float = 0.15,
    shell: float = 0.0,
    space: Mapping[str, Any] = SPACE,
    seed: int = 0,
    last: Sequence[str] = (),
    **changes: Any,
) -> SweepView:
    """A sweep of so many trials that are done; `last` are the states of further ones, `changes` are of its record.

    With `shell` about so large a share of the trials is on the front.
    """
    draw = random.Random(seed)
    trials, policies = [], {}
    sweep = SweepRecord(**{**{name: getattr(SWEEP, name) for name in SweepRecord.__slots__}, **changes})
    for number, state in enumerate([*["done"] * num_trials, *last]):
        trial_id, settings = f"t{number:04d}", settings_of(draw, networks)
        policy = one_policy(draw, settings.get("network.name", networks[0]), num_layers)
        policies[trial_id] = PolicyRecord(policy=policy, method="gmpq", settings={}, costs={})
        start = SWEEP.created_ms + 1000 * number
        trials.append(
            TrialRecord(
                trial_id=trial_id, number=number, state=state, settings=settings, started_ms=start,
                ended_ms=0 if state in ("pending", "running") else start + 900, attempts=int(state != "pending"),
                metrics=metrics_of(draw, settings["method.zeta"], spread=spread) if state == "done" else {},
                policy_hash=policy.hash if state == "done" else "",
            )
        )  # fmt: skip
    for trial in trials if shell else ():
        if trial.state == "done":
            trial.metrics.update(on_a_sphere(draw, 1.0 if draw.random() < shell else draw.uniform(0.3, 0.6)))
    found = find_front(trials, sweep)
    members = {trial.trial_id for trial in found.members}
    stages = {trial.trial_id: {"search": 0.01, "finetune": 0.02} for trial in trials if trial.attempts}
    domains: dict[str, Domain] = {name: parse_domain(value) for name, value in space.items()}
    return SweepView(
        folder=folder / sweep.name,
        sweep=sweep,
        trials=tuple(trials),
        found=found,
        policies={trial_id: record for trial_id, record in policies.items() if trial_id in members},
        hours={trial_id: sum(hours.values()) for trial_id, hours in stages.items()},
        stage_hours=stages,
        space=domains,
    )


@pytest.fixture
def view_of(tmp_path: Path) -> MakeView:
    """Makes a view: see `make_view`."""
    return lambda **given: make_view(tmp_path, **given)
