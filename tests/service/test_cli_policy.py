"""The commands on policies, on the files that trials write, through the command line's own front door."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from service.cli import main
from service.records import SweepRecord, SweepStore
from trainables import api
from trainables.bops import CostModel
from trainables.choices import Choices, Scores
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

SWEEP = SweepRecord(name="s", spec_hash="h", facts={"network": "resnet8"}, total_trials=3, created_ms=1_000)
OLD = Path(__file__).parents[1] / "golden" / "policy-v1.json"
"""Written by the trial of a sweep when files had no work; its ties are not kept."""
WIDTHS = (2, 3, 4)
TIED = ("layer2.0.conv1", "layer2.0.downsample.0")


@pytest.fixture(scope="session")
def work() -> CostModel:
    return api.count("resnet8", image_size=16, num_classes=10)


def make_record(work: CostModel, **changed: LayerBits) -> PolicyRecord:
    """Stem and head pinned to 8/8, all else 2/3 but for what is `changed`, by layer with _ for a dot."""
    names = list(work.layers)
    ends = (names[0], names[-1])
    bits = {name: LayerBits(8, 8) if name in ends else LayerBits(2, 3) for name in names}
    bits |= {name: changed[name.replace(".", "_")] for name in names if name.replace(".", "_") in changed}
    policy = BitPolicy(network="resnet8", bits=bits, pinned=frozenset(ends))
    settings = {"zeta": 0.1, "quantizer": "pact"}
    return PolicyRecord.measured(policy, work, method="gmpq", settings=settings, image_size=16, num_classes=10)


def make_choices(work: CostModel) -> Choices:
    """Random probabilities of 2, 3 and 4 bits, the same at every call; wider ones are likelier."""
    random = Random(0)
    names = list(work.layers)

    def scores() -> Scores:
        logits = [random.gauss(width, 1.0) for width in WIDTHS]
        total = math.log(sum(math.exp(logit) for logit in logits))
        return Scores(WIDTHS, tuple(logit - total for logit in logits))

    searched = names[1:-1]
    groups = dict.fromkeys(work.layers[name].reads for name in searched)
    return Choices(
        network="resnet8",
        layers=tuple(names),
        weights={name: scores() for name in searched},
        acts={group: scores() for group in groups},
        group_of={name: work.layers[name].reads for name in searched},
        pinned={names[0]: 8, names[-1]: 8},
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: CostModel) -> Path:
    """The working directory: a.json, b.json, old.json, and a storage with a sweep whose trial 1 is done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITFRONT_STORAGE", "st")
    (tmp_path / "a.json").write_text(make_record(work).to_json())
    other = make_record(work, layer1_0_conv1=LayerBits(4, 3), layer3_0_conv2=LayerBits(2, 2))
    (tmp_path / "b.json").write_text(other.to_json())
    shutil.copy(OLD, tmp_path / "old.json")
    store = SweepStore.create(tmp_path / "st", SWEEP, spec_text="name: s\n")
    for number in range(2):
        store.plan_trial(f"t{number:04d}", number=number, settings={})
    store.save_policy("t0001", other)
    (store.trial_folder("t0001") / "choices.json").write_text(make_choices(work).to_json())
    return tmp_path


@pytest.fixture
def bitfront(folder: Path) -> Callable[..., Result]:
    def call(*arguments: str, status: int = 0) -> Result:
        found = CliRunner().invoke(main, ["policy", *arguments])
        assert found.exit_code == status, (found.output, found.exception)
        return found

    return call


def read(path: str) -> PolicyRecord:
    return PolicyRecord.load(Path(path))


def test_show_has_a_row_for_every_layer_and_the_costs_of_the_file(bitfront: Callable[..., Result]) -> None:
    text, record = bitfront("show", "a.json").output, read("a.json")
    assert record.policy.hash in text
    assert f"{record.costs['bops_g']:.4g} G BOPs" in text
    assert record.work is not None
    for number, (name, layer) in enumerate(record.work.layers.items(), start=1):
        bits = record.policy.bits[name]
        row = rf"^ *{number} +{re.escape(name)} +{layer.kind} +[\d.]+ +[\d.]+ +{bits.weight} +{bits.act} +[\d.]+"
        assert re.search(row, text, flags=re.MULTILINE), name


