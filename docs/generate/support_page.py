"""The support matrix: what the registries have, and what was really run of it, each with the evidence.

A name that a registry has and this page does not is an error, and so is evidence that is not there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args, get_type_hints

from markdown import code, page, table, text

from service.method_table import LABELS
from service.pareto import METRICS
from service.settings import ResourcesConfig, SamplerConfig
from trainables.config import BudgetConfig
from trainables.data.places import DATA_SET_NAMES, WITHOUT_DOWNLOAD
from trainables.detector_config import DETECTOR_BACKBONES
from trainables.finetune_config import DeployedQuantizer
from trainables.method_config import METHOD_CONFIGS, WITHOUT_ONE_BIT, SupernetConfig
from trainables.models import NETWORK_NAMES

ROOT = Path(__file__).parents[2]
NETWORKS = {
    "resnet8": ("whole sweeps, promotions and exports, on digits and Fashion-MNIST", "sweeps/compare/README.md"),
    "resnet20": ("steps of search and of finetune; no whole sweep", "benchmarks/README.md"),
    "resnet18": (
        "steps of search and finetune at 64 and 224 pixels, exact MACs; no whole sweep",
        "benchmarks/README.md",
    ),
    "resnet50": ("a step of search and of finetune, exact MACs; no whole sweep", "tests/models/test_models.py"),
    "resnet50_v1": ("a step of search and of finetune, exact MACs; no whole sweep", "tests/models/test_models.py"),
    "mobilenet_v2": ("short finetunes, exports, exact MACs; no whole sweep", "docs/export.md"),
    "vgg16": ("a step of search and of finetune, exports, a short finetune in SSD; no whole sweep", "docs/export.md"),
    "deit_tiny": ("a step of search and of finetune, exact MACs; no whole sweep", "tests/models/test_models.py"),
    "deit_small": ("a step of search and of finetune, exact MACs; no whole sweep", "tests/models/test_models.py"),
    "deit_tiny_patch4": ("short finetunes and exports on digits; no whole sweep", "docs/export.md"),
    "deit_small_patch4": ("a step of search and of finetune; no whole sweep", "tests/models/test_models.py"),
}
GENERATED = "on small trees that tests write in its format; never on the real one"
DATA_SETS = {
    "digits": ("the real one, in whole sweeps", "sweeps/compare/README.md"),
    "fashion-mnist": ("the real one, in whole sweeps and promotions", "sweeps/compare/README.md"),
    "cifar10": (GENERATED, "tests/data/test_cifar.py"),
    "cifar100": (GENERATED, "tests/data/test_cifar.py"),
    "stanford-cars": (GENERATED, "tests/data/test_fine_grained.py"),
    "flowers102": (GENERATED, "tests/data/test_fine_grained.py"),
    "fgvc-aircraft": (GENERATED, "tests/data/test_fine_grained.py"),
    "oxford-pets": (GENERATED, "tests/data/test_fine_grained.py"),
    "food101": (GENERATED, "tests/data/test_fine_grained.py"),
    "imagenet": (GENERATED, "tests/data/test_imagenet.py"),
    "imagefolder": ("on trees that tests write, in whole trials", "tests/data/test_image_folders.py"),
    "shards": (GENERATED, "tests/data/test_shards.py"),
    "voc": (GENERATED, "tests/detection/test_data_sets.py"),
    "coco": (GENERATED, "tests/detection/test_data_sets.py"),
}
QUANTIZERS = {
    "pact": ("GMPQ, R-GMPQ", "yes", "yes", "tests/quantizers/test_pact.py"),
    "hwgq": ("EdMIPS", "yes", "refused: its levels lie half a step beside zero", "tests/quantizers/test_hwgq.py"),
    "lsq": ("LIMPQ, promotions", "yes", "yes", "tests/quantizers/test_lsq.py"),
    "daq": (
        "none by default",
        "yes",
        "refused: its levels lie half a step beside zero",
        "tests/quantizers/test_daq.py",
    ),
}
DETECTORS = {
    "fasterrcnn_resnet18": ("learns to find digits in scenes made of them", "tests/detection/test_finetune_long.py"),
    "ssd300_vgg16": ("a short finetune on scenes of digits", "tests/detection/test_finetune_long.py"),
}
DEVICES = (
    ("CPU, x86-64", "all that this page calls run", "README.md"),
    ("NVIDIA GPU", "never run: kernels were interpreted on the CPU and compiled for compute capability 7.0 to 9.0; "
     "placement, `gpus_per_worker` and `fp16` are written for it", "tests/quantizers/test_gpu_passes.py"),
    ("several GPUs, NCCL", "never run; several workers on one host with gloo and shared memory are",
     "tests/orchestrate/test_long.py"),
    ("several hosts", "a Ray head and two workers in network namespaces of one machine, MLflow on PostgreSQL; never "
     "on hosts of their own", "docs/clusters.md"),
    ("containers, Kubernetes", "files are checked by their schemas; none was started", "docs/clusters.md"),
)  # fmt: skip
STORAGES = (
    ("a local folder", "everything here", "docs/storage.md"),
    (
        "a folder that machines share",
        "with a second host's name and clock on one machine; no NFS client's caches",
        "docs/storage.md",
    ),
    (
        "objects, `s3://`",
        "against moto's server, through a proxy that fails; never Amazon's, MinIO's or Ceph's",
        "docs/storage.md",
    ),
)
LAUNCHES = {
    "process": (
        "one worker in the trial's own process: most sweeps of this repository",
        "tests/orchestrate/test_sweep.py",
    ),
    "train": ("several workers under Ray Train, on one host", "tests/orchestrate/test_long.py"),
    "auto": ("one of these", "tests/orchestrate/test_sweep.py"),
}
SAMPLERS = {
    "tpe": "quickstart and tests", "nsga2": "tests", "gp": "tests", "random": "tests", "quasi-random": "tests",
    "grid": "comparisons, the paper's sweeps, nightly reproductions",
}  # fmt: skip
TESTED = ("torch", "torchvision", "ray", "mlflow", "optuna", "numpy", "numba", "timm", "onnx", "onnxruntime")


def support_page() -> str:
    """docs/support.md."""
    return page(
        "# Support matrix",
        "What there is, and what was really run of it. The rows follow from the registries (`make reference`); a name "
        "without a row here fails a test.\nWhat was run is told by people, with the place where it can be seen. "
        "*A step* is one step of training as a supernet and one as a deployed network.",
        "## Methods", _methods(),
        "The same sweep takes any of them, and all end in the same finetune, records, promotion and exports. All were "
        "run in whole sweeps with three seeds, with ResNet8 on digits and Fashion-MNIST: "
        f"{_link('sweeps/compare/README.md')}.",
        "## Networks", _evidence("network", NETWORK_NAMES, NETWORKS),
        f"And functions of your own ({_link('docs/extending.md')}). Published ImageNet weights are read where "
        "torchvision has them; their download was never run.",
        "## Detectors", _evidence("detector", DETECTOR_BACKBONES, DETECTORS),
        "## Data sets", _data_sets(),
        "And functions of your own.",
        "## Quantisers", _quantizers(),
        "## Budgets and metrics", _budgets(),
        "## Devices", table(("device", "run", "see"), [(where, what, _link(see)) for where, what, see in DEVICES]),
        "## Launch", _evidence("`resources.launch`", _words(ResourcesConfig, "launch"), LAUNCHES),
        "## Samplers", table(("sampler", "run in"), [(code(n), SAMPLERS[n]) for n in _words(SamplerConfig, "name")]),
        "## Where things are kept",
        table(("storage", "run", "see"), [(where, what, _link(see)) for where, what, see in STORAGES]),
        "## Versions", _versions(),
    )  # fmt: skip


def _words(kind: type, name: str) -> tuple[str, ...]:
    """The words that a setting may be."""
    return get_args(get_type_hints(kind)[name])


def _link(path: str) -> str:
    """To a file of the repository, from docs/."""
    if not (ROOT / path).exists():
        raise SystemExit(f"docs/generate/support_page.py: {path} is not there; name where it can be seen.")
    name = path.removesuffix("/README.md") if path != "README.md" else path
    return f"[{name}]({path.removeprefix('docs/') if path.startswith('docs/') else f'../{path}'})"


def _evidence(head: str, names: Iterable[str], told: dict[str, tuple[str, str]]) -> str:
    rows = [(code(name), text(told[name][0]), _link(told[name][1])) for name in sorted(names)]
    return table((head, "run", "see"), rows)


def _methods() -> str:
    rows = []
    for name, kind in METHOD_CONFIGS.items():
        search = "a supernet, " if issubclass(kind, SupernetConfig) else ""
        search += f"reports {kind.epochs_setting}" if kind.epochs_setting else "reports nothing on its way"
        needs = {None: "optional", (): "needed"}.get(kind.needs, "needed: bit operations")
        default = next(field.default for field in dataclasses.fields(kind) if field.name == "quantizer")
        rows.append((code(name), LABELS[name], search, needs, code(str(default))))
    return table(("method", "is", "search", "budget", "quantiser by default"), rows)


def _data_sets() -> str:
    names = [*sorted(DATA_SET_NAMES), "voc", "coco"]
    rows = []
    for name in names:
        told, see = DATA_SETS[name]
        fetch = (
            "no"
            if name in WITHOUT_DOWNLOAD or name in ("voc", "coco")
            else "by torchvision; never from its authors' server"
        )
        rows.append((code(name), text(told), fetch, _link(see)))
    return table(("data set", "run", "download", "see"), rows)


def _quantizers() -> str:
    rows = []
    for name in get_args(DeployedQuantizer):
        by, onnx, aimet, see = QUANTIZERS[name]
        rows.append((code(name), by, "no" if name in WITHOUT_ONE_BIT else "yes", onnx, aimet, _link(see)))
    return table(("quantiser", "default of", "1-bit weights", "ONNX", "AIMET encodings", "see"), rows)


def _budgets() -> str:
    limits = ", ".join(code(field.name) for field in dataclasses.fields(BudgetConfig))
    metrics = ", ".join(code(name) for name in METRICS)
    return (
        f"Limits of a budget: {limits}; each alone and any of them together, kept exactly.\n\nMetrics: {metrics}.\n\n"
        "ONNX files were run with onnxruntime; AIMET encodings were never read by AIMET; tables are CSV."
    )


def _versions() -> str:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    needed = (ROOT / "pyproject.toml").read_text()
    rows = []
    for name in TESTED:
        lowest = re.search(rf'"{name}(?:\[[\w,]+\])?>=([\d.]+)"', needed)
        rows.append((name, lowest[1] if lowest else "", pins[name]))
    python = re.search(r'requires-python = ">=([\d.]+)"', needed)
    assert python
    return table(("package", "from", "tested with"), [("Python", python[1], "3.11"), *rows])
