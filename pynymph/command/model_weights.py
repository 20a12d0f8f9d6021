# SPDX-License-Identifier: MIT
"""`pynymph weights`: a model's weights against a manifest or a signature, in files or in a GPU."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict

import click

from pynymph import signatures
from pynymph import weights as models
from pynymph.command.terminal import DIFFERS, bar, json_option, print_json


def _signed(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that takes a signature instead of a manifest."""
    for option in (
        click.option("--ca", metavar="FILE", help="Root certificates that you trust, in PEM."),
        click.option("--key", metavar="FILE", help="The signer's public key, in PEM."),
        click.option("--signature", metavar="FILE", help="Signature of the model, instead of a manifest."),
    ):
        command = option(command)
    return command


def _one_of(manifest: str | None, signature: str | None, key: str | None, ca: str | None) -> None:
    if (manifest is None) == (signature is None):
        raise click.UsageError("Give either a manifest, or --signature.")
    if (signature is not None) != ((key is None) != (ca is None)):
        raise click.UsageError("Give --signature with either --key or --ca.")


@click.group()
def weights() -> None:
    """Verify a model's weights, in files or in a GPU.

    Exit status: 0, all is as the manifest or the signature says; 1, it is not; 2, that could not be found
    out.
    """


@weights.command()
@click.argument("model")
@click.option("-o", "--output", metavar="FILE", help="Where to write it (default: MODEL.weights.json).")
@json_option
def manifest(model: str, output: str | None, as_json: bool) -> None:
    """Make the manifest of a model's files.

    MODEL is a file or a folder of safetensors, GGUF, torch.save or torch.distributed.checkpoint; or a file of
    ONNX or npz.
    """
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
@click.option("--key", metavar="FILE", required=True, help="Your private key, in PEM.")
@click.option("--certificate", metavar="FILE", help="Its certificate and those up to the root, in PEM.")
@click.option("--signature", metavar="FILE", required=True, help="Where to write it.")
@json_option
def sign(model: str, key: str, certificate: str | None, signature: str, as_json: bool) -> None:
    """Sign all files of a model, with a key or a certificate. MODEL is a folder, or a file."""
    began = time.monotonic()
    with _bar() as progress:
        made = signatures.sign(model, signature, key=key, certificates=certificate, progress=progress)
    seconds = time.monotonic() - began
    if as_json:
        print_json(
            {"signature": signature, "signer": made.signer, "files": len(made.files), "seconds": seconds}
        )
    else:
        click.echo(f"{signature}: {len(made.files)} files, by {made.signer}, {seconds:.3g} s")


@weights.command()
@click.argument("model")
@click.argument("manifest", required=False)
@_signed
@json_option
def verify(
    model: str, manifest: str | None, signature: str | None, key: str | None, ca: str | None, as_json: bool
) -> None:
    """Verify a model's files against a manifest or a signature.

    MODEL is that of a manifest; with --signature, any file or folder.
    """
    _one_of(manifest, signature, key, ca)
    if signature is not None:
        name = signature
        _signature_report(
            as_json, lambda progress: signatures.verify(model, name, key=key, ca=ca, progress=progress)
        )
    assert manifest is not None
    against = manifest
    _report(as_json, lambda progress: models.verify(model, against, progress=progress))


@weights.command()
@click.argument("model")
@click.argument("manifest", required=False)
@_signed
@click.option(
    "--loader", type=click.Choice(list(models.LOADERS)), default="safetensors", help="Default: safetensors."
)
@click.option("--device", default="cuda:0", help="As torch names it (default: cuda:0).")
@json_option
def load(
    model: str,
    manifest: str | None,
    signature: str | None,
    key: str | None,
    ca: str | None,
    loader: str,
    device: str,
    as_json: bool,
) -> None:
    """Load a model with a loader, and verify what is in memory then against a manifest or a signature.

    MODEL is a safetensors file, or a folder of them; for torch.load, its file.
    """
    _one_of(manifest, signature, key, ca)
    if signature is not None:
        name = signature
        _signature_report(
            as_json,
            lambda progress: signatures.load_and_report(
                model, name, key=key, ca=ca, device=device, loader=loader, progress=progress
            )[1],
        )

    def run(progress: models.Progress) -> models.Report:
        assert manifest is not None
        expected = models.Manifest.load(manifest)
        tensors = models.load(model, manifest=expected, device=device, loader=loader, progress=progress)
        where = str(next(iter(tensors.values())).device) if tensors else device
        return models.Report(where, len(expected.tensors), expected.nbytes)

    _report(as_json, run)


