"""The full-precision reference: trained once per (network, data, recipe), kept in a folder, shared by all trials."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.attribution import Attribution
from trainables.bops import CostModel
from trainables.checkpoint import Checkpoint
from trainables.config import BenchConfig, ReferenceConfig
from trainables.counting import measure
from trainables.data import load_data
from trainables.data.splits import Batch, DataSplits, ImageSet, loader
from trainables.distributed import Workers, make_repeatable
from trainables.errors import ConfigError, StorageError
from trainables.evaluation import top1
from trainables.folders import published
from trainables.models import build_network
from trainables.patience import patiently
from trainables.pretrained import Begun, begin_with, digest_of
from trainables.report import RECORD_FILE, EpochReport, ReferenceRecord, Report
from trainables.stepping import Batches, TrainingPlan
from trainables.supernet import Roles, assign_roles
from trainables.tensor_files import DamagedError, read_tensors, save_tensors
from trainables.training import cosine, train

PROBE_IMAGES = 8
CALIBRATION_IMAGES = 256


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that search and finetune stand on: data, reference network, its costs and the roles of its layers."""

    config: BenchConfig
    workers: Workers
    data: DataSplits
    reference: nn.Module
    """In eval mode, frozen."""
    record: ReferenceRecord
    costs: CostModel
    roles: Roles
    probe: Tensor
    """A few validation images [8, 3, S, S] on the device."""
    checkpoint: Checkpoint
    """Where search and finetune go on from."""
    store: Path | None = None
    """Folder of the references; None where the reference is in none."""

    def training_batches(self, epoch: int, batch_size: int) -> Batches[Batch]:
        """This worker's share of an epoch's training batches."""
        return _training_batches(self.config, self.data, self.workers, epoch=epoch, batch_size=batch_size)

    def calibration_images(self, batch_size: int) -> Tensor:
        """Of the first training batch on the device, at most CALIBRATION_IMAGES: the same for any number of workers."""
        parts = math.ceil(batch_size / CALIBRATION_IMAGES)
        alone = replace(self.workers, rank=0, size=parts)
        first = next(iter(_training_batches(self.config, self.data, alone, epoch=0, batch_size=batch_size)))
        return first.images.to(self.workers.device)

    def validation_batches(self) -> Batches[Batch]:
        """This worker's share of the validation images."""
        return validation_batches(self.config, self.data, self.workers)


def fresh_network(config: BenchConfig, data: DataSplits) -> nn.Module:
    """The network with fresh weights, on the CPU."""
    return build_network(config.network.name, num_classes=data.num_classes, image_size=config.data.image_size)


def starting_network(config: BenchConfig, data: DataSplits) -> tuple[nn.Module, Begun]:
    """The network with the weights that its reference starts from, on the CPU.

    Raises ConfigError where these are taken as they are and have a head for another number of classes.
    """
    net, weights = fresh_network(config, data), config.reference.weights
    if not weights:
        return net, Begun("", ())
    begun = begin_with(net, weights, network=config.network.name, image_size=config.data.image_size)
    if begun.fresh and not config.reference.epochs:
        raise ConfigError(
            f"reference.epochs is 0, but the head in reference.weights ({begun.fresh[0]}) is not for the "
            f"{data.num_classes} classes of {data.name}; give epochs to train a fresh one, or weights for them."
        )
    return net, begun


def ensure_reference(config: BenchConfig, report: Report, *, store: Path) -> ReferenceRecord:
    """The reference's record; trains it where `store`/<key> does not hold it yet. Checks the network in any case.

    The folder appears whole or not at all; of two that train at once the first to finish is kept.
    """
    workers = Workers.current()
    data = load_data(config.data)
    store.mkdir(parents=True, exist_ok=True)
    _check_network(config, data, workers)
    # Two that train the same reference write the same bits, each file whole.
    checkpoint = Checkpoint(store / f".{config.reference_key}.checkpoint.pt", workers)
    known = ReferenceRecord.find(store, config.reference_key)
    if known is not None:
        _check_unchanged(config, known, store)
        checkpoint.remove()
        return known
    make_repeatable(config.reference.seed)
    checkpoint.watch("reference")
    net, begun, score = train_reference(config, data, workers, report, checkpoint)
    checkpoint.stop()
    record = ReferenceRecord(
        key=config.reference_key,
        top1=score,
        device_hours=checkpoint.hours("reference"),
        data_fingerprint=data.fingerprint,
        weights=begun.digest,
        fresh=begun.fresh,
    )
    if workers.rank == 0:
        with published(store / record.key) as folder:
            save_tensors(net.state_dict(), folder / "model.pt")
            (folder / RECORD_FILE).write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n")
    checkpoint.remove()
    return record


def _check_unchanged(config: BenchConfig, known: ReferenceRecord, store: Path) -> None:
    """Raises StorageError where the file of weights is another one now; one that has gone is not needed any more."""
    weights = config.reference.weights
    path = Path(weights).expanduser()
    if weights in ("", "torchvision") or not path.is_file() or digest_of(path) == known.weights:
        return
    raise StorageError(
        f"reference.weights: {path} has changed since {store / known.key} began with it; put the old file back, give "
        "the new one another name, or remove that folder to train anew."
    )


