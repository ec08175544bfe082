"""Finetune templates: what is read, what is refused and where, and what makes two recipes the same."""

from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from service.schema import template_schema
from service.template import load_template
from trainables.config import BenchConfig
from trainables.detector_config import DetectorConfig
from trainables.errors import SpecError
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted(p for p in (ROOT / "sweeps" / "finetune").glob("*.yaml") if not p.name.startswith("recipe-"))
PLAIN = """\
name: fine
data: {name: digits, image_size: 16}
reference: {epochs: 1}
finetune: {epochs: 2, quantizer: lsq}
"""
BOXES = """\
name: boxes
task: detection
detector: {name: ssd300_vgg16}
data: {format: coco, root: /data/coco, train: [instances_train2017], validation: [instances_val2017]}
finetune: {epochs: 2, quantizer: lsq}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "t.yaml"
    path.write_text(text)
    return path


def policy() -> PolicyRecord:
    bits = BitPolicy(network="resnet8", bits={"a": LayerBits(2, 3)})
    return PolicyRecord(policy=bits, method="gmpq", settings={}, costs={}, work=None)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_shipped_template_loads(path: Path) -> None:
    assert load_template(path).name == path.stem


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_shipped_template_is_right_by_the_schema(path: Path) -> None:
    Draft202012Validator(template_schema()).validate(yaml.safe_load(path.read_text().replace("1e-", "1.0e-")))


def test_the_schema_knows_which_task_has_which_keys() -> None:
    check = Draft202012Validator(template_schema())
    Draft202012Validator.check_schema(template_schema())
    assert check.is_valid(yaml.safe_load(PLAIN))
    assert check.is_valid(yaml.safe_load(BOXES))
    assert not check.is_valid(yaml.safe_load(PLAIN + "detector: {name: ssd300_vgg16}\n"))
    assert not check.is_valid(yaml.safe_load(BOXES + "reference: {epochs: 1}\n"))
    assert not check.is_valid(yaml.safe_load(PLAIN + "method: {name: gmpq}\n"))
    assert not check.is_valid(yaml.safe_load(PLAIN.replace("lsq", "lqs")))


def test_a_template_names_its_quantiser(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"finetune.quantizer: a template names one, .* expected one of pact, hwgq"):
        load_template(written(tmp_path, PLAIN), ["finetune.quantizer=searched"])
    with pytest.raises(SpecError, match=r"t.yaml:4:1: finetune.quantizer: a template names one"):
        load_template(written(tmp_path, PLAIN.replace(", quantizer: lsq", "")))


def test_a_task_has_its_own_settings_and_objectives(tmp_path: Path) -> None:
    plain, boxes = load_template(written(tmp_path, PLAIN)), load_template(written(tmp_path, BOXES))
    assert isinstance(plain.config(policy()), BenchConfig)
    assert isinstance(boxes.config(policy()), DetectorConfig)
    assert plain.objectives == ("top1", "bops_g", "ard")
    assert boxes.objectives == ("ap", "bops_g")
    voc = load_template(written(tmp_path, BOXES), ["data.format=voc"])
    assert voc.objectives == ("map", "bops_g")


def test_a_recipe_is_what_results_depend_on(tmp_path: Path) -> None:
    first = load_template(written(tmp_path, PLAIN))
    same = ("name=other", "description=x", "resources.concurrency=2", "limits.retries=1", "data.loader_workers=2",
            "finetune.checkpoint_every=7", "finetune.momentum=0.9")  # fmt: skip
    others = ("seed=1", "finetune.lr=0.1", "data.image_size=32", "reference.epochs=2", "resources.workers=2",
              "finetune.quantizer=daq", "evaluation.top_k=9")  # fmt: skip
    assert {load_template(written(tmp_path, PLAIN), [one]).recipe_hash for one in same} == {first.recipe_hash}
    assert len({load_template(written(tmp_path, PLAIN), [one]).recipe_hash for one in others}) == len(others)
    assert first.recipe_hash not in {load_template(written(tmp_path, PLAIN), [one]).recipe_hash for one in others}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (PLAIN + "method: {name: gmpq}\n", r"5:1: 'method' belongs to a sweep; a finetune template says"),
        (
            PLAIN + "detector: {name: ssd300_vgg16}\n",
            r"5:1: 'detector' is for task: detection, and this is task:",
        ),
        (BOXES + "reference: {epochs: 1}\n", r"6:1: 'reference' is for task: classification, and this is task: detec"),
        (PLAIN.replace("digits", "digit"), r"2:14: data.name: unknown data set 'digit'; did you mean 'digits'"),
        (BOXES.replace("vgg16", "vgg19"), r"3:18: detector.name: unknown detector 'ssd300_vgg19'; did you mean"),
        (BOXES.replace("coco,", "cooc,"), r"4:16: data.format: found 'cooc'; expected one of 'voc', 'coco'"),
        (BOXES.replace(", validation: [instances_val2017]", ""), r"4:1: data.validation: missing"),
        (PLAIN.replace("epochs: 1", "epochs: 0"), r"3:21: reference.epochs is 0, which leaves fresh weights untrained"),
        (PLAIN + "task: detect\n", r"5:7: task: found 'detect'; expected one of 'classification', 'detection'"),
        (PLAIN + "register: {alias: a b}\n", r"5:19: register.alias is 'a b'; use letters, digits"),
        (PLAIN + "resources: {min_workers: 2}\n", r"5:26: resources.min_workers is 2; give 0 to resources.workers, 1"),
        (PLAIN.replace("epochs: 2", "epochs: 2, amp: fp16"), r"4:28: finetune.amp is 'fp16', which needs a GPU"),
        (PLAIN + "tags: {mlflow.user: me}\n", r"5:7: tags: the name 'mlflow.user' begins with"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        load_template(written(tmp_path, text))