def test_the_heat_map_says_the_bits_without_colour(bitfront: Callable[..., Result]) -> None:
    lines = bitfront("show", "b.json").output.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("layer ", "weights ", "activatio"))}
    bits = read("b.json").policy.bits.values()
    assert rows["weights"] == [str(b.weight) for b in bits]
    assert rows["activations"] == [str(b.act) for b in bits]
    assert rows["layer"] == [str(n) for n in range(1, len(bits) + 1)]


def test_shares_of_bops_add_up_to_one_and_follow_from_the_bits(bitfront: Callable[..., Result]) -> None:
    content = json.loads(bitfront("show", "a.json", "--json").output)
    record = read("a.json")
    assert content["costs"] == record.costs
    assert sum(row["bops_share"] for row in content["layers"]) == pytest.approx(1)
    assert sum(row["bops_g"] for row in content["layers"]) == pytest.approx(record.costs["bops_g"])
    for row in content["layers"]:
        assert row["bops_g"] == pytest.approx(row["macs"] * row["weight_bits"] * row["act_bits"] / 1e9)


def test_show_draws_the_picture(bitfront: Callable[..., Result], folder: Path) -> None:
    bitfront("show", "a.json", "--png", "bits.png")
    assert (folder / "bits.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_of_version_1_is_shown_without_its_work(bitfront: Callable[..., Result]) -> None:
    text = bitfront("show", "old.json").output
    assert "153.3× less than full precision" in text
    assert "MACs" not in text
    assert json.loads(bitfront("show", "old.json", "--json").output)["image_size"] is None


@pytest.mark.parametrize("name", ["s/t0001", "s/1"])
def test_a_trial_is_named_by_its_sweep_and_its_id_or_number(bitfront: Callable[..., Result], name: str) -> None:
    found = json.loads(bitfront("show", name, "--json").output)
    assert found["hash"] == read("b.json").policy.hash


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.json", "none.json: no such file; give a policy file, or SWEEP/TRIAL such as quickstart/t0003."),
        ("nowhere/none.json", "nowhere/none.json: no such file"),
        ("t/t0001", "holds no sweep 't'"),
        ("s/t0009", "s has no trial 't0009'; did you mean 't0001'?; known: t0000, t0001"),
        ("s/../s", "no such file"),
        ("s/t0000", "s/t0000 is pending and has no policy: only a trial that is done has."),
        ("st", "st is a folder"),
        ("picture.png", "picture.png: not a text file"),
        ("text.json", "text.json:1:1: not JSON"),
    ],
)
def test_what_is_no_policy_is_one_message(
    bitfront: Callable[..., Result], folder: Path, name: str, message: str
) -> None:
    (folder / "picture.png").write_bytes(b"\x89PNG\xff")
    (folder / "text.json").write_text("oops")
    found = bitfront("show", name, status=2)
    assert message.replace("?;", ";").split(";")[0] in found.stderr
    assert found.stderr.startswith("bitfront: ")


def test_trials_with_a_policy_are_completed_and_else_files(folder: Path) -> None:
    complete = ShellComplete(main, {}, "bitfront", "_BITFRONT_COMPLETE")

    def found(*arguments: str) -> list[tuple[str, str]]:
        return [
            (item.value, item.type) for item in complete.get_completions(["policy", *arguments[:-1]], arguments[-1])
        ]

    assert found("show", "s") == [("s/t0001", "plain")]
    assert found("diff", "a.json", "s/t") == [("s/t0001", "plain")]
    assert found("show", "a") == [("a", "file")]
    assert found("cost", "--storage", "elsewhere", "s") == [("s", "file")]


def test_costs_at_another_size_are_those_of_the_network_counted_there(bitfront: Callable[..., Result]) -> None:
    content = json.loads(bitfront("cost", "a.json", "b.json", "--image-size", "32", "--json").output)
    larger = api.count("resnet8", image_size=32, num_classes=10)
    for name, found in zip(("a.json", "b.json"), content, strict=True):
        record = read(name)
        assert found["costs"].items() >= larger.of(record.policy).items()
        # All convolutions have 4 times the pixels; the head has one, whatever the image.
        head = larger.work["fc"].macs * 64 / 1e9
        assert found["costs"]["bops_g"] == pytest.approx(4 * (record.costs["bops_g"] - head) + head)
        assert found["costs"]["storage_mb"] == record.costs["storage_mb"]


