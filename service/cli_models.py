"""The commands on finetuned networks: exports for other programs, and measuring one again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from service.arguments import RUN_ERROR, force_option, json_option, storage_option

if TYPE_CHECKING:
    from trainables.export.api import AimetReport, OnnxReport

model_argument = click.argument("name", metavar="MODEL")
data_option = click.option(
    "--data", "data_root", type=click.Path(file_okay=False), help="Folder of the data set, where it is elsewhere now."
)


@click.command()
@model_argument
@click.option("--format", "kind", required=True, type=click.Choice(["onnx", "aimet", "csv"]), help="What to write.")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The file to write.")
@storage_option
@click.option("--opset", default=21, show_default=True, help="ONNX: its operator set; 25 has integers of 2 bits.")
@click.option(
    "--normalised/--pixels",
    "normalised",
    default=True,
    help="ONNX: what the graph takes: images that are normalised already, or pixels of 0 to 1.  [default: normalised]",
)
@click.option(
    "--images",
    default=256,
    show_default=True,
    type=click.IntRange(min=0),
    help="ONNX: images on which onnxruntime and PyTorch are compared; 0: none.",
)
@click.option("--backbone", is_flag=True, help="Of a detector, whose backbone alone is exported.")
@data_option
@force_option
@json_option
def export(
    name: str,
    kind: Literal["onnx", "aimet", "csv"],
    output: Path,
    storage: Path,
    opset: int,
    normalised: bool,
    images: int,
    backbone: bool,
    data_root: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a finetuned network for other programs: ONNX, AIMET encodings, or a table of its layers.

    A MODEL is the folder of a finetuned network, PROMOTION/TRIAL in the storage, where TRIAL may be the first digits of
    the policy's hash, or one that was registered: models:/NAME/VERSION or models:/NAME@ALIAS. Of a POLICY the table
    can be written, too.

    An ONNX file is compared with PyTorch on the data set's validation images before it is written.
    """
    from service import export_report
    from service.exporting import network_at, network_or_policy
    from service.files import write_text
    from service.policies import check_output
    from trainables.export import api

    check_output(output, force=force, example=f"network.{kind}")
    if kind == "csv":
        with network_or_policy(name, storage) as found:
            write_text(output, api.table(found))
        click.echo(json.dumps({"file": str(output)}) if as_json else f"{output}: a row for each layer")
        return
    if kind == "aimet":
        if output.suffix == ".onnx":
            raise click.UsageError("-o names the encodings, such as network.encodings; the graph goes beside it.")
        check_output(output.with_suffix(".onnx"), force=force)
        with network_at(name, storage) as folder:
            encodings = api.export_aimet(folder, output, backbone=backbone)
        _tell(output, encodings, export_report.of_aimet(output, encodings), as_json=as_json)
        return
    takes: Literal["normalised", "pixels"] = "normalised" if normalised else "pixels"
    with network_at(name, storage) as folder:
        graph = api.export_onnx(
            folder, output, opset=opset, takes=takes, images=images, data_root=data_root, backbone=backbone
        )
    _tell(output, graph, export_report.of_onnx(output, graph), as_json=as_json)


def _tell(output: Path, report: OnnxReport | AimetReport, lines: list[str], *, as_json: bool) -> None:
    if as_json:
        lines = [json.dumps({"file": str(output), **dataclasses.asdict(report)}, indent=2)]
    for line in lines:
        click.echo(line)


@click.command()
@model_argument
@storage_option
@data_option
@click.option("--within", default=0.0, show_default=True, help="Differences up to so many percentage points are none.")
@json_option
@click.pass_context
def evaluate(ctx: click.Context, name: str, storage: Path, data_root: str | None, within: float, as_json: bool) -> None:
    """Measure a finetuned network again, on the data set that it was finetuned on.

    Exit status 0 when it is worth what was recorded, 1 when not, 2 when it could not be measured.
    """
    from service import export_report
    from service.exporting import network_at
    from trainables.export import api

    with network_at(name, storage) as folder:
        found = api.evaluate(folder, data_root=data_root)
    different = found.different(within)
    if as_json:
        content = {**dataclasses.asdict(found), "different": different}
        click.echo(json.dumps({"model": name, **content}, indent=2))
    else:
        for line in export_report.of_evaluation(name, found, different):
            click.echo(line)
    ctx.exit(RUN_ERROR if different else 0)