def _check_network(config: BenchConfig, data: DataSplits, workers: Workers) -> None:
    """Raises before hours of training what would otherwise be raised after: uncounted work, patterns, tiny maps."""
    net = fresh_network(config, data).to(workers.device)
    probe = _probe(data, workers)
    assign_roles(measure(net, probe), config.network)
    Attribution(net, probe)


def _probe(data: DataSplits, workers: Workers) -> Tensor:
    batch = next(iter(loader(data.validation, batch_size=PROBE_IMAGES, shuffle=False, seed=0, epoch=0)))
    return batch.images.to(workers.device)


def train_reference(
    config: BenchConfig, data: DataSplits, workers: Workers, report: Report, checkpoint: Checkpoint
) -> tuple[nn.Module, Begun, float]:
    """The network after its recipe, what it began with, its validation top-1 (percent); goes on from `checkpoint`."""
    recipe = config.reference
    net, begun = starting_network(config, data)
    net.to(workers.device)
    model = workers.wrap(net)
    plan = TrainingPlan(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        batches=lambda epoch: _training_batches(
            config, data, workers, epoch=epoch, batch_size=recipe.batch_size, seed=recipe.seed
        ),
        optimizers=[_sgd(net, recipe)],
        lr_factor=cosine(recipe.epochs),
    )
    scores: list[float] = []

    def step_terms(batch: Batch) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(model(batch.images), batch.labels)}

    def on_epoch(epoch: int, means: dict[str, float]) -> None:
        scores.append(top1(net, validation_batches(config, data, workers), workers))
        metrics = {**means, "top1": scores[-1]}
        report(EpochReport(stage="reference", epoch=epoch, epochs=recipe.epochs, metrics=metrics))

    kept = checkpoint.begin("reference", net)
    train(model, plan, step_terms, workers=workers, on_epoch=on_epoch, checkpoint=kept)
    return net, begun, scores[-1] if scores else top1(net, validation_batches(config, data, workers), workers)


def _sgd(net: nn.Module, recipe: ReferenceConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        net.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )


def _training_batches(
    config: BenchConfig, data: DataSplits, workers: Workers, *, epoch: int, batch_size: int, seed: int | None = None
) -> Batches[Batch]:
    seed = config.seed if seed is None else seed
    return shares(data.train, config, workers, batch_size=batch_size, shuffle=True, seed=seed, epoch=epoch)


def validation_batches(config: BenchConfig, data: DataSplits, workers: Workers) -> Batches[Batch]:
    """This worker's share of the validation images, in order."""
    return shares(data.validation, config, workers, batch_size=config.evaluation.batch_size)


def shares(
    images: ImageSet,
    config: BenchConfig,
    workers: Workers,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
) -> Batches[Batch]:
    """This worker's share of each batch of some images; in their order, unless they are shuffled."""
    return loader(
        images,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        rank=workers.rank,
        world_size=workers.size,
        workers=config.data.loader_workers,
        device=workers.device,
    )


def load_bench(config: BenchConfig, *, store: Path, checkpoint: Path | None = None) -> Bench:
    """Loads data and reference and counts the network. Raises StorageError where the reference was not trained."""
    workers = Workers.current()
    folder = store / config.reference_key
    record = ReferenceRecord.find(store, config.reference_key)
    if record is None:
        raise StorageError(f"{folder}: no trained reference there; `ensure_reference` makes it.")
    data = load_data(config.data)
    net = fresh_network(config, data)
    try:
        net.load_state_dict(patiently(lambda: read_tensors(folder / "model.pt"), folder))
    except DamagedError as error:
        raise StorageError(f"{error} Remove {folder}, and it is trained anew.") from None
    except RuntimeError:
        raise StorageError(
            f"{folder}: the weights there do not fit {config.network.name}, which has changed since they were trained; "
            "give the changed network another name, or remove the folder."
        ) from None
    bench = make_bench(config, data, net, record, Checkpoint(checkpoint, workers), workers=workers)
    return replace(bench, store=store)


def untrained_bench(config: BenchConfig, data: DataSplits, workers: Workers) -> Bench:
    """A bench whose reference is as it would start."""
    net, _ = starting_network(config, data)
    record = ReferenceRecord(key=config.reference_key, top1=0.0, device_hours=0.0, data_fingerprint="")
    return make_bench(config, data, net, record, Checkpoint(None, workers), workers=workers)


def make_bench(
    config: BenchConfig,
    data: DataSplits,
    net: nn.Module,
    record: ReferenceRecord,
    checkpoint: Checkpoint,
    *,
    workers: Workers,
) -> Bench:
    """The bench of a reference `net`, which is moved to the device and frozen in place, and counted."""
    net.to(workers.device).eval().requires_grad_(False)
    probe = _probe(data, workers)
    costs = measure(net, probe)
    return Bench(config, workers, data, net, record, costs, assign_roles(costs, config.network), probe, checkpoint)