def test_costs_for_more_classes_differ_by_the_head(bitfront: Callable[..., Result]) -> None:
    content = json.loads(bitfront("cost", "a.json", "--num-classes", "100", "--json").output)
    added = 90 * 64
    assert content[0]["costs"]["storage_mb"] == pytest.approx(read("a.json").costs["storage_mb"] + added * 8 / 8 / 1e6)


def test_costs_are_a_table_with_a_row_for_each_policy(bitfront: Callable[..., Result]) -> None:
    lines = bitfront("cost", "a.json", "s/1").output.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["a.json", "s/1"]
    assert f"{read('b.json').costs['bops_g']:.4g}" in lines[3].split()


def test_a_policy_of_another_network_is_refused_with_both_sides(bitfront: Callable[..., Result]) -> None:
    message = bitfront("cost", "a.json", "--network", "resnet20", status=2).stderr
    assert "layers the network does not have: none" in message
    assert "layers without bits: layer1.1.conv1" in message
    message = bitfront("cost", "a.json", "--network", "resnet18", "--image-size", "64", status=2).stderr
    assert "layers without bits: layer1.1.conv1, layer1.1.conv2" in message


def test_a_file_of_version_1_is_costed_once_it_is_told_on_what(bitfront: Callable[..., Result]) -> None:
    assert "count them with --image-size and --num-classes" in bitfront("cost", "old.json", status=2).stderr
    assert "give --num-classes" in bitfront("cost", "old.json", "--image-size", "16", status=2).stderr
    sizes = ("--image-size", "16", "--num-classes", "10")
    content = json.loads(bitfront("cost", "old.json", *sizes, "--json").output)
    for name, value in read("old.json").costs.items():
        assert content[0]["costs"][name] == pytest.approx(value, rel=1e-12), name


def test_the_difference_lists_the_layers_that_differ_and_both_costs(bitfront: Callable[..., Result]) -> None:
    text, ours, theirs = bitfront("diff", "a.json", "s/t0001").output, read("a.json"), read("b.json")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["layer1.0.conv1"] == ["2/3", "4/3"]
    assert rows["layer3.0.conv2"] == ["2/3", "2/2"]
    assert "layer1.0.conv2" not in rows
    change = theirs.costs["bops_g"] - ours.costs["bops_g"]
    ratio = theirs.costs["bops_g"] / ours.costs["bops_g"]
    assert rows["BOPs"][-2:] == [f"{change:+.4g}", f"{ratio:.3f}"]
    assert "8 of 10 layers have the same bits." in text
    assert "layer1.0.conv2" in bitfront("diff", "a.json", "b.json", "--all").output
    assert "No layer's bits differ." in bitfront("diff", "a.json", "a.json").output


def test_the_difference_of_two_networks_lists_the_layers_of_one_side(
    bitfront: Callable[..., Result], folder: Path
) -> None:
    larger = api.count("resnet20", image_size=16, num_classes=10)
    policy = BitPolicy(network="resnet20", bits=dict.fromkeys(larger.layers, LayerBits(2, 3)))
    record = PolicyRecord.measured(policy, larger, method="gmpq", settings={}, image_size=16, num_classes=10)
    (folder / "c.json").write_text(record.to_json())
    text = bitfront("diff", "a.json", "c.json").output
    assert "The networks differ: resnet8 and resnet20." in text
    assert re.search(r"^layer1\.1\.conv1 +– +2/3", text, flags=re.MULTILINE)
    content = json.loads(bitfront("diff", "a.json", "c.json", "--json").output)
    assert content["layers"]["layer1.1.conv1"] == [None, {"weight": 2, "act": 3}]


def test_bits_set_by_hand_are_costed_anew_under_a_new_hash(bitfront: Callable[..., Result], work: CostModel) -> None:
    text = bitfront("set", "a.json", "layer1.*=4/-", "layer1.0.conv2=-/2", "-o", "new.json").output
    before, after = read("a.json"), read("new.json")
    assert after.policy.bits == {
        **before.policy.bits,
        "layer1.0.conv1": LayerBits(4, 3),
        "layer1.0.conv2": LayerBits(4, 2),
    }
    assert after.costs.items() >= work.of(after.policy).items()
    assert after.policy.hash != before.policy.hash
    assert (after.parent, after.changes) == (before.policy.hash, ("layer1.*=4/-", "layer1.0.conv2=-/2"))
    assert (after.method, after.settings, after.policy.pinned) == ("gmpq", before.settings, before.policy.pinned)
    assert after.policy.hash[:10] in text
    assert "made from" in bitfront("show", "new.json").output
    bitfront("set", "new.json", "fc=4", "-o", "newer.json")
    assert read("newer.json").policy.bits["fc"] == LayerBits(4, 4)
    assert (read("newer.json").parent, len(read("newer.json").changes)) == (after.policy.hash, 3)