@weights.command()
@click.argument("model")
@click.argument("manifest", required=False)
@click.option(
    "--build", metavar="MODULE:FUNCTION", help="Your function to load MODEL (default: transformers)."
)
@click.option("--dtype", default="auto", help="To which transformers casts (default: that of the files).")
@click.option("--device", default="cuda:0", help="As torch names it (default: cuda:0).")
@click.option("--quiet", is_flag=True, help="Print no tensors that are proven or computed.")
@_signed
@json_option
def match(
    model: str,
    manifest: str | None,
    signature: str | None,
    key: str | None,
    ca: str | None,
    build: str | None,
    dtype: str,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Load a model, and tell where each tensor of it comes from, and what proves it.

    MODEL is the folder of a model that transformers loads, with safetensors files. They have to agree with
    MANIFEST or the signature, if one is given.
    """
    if (manifest, signature, key, ca) != (None, None, None, None):
        _one_of(manifest, signature, key, ca)
    wanted = None if manifest is None else models.Manifest.load(manifest)
    if signature is not None:
        wanted = _signed_manifest(model, signature, key, ca, as_json)
    if build is not None:
        sys.path.insert(0, os.getcwd())  # of which `python -m pynymph` alone would import
    made = models.loaded_model(model, device=device, dtype=dtype, build=build)
    with _bar() as progress:
        found = models.match(made, model, wanted, progress=progress)
    if as_json:
        listed = {
            "unproven": found.unproven,
            "missing": found.missing,
            "computed": found.computed,
            "cast": found.of("cast"),
            "dequantized": found.of("dequantized"),
        }
        print_json({"ok": found.ok, **asdict(found), **listed})
    else:
        _origins(found, quiet, "manifest" if manifest else "signature" if signature else "files")
    click.get_current_context().exit(0 if found.ok else DIFFERS)


def _signed_manifest(
    model: str, signature: str, key: str | None, ca: str | None, as_json: bool
) -> models.Manifest:
    """Return the manifest of a model's files if the signature covers all of them. Else print why, and end."""
    with _bar() as progress:
        made = models.manifest(model, progress=progress)
    # After the manifest, so that what it says of files that changed before that is found out.
    try:
        with _bar() as progress:
            report = signatures.verify(model, signature, key=key, ca=ca, progress=progress)
        unsigned = sorted(
            set(report.ignored).intersection(each.file for each in made.tensors.values() if each.file)
        )
    except signatures.SignatureError as error:
        report, unsigned = error.report, []
    if not report.ok or unsigned:
        if as_json:
            print_json({**asdict(report), "ok": False, "unsigned": unsigned})
        else:
            for line in (*report.lines(), *(f"{name}: left out by the signature" for name in unsigned)):
                click.echo(line)
            click.echo(f"NOT as signed by {report.signer}: {report.files} files; the model was not loaded")
        click.get_current_context().exit(DIFFERS)
    return made


def _origins(found: models.Match, quiet: bool, against: str) -> None:
    """Print where the tensors come from, then what is wrong, then a line of all."""
    for name, origin in found.origins.items():
        if origin.how == "computed":
            shown = "computed, no file has it"
        elif not origin.proof:
            continue
        else:
            shown = origin.how
            if origin.sources and origin.sources != (name,):
                shown += f", {', '.join(origin.sources)}"
            shown += {"cast": ", after a cast", "dequantized": ", dequantized"}.get(origin.proof, "")
        if not quiet:
            click.echo(f"{name}: {shown}")
    for wrong in found.wrong:
        click.echo(f"{wrong.name}: {wrong.problem}{models.spans(wrong.ranges)}")
    for name in found.missing:
        click.echo(f"{name}: missing, no tensor of the model is made of it")
    for name, why in found.unproven.items():
        click.echo(f"{name}: not proven, {why}")
    proofs = Counter("computed" if each.how == "computed" else each.proof for each in found.origins.values())
    says = "say" if against == "files" else "says"
    verdict = f"as the {against} {says}" if found.ok else f"NOT what the {against} {says}"
    where = "by the CPU" if found.where == "cpu" else f"in the memory of {found.where}"
    click.echo(
        f"{verdict}: {proofs['bytes']} tensors proven, {proofs['cast']} after a cast, "
        f"{proofs['dequantized']} dequantized, {proofs['']} not, {proofs['computed']} computed, "
        f"{len(found.missing)} missing, digests {where}, {found.seconds:.3g} s"
    )


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


def _signature_report(as_json: bool, run: Callable[[models.Progress], signatures.Report]) -> None:
    """Print the report, also of what is wrong, and end the command."""
    try:
        with _bar() as progress:
            report = run(progress)
    except signatures.SignatureError as error:
        report = error.report
    if as_json:
        print_json({"ok": report.ok, **asdict(report)})
    else:
        for line in report.lines():
            click.echo(line)
        for name in report.ignored:
            click.echo(f"{name}: left out by the signature")
        verdict = "as signed" if report.ok else "NOT as signed"
        click.echo(f"{verdict} by {report.signer}: {report.files} files, {report.seconds:.3g} s")
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
