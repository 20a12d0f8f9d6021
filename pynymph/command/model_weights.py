# SPDX-License-Identifier: MIT
"""`pynymph weights`: a model's weights against a manifest, in files or in a GPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import click

from pynymph import weights as models
from pynymph.command.terminal import DIFFERS, bar, json_option, print_json


@click.group()
def weights() -> None:
    """Verify a model's weights, in files or in a GPU.

    Exit status: 0, all is as the manifest says; 1, it is not; 2, that could not be found out.
    """


@weights.command()
@click.argument("model")
@click.option("-o", "--output", metavar="FILE", help="Where to write it (default: MODEL.weights.json).")
@json_option
def manifest(model: str, output: str | None, as_json: bool) -> None:
    """Make the manifest of a model's files. MODEL is a safetensors file, or a folder of them."""
    began = time.monotonic()
    with _bar() as progress:
        made = models.manifest(model, progress=progress)
    seconds = time.monotonic() - began
    output = output or f"{model.rstrip('/')}.weights.json"
    made.save(output)
    result = {"manifest": output, "where": "cpu", "tensors": len(made.tensors), "nbytes": made.nbytes,
              "seconds": seconds}  # fmt: skip
    if as_json:
        print_json(result)
    else:
        click.echo(
            f"{output}: {len(made.tensors)} tensors, {made.nbytes} bytes, digests by the CPU, {seconds:.3g} s"
        )


@weights.command()
@click.argument("model")
@click.argument("manifest")
@json_option
def verify(model: str, manifest: str, as_json: bool) -> None:
    """Verify a model's files against a manifest. MODEL is a safetensors file, or a folder of them."""
    _report(as_json, lambda progress: models.verify(model, manifest, progress=progress))


@weights.command()
@click.argument("model")
@click.argument("manifest")
@click.option(
    "--loader", type=click.Choice(list(models.LOADERS)), default="safetensors", help="Default: safetensors."
)
@click.option("--device", default="cuda:0", help="As torch names it (default: cuda:0).")
@json_option
def load(model: str, manifest: str, loader: str, device: str, as_json: bool) -> None:
    """Load a model with a loader, and verify what is in memory then.

    MODEL is a safetensors file, or a folder of them; for torch.load, its file.
    """

    def run(progress: models.Progress) -> models.Report:
        expected = models.Manifest.load(manifest)
        tensors = models.load(model, manifest=expected, device=device, loader=loader, progress=progress)
        where = str(next(iter(tensors.values())).device) if tensors else device
        return models.Report(where, len(expected.tensors), expected.nbytes)

    _report(as_json, run)


def _report(as_json: bool, run: Callable[[models.Progress], models.Report]) -> None:
    """Print the report, also of what is wrong."""
    began = time.monotonic()
    try:
        with _bar() as progress:
            report = run(progress)
    except models.WeightsError as error:
        report = error.report
    seconds = time.monotonic() - began
    where = "by the CPU" if report.where == "cpu" else f"in the memory of {report.where}"
    if as_json:
        print_json({"ok": report.ok, **asdict(report), "seconds": seconds})
    else:
        for wrong in report.wrong:
            spans = ", ".join(f"{begin} to {end}" for begin, end in wrong.ranges)
            click.echo(f"{wrong.name}: {wrong.problem}{f' in bytes {spans}' if spans else ''}")
        for name in report.missing:
            click.echo(f"{name}: missing")
        for name in report.unexpected:
            click.echo(f"{name}: not in the manifest")
        for name, now in report.renamed.items():
            click.echo(f"{name}: is {now} here")
        verdict = "as the manifest says" if report.ok else "NOT what the manifest says"
        of = f"{report.tensors} tensors, {report.nbytes} bytes, digests {where}, {seconds:.3g} s"
        click.echo(f"{verdict}: {of}")
    click.get_current_context().exit(0 if report.ok else DIFFERS)


@contextlib.contextmanager
def _bar() -> Iterator[models.Progress]:
    """A bar on stderr, if that is a terminal."""
    shown = 0
    with bar("digests", None) as advance:

        def progress(done: int, total: int) -> None:
            nonlocal shown
            advance(done - shown, total)
            shown = done

        yield progress