def test_layers_that_read_one_activation_keep_one_width_for_it(bitfront: Callable[..., Result]) -> None:
    conv, downsample = TIED
    text = bitfront("set", "a.json", f"{conv}=4/8", "-o", "new.json").output
    assert f"{downsample} reads the same activation as {conv}, which is 8 bits in both now." in text
    bits = read("new.json").policy.bits
    assert (bits[conv], bits[downsample]) == (LayerBits(4, 8), LayerBits(2, 8))
    text = bitfront("set", "a.json", f"{conv}=4/-", "-o", "weights.json").output
    assert "reads the same activation" not in text
    # Later patterns win, for partners too.
    bitfront("set", "a.json", f"{conv}=8", f"{downsample}=2/4", "-o", "last.json")
    bits = read("last.json").policy.bits
    assert (bits[conv], bits[downsample]) == (LayerBits(8, 4), LayerBits(2, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layer9.*=4"], "'layer9.*=4' matches no layer; layers are: conv1, layer1.0.conv1"),
        (["fc"], "'fc' sets no bits; give PATTERN=WEIGHT/ACT"),
        (["fc="], "'fc=' sets no bits"),
        (["=4"], "'=4' sets no bits"),
        (["fc=-/-"], "'fc=-/-' sets no bits"),
        (["fc=4/4/4"], "sets no bits"),
        (["fc=-4"], "sets no bits"),
        (["fc=0"], "'fc=0': 0 bits; give 1 to 16"),
        (["fc=4/17"], "'fc=4/17': 17 bits; give 1 to 16"),
        (["fc=4", "none=4"], "'none=4' matches no layer"),
    ],
)
def test_an_assignment_that_cannot_be_is_an_error_and_nothing_is_written(
    bitfront: Callable[..., Result], folder: Path, arguments: list[str], message: str
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert message in bitfront("set", "a.json", *arguments, "-o", "new.json", status=2).stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_nothing_is_overwritten_unless_it_is_asked_for(bitfront: Callable[..., Result], folder: Path) -> None:
    before = (folder / "b.json").read_text()
    assert (
        "b.json exists; give another file, or --force"
        in bitfront("set", "a.json", "fc=4", "-o", "b.json", status=2).stderr
    )
    assert (folder / "b.json").read_text() == before
    bitfront("set", "a.json", "fc=4", "-o", "b.json", "--force")
    assert read("b.json").parent == read("a.json").policy.hash
    trial = "st/s/trials/t0001/policy.json"
    assert "belongs to a trial" in bitfront("set", "a.json", "fc=4", "-o", trial, "--force", status=2).stderr
    assert "is a folder" in bitfront("set", "a.json", "fc=4", "-o", "st", "--force", status=2).stderr
    assert "no is not a folder" in bitfront("set", "a.json", "fc=4", "-o", "no/where.json", status=2).stderr
    # Before anything is computed, which would fail here.
    message = "no/x.json: no is not a folder that can be written to; make it, or give another."
    assert message in bitfront("solve", "s/1", "--bops-g", "1e-9", "-o", "no/x.json", status=2).stderr
    assert "a.json is not a folder" in bitfront("set", "a.json", "none=4", "-o", "a.json/x.json", status=2).stderr


def test_a_file_of_version_1_cannot_be_edited(bitfront: Callable[..., Result]) -> None:
    assert "version 1" in bitfront("set", "old.json", "fc=4", "-o", "new.json", status=2).stderr


def test_a_policy_that_is_as_it_says_is_fine(bitfront: Callable[..., Result]) -> None:
    assert bitfront("validate", "a.json").output == "a.json: fine, 10 layers of resnet8\n"
    assert "fine" in bitfront("validate", "s/1", "--network", "resnet8").output
    bops_g = str(read("a.json").costs["bops_g"])
    assert "within bops_g" in bitfront("validate", "a.json", "--bops-g", bops_g).output


@pytest.mark.parametrize(
    ("limit", "value", "better"),
    [
        ("bops_g", 0.99, "more"),
        ("storage_mb", 0.99, "more"),
        ("mean_act_bits", 0.99, "more"),
        ("compression", 1.01, "less"),
    ],
)
def test_a_limit_that_is_broken_is_found(
    bitfront: Callable[..., Result], limit: str, value: float, better: str
) -> None:
    limit_value = read("a.json").costs[limit] * value
    found = bitfront("validate", "a.json", f"--{limit.replace('_', '-')}", str(limit_value), status=1).output
    assert found.startswith(f"a.json: {limit} is {read('a.json').costs[limit]:.10g}, {better} than the limit")
    assert len(found.splitlines()) == 1


def test_what_was_tampered_with_is_found(bitfront: Callable[..., Result], folder: Path) -> None:
    content = json.loads((folder / "a.json").read_text())

    def found(change: Callable[[dict], object], *options: str) -> str:
        changed = json.loads(json.dumps(content))
        change(changed)
        (folder / "x.json").write_text(json.dumps(changed))
        return bitfront("validate", "x.json", *options, status=1).output

    assert "is not that of its bits" in found(lambda c: c["layers"]["fc"].update(weight=7))
    assert "is not that of its bits" in found(lambda c: c.update(hash="0" * 64))
    assert re.search(
        r"costs\.bops_g is 1 in the file, but the bits cost 0\.\d+", found(lambda c: c["costs"].update(bops_g=1))
    )
    less = found(lambda c: c["work"]["layers"]["fc"].update(macs=1), "--network", "resnet8")
    assert "fc: the file says macs 1, the network has 640." in less
    assert "is not that of its bits" in found(lambda c: c["layers"].pop("fc"))
    assert "layers the network does not have: fc" in found(lambda c: c["work"]["layers"].pop("fc"))


def test_untied_activations_are_found(bitfront: Callable[..., Result], folder: Path, work: CostModel) -> None:
    untied = make_record(work, layer2_0_conv1=LayerBits(2, 2))
    (folder / "x.json").write_text(untied.to_json())
    found = bitfront("validate", "x.json", status=1).output
    assert found == (
        "x.json: layers that read one activation give it different bits: "
        "layer2.0.conv1 2, layer2.0.downsample.0 3.\n"
    )  # fmt: skip
    sizes = ("--image-size", "16", "--num-classes", "10")
    assert "layer3.0.downsample.0 3" in bitfront("validate", "old.json", *sizes, status=1).output


def test_a_finished_search_is_solved_for_another_budget(bitfront: Callable[..., Result], work: CostModel) -> None:
    choices = make_choices(work)
    most, least = (work.bops_g(policy) for policy in (choices.best, choices.smallest))
    limit = (most + least) / 2
    text = bitfront("solve", "s/1", "--bops-g", str(limit), "-o", "new.json").output
    record = read("new.json")
    assert least <= record.costs["bops_g"] <= limit < most
    assert bitfront("validate", "new.json", "--bops-g", str(limit)).output.startswith("new.json: fine")
    assert record.parent == read("b.json").policy.hash
    assert record.changes == (f"solve bops_g={limit:.10g}",)
    lost = choices.score(choices.best) - choices.score(record.policy)
    assert lost > 0
    assert f"new.json: policy {record.policy.hash[:10]}, {lost:.4g} nats less probable" in text
    found = json.loads(bitfront("solve", "s/1", "--bops-g", str(2 * most), "--json").output)[0]
    assert (found["hash"], found["nats_lost"]) == (choices.best.hash, 0)


def test_several_limits_hold_at_once(bitfront: Callable[..., Result], work: CostModel) -> None:
    best = work.of(make_choices(work).best)
    limits = {"storage_mb": 0.8 * best["storage_mb"], "mean_act_bits": 0.9 * best["mean_act_bits"]}
    options = [text for name, limit in limits.items() for text in (f"--{name.replace('_', '-')}", str(limit))]
    costs = json.loads(bitfront("solve", "s/1", *options, "--json").output)[0]["costs"]
    assert all(costs[name] <= limit for name, limit in limits.items())


def test_the_trade_off_goes_from_the_smallest_widths_to_the_most_probable(
    bitfront: Callable[..., Result], work: CostModel
) -> None:
    choices = make_choices(work)
    found = json.loads(bitfront("solve", "s/1", "--points", "6", "--json").output)
    assert found[0]["hash"] == choices.smallest.hash
    assert (found[-1]["hash"], found[-1]["nats_lost"]) == (choices.best.hash, 0)
    bops = [one["costs"]["bops_g"] for one in found]
    lost = [one["nats_lost"] for one in found]
    assert (bops, lost) == (sorted(set(bops)), sorted(set(lost), reverse=True))
    lines = bitfront("solve", "s/1", "--points", "6").output.splitlines()
    assert [line.split()[-1] for line in lines[2:]] == [one["hash"][:10] for one in found]
    limit = (bops[0] + bops[-1]) / 2
    within = json.loads(bitfront("solve", "s/1", "--points", "4", "--bops-g", str(limit), "--json").output)
    assert bops[0] == within[0]["costs"]["bops_g"] < within[-1]["costs"]["bops_g"] <= limit


def test_what_cannot_be_solved_is_one_message(bitfront: Callable[..., Result], work: CostModel, folder: Path) -> None:
    least = work.bops_g(make_choices(work).smallest)
    found = bitfront("solve", "s/1", "--bops-g", str(least / 2), "-o", "new.json", status=2).stderr
    floor = re.search(r"it is still ([\d.]+); give at least ([\d.]+)\.$", found)
    assert floor
    assert found.startswith(f"bitfront: bops_g: the limit is {least / 2:.10g}, but with the smallest widths")
    assert not re.search("budget|method|network|pin", found)  # keys of a sweep, which is over
    assert least <= float(floor[1]) == float(floor[2]) <= 1.001 * least
    bitfront("solve", "s/1", "--bops-g", floor[1])
    found = bitfront("solve", "s/1", "--points", "3", "--compression", "1e6", status=2).stderr
    assert re.search(r"compression: the limit is 1000000, but .* it is still ([\d.]+); give at most \1\.$", found)
    assert "a.json is a policy file, which does not" in bitfront("solve", "a.json", "--bops-g", "1", status=2).stderr
    assert "Nothing to solve: give a limit" in bitfront("solve", "s/1", status=2).stderr
    assert "--points finds several" in bitfront("solve", "s/1", "--points", "3", "-o", "new.json", status=2).stderr
    assert "a.json exists" in bitfront("solve", "s/1", "--bops-g", "1", "-o", "a.json", status=2).stderr
    assert not (folder / "new.json").exists()


def test_a_trial_of_a_version_that_kept_no_choices_says_so(bitfront: Callable[..., Result], folder: Path) -> None:
    choices, policy = trial_file(folder).with_name("choices.json"), str(trial_file(folder))
    assert bitfront("solve", policy, "--points", "3").output == bitfront("solve", "s/1", "--points", "3").output
    choices.unlink()
    for name in ("s/1", "s/t0001", policy):
        found = bitfront("solve", name, "--bops-g", "1", status=2).stderr
        assert "it was finished by a version of Bitfront that did not keep what" in found
        assert "run the search again, as a sweep of another name" in found
    # Choices beside a file elsewhere are nobody's: which search they were of is not known.
    (folder / "choices.json").write_text("{}")
    assert "give SWEEP/TRIAL" in bitfront("solve", "b.json", "--bops-g", "1", status=2).stderr


def settled(choices: Choices, *, weights: tuple[int, ...]) -> Choices:
    """The same with these widths for weights, and 3 bits for all activations."""
    free = Scores(weights, tuple(-1.0 / width for width in weights))
    acts = {group: Scores((3,), (0.0,)) for group in choices.acts}
    return replace(choices, weights=dict.fromkeys(choices.weights, free), acts=acts)


@pytest.mark.parametrize("method", ["uniform", "random", "blackbox"])
def test_a_search_that_settled_on_one_policy_has_nothing_left_to_solve(
    bitfront: Callable[..., Result], folder: Path, work: CostModel, method: str
) -> None:
    choices = settled(make_choices(work), weights=(2,))
    own = PolicyRecord.measured(choices.best, work, method=method, settings={}, image_size=16, num_classes=10)
    trial_file(folder).write_text(own.to_json())
    trial_file(folder).with_name("choices.json").write_text(choices.to_json())
    for arguments in (("--bops-g", "1"), ("--points", "3")):
        found = bitfront("solve", "s/1", *arguments, status=2).stderr
        assert f"s/1: its search ({method}) left a single width everywhere" in found
        assert "run a trial with the budget that is wanted" in found


@pytest.mark.parametrize("method", ["mpqco", "hawq"])
@pytest.mark.parametrize("act_bits", [(3,), (3, 4)])
def test_activations_that_a_search_settled_on_are_named(
    bitfront: Callable[..., Result], folder: Path, work: CostModel, method: str, act_bits: tuple[int, ...]
) -> None:
    choices = settled(make_choices(work), weights=(2, 4))
    # A pinned layer fixes the activation that it shares, which no search settled on.
    conv, downsample = TIED
    choices = replace(
        choices,
        weights={name: scores for name, scores in choices.weights.items() if name != downsample},
        acts={**choices.acts, conv: Scores((6,), (0.0,))},
        group_of={name: group for name, group in choices.group_of.items() if name != downsample},
        pinned={**choices.pinned, downsample: 6},
    )
    own = PolicyRecord.measured(
        choices.best, work, method=method, settings={"act_bits": act_bits}, image_size=16, num_classes=10
    )
    trial_file(folder).write_text(own.to_json())
    trial_file(folder).with_name("choices.json").write_text(choices.to_json())
    told = "Activations stay at 3 bits, as the search chose for its own budget; a trial chooses anew."
    found = bitfront("solve", "s/1", "--bops-g", repr(0.9 * own.costs["bops_g"]), "--json")
    assert (told in found.stderr) == (len(act_bits) > 1)
    assert json.loads(found.stdout)[0]["costs"]["mean_act_bits"] == own.costs["mean_act_bits"]
    found = bitfront("solve", "s/1", "--bops-g", "1e-9", status=2)
    assert (told in found.stdout) == (len(act_bits) > 1)
    assert "with the smallest widths that the search left to choose from it is still" in found.stderr


def test_a_search_that_is_solved_for_its_own_bits_gives_its_own_policy(
    bitfront: Callable[..., Result], folder: Path, work: CostModel
) -> None:
    best = make_choices(work).best
    own = PolicyRecord.measured(best, work, method="gmpq", settings={}, image_size=16, num_classes=10)
    trial_file(folder).write_text(own.to_json())
    bitfront("solve", "s/1", "--bops-g", str(2 * own.costs["bops_g"]), "-o", "new.json")
    assert read("new.json") == own


def test_no_command_loads_what_it_does_not_need(folder: Path) -> None:
    for arguments in (["show", "a.json"], ["cost", "a.json"], ["diff", "a.json", "b.json"], ["validate", "a.json"],
                      ["set", "a.json", "fc=4", "-o", "new.json"], ["solve", "s/1", "--bops-g", "1"]):  # fmt: skip
        code = (
            "import sys\nfrom service.cli import main\nmain(['policy', *sys.argv[1:]], standalone_mode=False)\n"
            "assert not {'torch', 'ray', 'mlflow', 'optuna', 'matplotlib'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, timeout=60)


def test_a_picture_replaces_nothing_and_never_lies_with_a_trial(bitfront: Callable[..., Result], folder: Path) -> None:
    (folder / "link").symlink_to(trial_file(folder).parent)
    (folder / "link.png").symlink_to(trial_file(folder).with_name("linked.png"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for target, message in (
        (trial_file(folder), "give a name that ends in .png"),
        (trial_file(folder).with_name("new.png"), "belongs to a trial, whose files never change"),
        (folder / "link" / "new.png", "belongs to a trial, whose files never change"),
        (folder / "link.png", "belongs to a trial, whose files never change"),
        (folder / "missing" / "new.png", "is not a folder that can be written to"),
    ):
        assert message in bitfront("show", "s/t0001", "--png", str(target), "--force", status=2).stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "taken.png").write_bytes(b"mine")
    bitfront("show", "s/t0001", "--png", str(folder / "taken.png"), status=2)
    assert (folder / "taken.png").read_bytes() == b"mine"
    bitfront("show", "s/t0001", "--png", str(folder / "taken.png"), "--force")
    assert (folder / "taken.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("columns", [20, 40, 60, 200])
def test_a_narrow_terminal_folds_no_name_and_no_number(folder: Path, work: CostModel, columns: int) -> None:
    def shown(*arguments: str) -> list[str]:
        # rich takes FORCE_COLOR for a terminal.
        terminal = {"FORCE_COLOR": "1", "COLUMNS": str(columns)}
        found = CliRunner(env=terminal).invoke(main, ["policy", *arguments], color=True)
        assert found.exit_code == 0, found.output
        return [line.rstrip() for line in click.unstyle(found.output).splitlines()]

    record = read("a.json")
    cost = [f"{record.costs[name]:.4g}" for name in ("bops_g", "storage_mb", "storage_mib", "float_mb")]
    layers = list(work.layers)
    for arguments, words in (
        (("cost", "a.json", "b.json"), ["a.json", "b.json", *cost]),
        (("diff", "a.json", "b.json"), ["a.json", "b.json", *cost, "layer1.0.conv1", "layer3.0.conv2", "2/3"]),
        (("solve", "s/1", "--points", "2"), [make_choices(work).smallest.hash[:10], make_choices(work).best.hash[:10]]),
    ):
        lines = shown(*arguments)
        assert set(words) <= {word for line in lines for word in line.split()}, arguments
        assert max(map(len, lines)) <= columns, arguments
    text = "\n".join(shown("show", "a.json"))
    if columns == 40:
        for number, name in enumerate(layers, start=1):
            bits = record.policy.bits[name]
            assert re.search(rf"^ *{number} +{re.escape(name)} +{bits.weight} +{bits.act} +[\d.]+$", text, re.MULTILINE)
    assert {*layers, *map(str, range(1, len(layers) + 1))} <= set(text.split()) or columns == 20
    assert ("MACs M" in text) == (columns == 200)


def trial_file(folder: Path) -> Path:
    return next(folder.rglob("trials/t0001/policy.json"))


@pytest.mark.parametrize("limit", ["0", "-1", "inf", "nan"])
@pytest.mark.parametrize("command", ["validate", "solve"])
def test_a_limit_is_a_positive_number(bitfront: Callable[..., Result], command: str, limit: str) -> None:
    assert "give a positive, finite number" in bitfront(command, "s/t0001", f"--bops-g={limit}", status=2).stderr


def test_costs_that_are_missing_are_found(bitfront: Callable[..., Result], folder: Path) -> None:
    content = json.loads((folder / "a.json").read_text())
    cost = read("a.json").costs["bops_g"]
    del content["costs"]["bops_g"]
    (folder / "p.json").write_text(json.dumps(content))
    found = bitfront("validate", "p.json", status=1).output
    assert found == f"p.json: costs.bops_g is missing in the file; the bits cost {cost:.10g}.\n"
    (folder / "p.json").write_text(json.dumps(content | {"costs": {}}))
    assert len(bitfront("validate", "p.json", status=1).output.splitlines()) == len(read("a.json").costs)
    # Files of version 1 had fewer costs.
    sizes = ("--image-size", "16", "--num-classes", "10")
    assert "missing" not in bitfront("validate", "old.json", *sizes, status=1).output


def test_what_has_no_costs_is_shown_and_drawn(bitfront: Callable[..., Result], folder: Path) -> None:
    content = json.loads((folder / "a.json").read_text())
    for costs in ({}, {"bops_g": 1.0}, {"mean_weight_bits": 2.0}):
        (folder / "p.json").write_text(json.dumps(content | {"costs": costs}))
        text = bitfront("show", "p.json", "--png", "p.png", "--force").output
        assert ("1 G BOPs" in text) == ("bops_g" in costs)
        assert ("on average 2.00 bits a weight" in text) == ("mean_weight_bits" in costs)


def test_bits_that_a_policy_has_already_are_not_written(bitfront: Callable[..., Result], folder: Path) -> None:
    policy = PolicyRecord.load(trial_file(folder)).policy
    name, bits = next(iter(policy.bits.items()))
    ended = bitfront("set", "s/t0001", f"{name}={bits.weight}/{bits.act}", "-o", str(folder / "same.json"))
    assert "has these bits already; nothing was written" in ended.output
    assert not (folder / "same.json").exists()
