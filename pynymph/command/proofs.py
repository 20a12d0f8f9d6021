# SPDX-License-Identifier: MIT
"""`pynymph verify` and `pynymph evidence`: what proves later that bytes arrived."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from pynymph import evidence, signing_keys
from pynymph.command.sums import PIPE, comparing_engine, show_comparison
from pynymph.command.terminal import Failure, bar, explain, json_option, named, print_json, size
from pynymph.errors import VerifyError
from pynymph.evidence.form import MAGIC
from pynymph.evidence.slices import MOST_BYTES as MOST_SLICE
from pynymph.weights.manifests import replace_file

SUFFIX = ".cbor"


def is_evidence(path: str) -> bool:
    """Tell whether a file is evidence, by its name or its first bytes."""
    if path == PIPE:
        return False
    if path.endswith(SUFFIX):
        return True
    if not stat.S_ISREG(os.stat(path).st_mode):
        return False  # what is read from a pipe is gone
    with open(path, "rb") as file:
        return file.read(1 + len(MAGIC))[1:] == MAGIC


def _nonce(context: click.Context, parameter: click.Parameter, given: str | None) -> bytes | None:
    if given is None:
        return None
    try:
        found = bytes.fromhex(given)
    except ValueError:
        found = b""
    if not 1 <= len(found) <= 64:
        raise click.BadParameter(
            f"{given!r} is not 1 to 64 bytes in hexadecimal; `openssl rand -hex 16` makes some"
        )
    return found


def nonce_option(help: str) -> Callable[[Any], Any]:
    """Make --nonce: 1 to 64 bytes."""
    return click.option("--nonce", metavar="HEX", callback=_nonce, help=help)


def _pcrs(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, bytes]:
    found = {}
    for each in given:
        parsed = re.fullmatch(r"(sha\d+:\d+)=((?:[0-9a-fA-F]{2})+)", each)
        if parsed is None:
            raise click.BadParameter(f"{each!r} is not like sha256:16=HEX")
        found[parsed[1]] = bytes.fromhex(parsed[2])
    return found


@click.command(short_help="Check evidence of copies, or whether two files have the same bytes.")
@click.argument("files", metavar="EVIDENCE [FILE]...", nargs=-1, required=True,
                type=click.Path(allow_dash=True, readable=False))  # fmt: skip
@click.option("--slice", "slices", metavar="FILE", multiple=True, help="Check this slice, too.")
@click.option("-o", "--output", metavar="FILE", help="Write the bytes of the slice to FILE.")
@nonce_option("The nonce that the driver had to answer.")
@click.option("--attest-key", metavar="FILE", help="The driver's key: 32 bytes, or a public key in PEM.")
@click.option("--tpm-key", metavar="FILE", help="The TPM's attestation key, in PEM.")
@click.option("--pcr", "pcrs", metavar="BANK:NUMBER=HEX", multiple=True, callback=_pcrs,
              help="A value that the TPM had to quote.")  # fmt: skip
@click.option("--signature", metavar="FILE", help="A signature of the evidence.")
@click.option("--key", metavar="FILE", help="The signer's public key, in PEM.")
@click.option("--ca", metavar="FILE", help="Root certificates of the signer, in PEM.")
@comparing_engine
@json_option
def verify(
    files: tuple[str, ...],
    slices: tuple[str, ...],
    output: str | None,
    engine: str | None,
    as_json: bool,
    **trust: Any,
) -> None:
    """Check EVIDENCE of copies, and that each FILE has the bytes that it tells of. No driver is needed.

    If the first file is no evidence, tell whether two files, devices or pipes have the same bytes, and where
    they first differ: pynymph verify A B.
    """
    asked = [name for name, value in (("slice", slices), ("output", output), *trust.items()) if value]
    if len(files) == 2 and not asked and not is_evidence(files[0]):
        return show_comparison(files[0], files[1], engine, as_json)
    if len(files) > 1 and not is_evidence(files[0]):
        raise click.UsageError(f"{named(files[0])} is no evidence; give evidence first, or two files")
    if engine is not None:
        raise click.UsageError("--engine is for two files; this process checks evidence")
    if output is not None and len(slices) != 1:
        raise click.UsageError("--output is for one --slice")
    name, *others = files
    report: dict[str, Any] = {"ok": False, "wrong": None, "evidence": name, "vouched": []}
    report |= {"files": [], "slices": []}
    try:
        with _bar(others) as tell:
            for line in _verified(name, others, slices, output, evidence.Trust(**trust), report, tell):
                if not as_json:
                    click.echo(line)
        report["ok"] = True
    except (VerifyError, OSError) as error:
        report["wrong"] = explain(error)
        if as_json:
            print_json(report)
        raise
    if as_json:
        print_json(report)


def _verified(
    name: str,
    files: list[str],
    slices: tuple[str, ...],
    output: str | None,
    trust: evidence.Trust,
    report: dict[str, Any],
    tell: Any,
) -> Iterator[str]:
    """Check all. Yields a line for each thing that is right, and notes it in the report."""
    found, report["vouched"] = evidence.verify(evidence.read_evidence(name), name, trust)
    report["says"] = evidence.summary(found)
    transfers = _counted(len(found.transfers), "transfer")
    entries = _counted(found.count, "entry", "entries")
    nbytes = size(sum(each.nbytes for each in found.transfers))
    by = f", by {named(found.by)}" if found.by else ""
    model = " on a MODEL, without a driver" if found.device == "model:" else ""
    who = " and ".join(report["vouched"]) or "NOBODY, as no key was given"
    yield f"{named(name)}: {transfers} of {nbytes}, {entries}{model}{by}; vouched for by {who}"
    for number, transfer in enumerate(found.transfers):
        if transfer.status:
            yield f"transfer {number} to {named(transfer.target)} FAILED: {os.strerror(-transfer.status)}"
    for path in files:
        transfer = evidence.check_file(found, path, tell)
        report["files"].append({"file": path, "source": transfer.source, "target": transfer.target})
        yield f"{named(path)}: has the bytes copied from {named(transfer.source)} to {named(transfer.target)}"
    for path in slices:
        data = signing_keys.read_file(path, MOST_SLICE)
        transfer, part, shown = evidence.check_slice(found, data, path)
        if output is not None:
            replace_file(output, shown)
        end = part.begin + len(shown)
        report["slices"].append({"file": path, "begin": part.begin, "end": end, "target": transfer.target})
        yield f"{named(path)}: has bytes {part.begin} to {end} of {named(transfer.target)}"


def _counted(number: int, name: str, names: str = "") -> str:
    return f"{number} {name if number == 1 else names or name + 's'}"


@contextlib.contextmanager
def _bar(files: list[str]) -> Iterator[Any]:
    total = 0
    for path in files:
        with contextlib.suppress(OSError):
            total += 2 * os.stat(path).st_size  # once by records, once as a whole
    with bar("verify", total) as advance:
        yield advance


# --- evidence ---


@click.group("evidence", short_help="Sign evidence, prove parts of files, add a TPM's quote.")
def evidence_group() -> None:
    """Sign evidence of copies, prove parts of files with it, and add a TPM's quote to it.

    `pynymph copy --evidence` makes evidence, and `pynymph verify` checks it.
    """


@evidence_group.command()
@click.argument("file", metavar="EVIDENCE")
@click.option("--key", metavar="FILE", required=True, help="Your private key, in PEM.")
@click.option("--certificate", metavar="FILE", help="Its certificate and those up to the root, in PEM.")
@click.option("--signature", metavar="FILE", required=True, help="Where to write it.")
@json_option
def sign(file: str, key: str, certificate: str | None, signature: str, as_json: bool) -> None:
    """Check EVIDENCE, and sign it: an in-toto statement in a bundle of Sigstore."""
    signer = evidence.sign(file, signature, key=key, certificates=certificate)
    if as_json:
        print_json({"evidence": file, "signature": signature, "signer": signer})
    else:
        click.echo(f"{named(signature)}: {named(file)}, by {signer}")


@evidence_group.command("slice")
@click.argument("file", metavar="EVIDENCE")
@click.argument("of", metavar="FILE")
@click.option("--begin", type=click.IntRange(0, (1 << 64) - 1), required=True, help="The first byte.")
@click.option("--length", type=click.IntRange(0, (1 << 64) - 1), required=True, help="How many bytes.")
@click.option("-o", "--output", metavar="SLICE", required=True, help="Where to write the slice.")
@json_option
def slice_(file: str, of: str, begin: int, length: int, output: str, as_json: bool) -> None:
    """Write some bytes of FILE to SLICE, with what proves them to those who have EVIDENCE alone."""
    found, _ = evidence.verify(evidence.read_evidence(file), file)
    with open(of, "rb") as opened:
        nbytes = os.fstat(opened.fileno()).st_size
        if nbytes:
            with mmap.mmap(opened.fileno(), nbytes, access=mmap.ACCESS_READ) as mapped:
                made = evidence.Slice.of(mapped, begin, length)
        else:
            made = evidence.Slice.of(b"", begin, length)
    data = made.to_bytes()
    if len(data) > MOST_SLICE:
        raise Failure(f"the slice would have {len(data)} bytes; give a --length below 1 GiB")
    _, _, shown = evidence.check_slice(found, data, of)
    replace_file(output, data)
    end = begin + len(shown)
    if as_json:
        print_json({"slice": output, "digest": made.digest.hex(), "begin": begin, "end": end})
    else:
        click.echo(f"{named(output)}: bytes {begin} to {end} of {named(of)}, {size(len(data))}")


@evidence_group.command()
@click.argument("file", metavar="EVIDENCE")
@click.option("--message", metavar="FILE", help="What `tpm2_quote -m` has written.")
@click.option("--signature", metavar="FILE", help="What `tpm2_quote -s ... -f plain` has written.")
@click.option("--pcrs", metavar="FILE", help="What `tpm2_quote -o ... -F values` has written.")
@json_option
def quote(file: str, message: str | None, signature: str | None, pcrs: str | None, as_json: bool) -> None:
    """Print what a TPM has to quote for EVIDENCE, or add its quote to EVIDENCE: give the three files."""
    found, _ = evidence.verify(evidence.read_evidence(file), file)
    if found.attested is None:
        raise Failure(f"the driver attests nothing of {named(file)}; make it with --nonce")
    wanted = found.attested.to_quote()
    given = [each for each in (message, signature, pcrs) if each is not None]
    if not given:
        if as_json:
            print_json({"evidence": file, "qualification": wanted.hex()})
        else:
            click.echo(wanted.hex())
        return
    if len(given) < 3:
        raise click.UsageError("give --message, --signature and --pcrs, or none of them")
    made = evidence.with_quote(found, *(Path(each).read_bytes() for each in given))
    replace_file(file, made.to_bytes())
    if as_json:
        print_json({"evidence": file, "qualification": wanted.hex()})
    else:
        click.echo(f"{named(file)}: has the quote")
