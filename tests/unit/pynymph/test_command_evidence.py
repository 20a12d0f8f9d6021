# SPDX-License-Identifier: MIT
"""`pynymph copy --evidence`, `pynymph verify` and `pynymph evidence`, as people call them, on the model."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import doc_blocks
import pytest
from evidence_files import KEY, public_pem, quote, signer, write_key
from pynymph_command import refused, run

from pynymph import evidence

MODEL = ("--engine", "model")
FILM = os.urandom(1_200_000)
# The command, of which the model's driver has the administrator's key.
ATTESTING = """
import sys
from pathlib import Path
from pynymph.command import main
from pynymph.model import Model
key = Path(sys.argv.pop(1))
setattr(Model, "sign_key" if key.suffix == ".der" else "attest_key", key.read_bytes())
main()
"""


def attesting(folder: Path, *arguments: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", ATTESTING, folder / "attest.key", *arguments]
    return subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """film.mkv, a folder for its copy, and the key that the driver attests with."""
    (tmp_path / "film.mkv").write_bytes(FILM)
    (tmp_path / "backup").mkdir()
    (tmp_path / "attest.key").write_bytes(KEY)
    return tmp_path / "film.mkv"


def copied(folder: Path, *more: Any) -> None:
    done = run("copy", *MODEL, "--evidence", "e.cbor", *more, "film.mkv", "backup/", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_a_copy_is_verified_later_without_a_driver(film: Path, tmp_path: Path) -> None:
    copied(tmp_path, "--by", "bench 3")
    done = run("verify", "e.cbor", "backup/film.mkv", "film.mkv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, *files = done.stdout.splitlines()
    assert first.startswith(
        "e.cbor: 1 transfer of 1.144 MiB, 6 entries on a MODEL, without a driver, by bench 3"
    )
    assert first.endswith("vouched for by NOBODY, as no key was given")
    assert files[0] == "backup/film.mkv: has the bytes copied from film.mkv to backup/film.mkv"
    said = json.loads(run("verify", "e.cbor", "film.mkv", "--json", cwd=tmp_path).stdout)
    assert said["ok"] and said["vouched"] == [] and said["files"][0]["source"] == "film.mkv"
    assert said["says"]["transfers"][0]["read_again"] is True and said["says"]["device"] == "model:"
    # The same copy once more: nothing is written, and the ring has hashed both.
    copied(tmp_path)
    assert run("verify", "e.cbor", "backup/film.mkv", cwd=tmp_path).returncode == 0


def test_the_first_wrong_thing_is_one_line_and_status_1(film: Path, tmp_path: Path) -> None:
    copied(tmp_path)
    target = tmp_path / "backup/film.mkv"
    changed = bytearray(FILM)
    changed[600_000] ^= 1
    target.write_bytes(changed)
    done = run("verify", "e.cbor", "backup/film.mkv", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "pynymph: backup/film.mkv: bytes 524288 to 1048576 are not those of record 1\n"
    said = json.loads(run("verify", "e.cbor", "backup/film.mkv", "--json", cwd=tmp_path).stdout)
    assert (said["ok"], said["wrong"]) == (False, done.stderr.removeprefix("pynymph: ").strip())
    data = bytearray((tmp_path / "e.cbor").read_bytes())
    for at in (0, 1, 5, 30, len(data) // 2, len(data) - 1):
        (tmp_path / "bad.cbor").write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        refused(run("verify", "bad.cbor", cwd=tmp_path), 1, "bad.cbor")
    for status, arguments in (
        (2, ("missing.cbor",)),
        (1, ("e.cbor", "attest.key")),
        (2, ("e.cbor", "missing")),
        (2, ("e.cbor", "--nonce", "xyz")),
        (2, ("e.cbor", "--nonce", "5eed")),
        (2, ("e.cbor", "--pcr", "16=00")),
        (2, ("e.cbor", "-o", "x")),
        (2, ("e.cbor", "film.mkv", "--engine", "model")),
        (2, ("film.mkv", "backup/film.mkv", "e.cbor")),
        (1, ("e.cbor", "--attest-key", "attest.key")),
        (1, ("film.mkv",)),
    ):
        done = run("verify", *arguments, cwd=tmp_path)
        assert done.returncode == status and done.stderr.count("\n") == 1, (arguments, done)


def test_two_files_are_compared_as_before(film: Path, tmp_path: Path) -> None:
    shutil.copy(film, tmp_path / "other")
    assert run("verify", "film.mkv", "other", cwd=tmp_path).stdout.startswith("the same: ")
    (tmp_path / "other").write_bytes(b"x")
    assert "differ, first at byte 0" in run("verify", film, tmp_path / "other").stdout


def test_folders_pipes_holes_and_empty_files_have_evidence(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "in").mkdir(parents=True)
    (folder / "empty").touch()
    (folder / "in/n\u00e4me\n").write_bytes(b"1")
    with (folder / "in/sparse").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(2 << 20)
        file.write(b"island")
    done = run("copy", *MODEL, "-r", "--evidence", "e.cbor", "photos", "backup", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [f"{top}/{name}" for top in ("photos", "backup/photos") for name in
             ("empty", "in/n\u00e4me\n", "in/sparse")]  # fmt: skip
    done = run("verify", "e.cbor", *names, cwd=tmp_path)
    assert (done.returncode, done.stdout.count("has the bytes")) == (0, 6), done.stderr
    targets = [each["target"] for each in json.loads(run("verify", "e.cbor", "--json", cwd=tmp_path).stdout)[
        "says"]["transfers"]]  # fmt: skip
    assert sorted(targets) == sorted(names[3:])
    with film.open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        done = run("copy", *MODEL, "--evidence", "p.cbor", "-", "-", cwd=tmp_path, stdin=stdin, stdout=stdout,
                   stderr=subprocess.PIPE, capture_output=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "standard input to standard output" in run("verify", "p.cbor", "out", cwd=tmp_path).stdout


def test_a_copy_that_fails_has_evidence_of_that(film: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a").write_bytes(b"a")
    (tmp_path / "backup/photos/b").mkdir(parents=True)
    (tmp_path / "photos/b").write_bytes(b"a file, where there is a folder")
    done = run("copy", *MODEL, "-r", "--evidence", "e.cbor", "photos", "backup", cwd=tmp_path)
    assert done.returncode == 2
    assert run("verify", "e.cbor", "backup/photos/a", cwd=tmp_path).returncode == 0
    done = run("copy", *MODEL, "--evidence", "f.cbor", "film.mkv", "/dev/full", cwd=tmp_path)
    assert done.returncode == 2 and "No space left" in done.stderr
    said = run("verify", "f.cbor", cwd=tmp_path)
    assert said.returncode == 0 and "transfer 0 to /dev/full FAILED: No space left on device" in said.stdout
    for arguments in (("--by", "x"), ("--nonce", "5eed")):
        refused(run("copy", *MODEL, *arguments, "film.mkv", "x", cwd=tmp_path), 2, "belong to --evidence")
    lost = ("copy", *MODEL, "--evidence", "no/folder/e.cbor", "film.mkv", "x")
    refused(run(*lost, cwd=tmp_path), 2, "no/folder/e.cbor can't be written")


def test_who_cannot_attest_says_so_before_the_copy(film: Path, tmp_path: Path) -> None:
    nonce = ("--evidence", "e.cbor", "--nonce", "5eed")
    refused(run("copy", *MODEL, *nonce, "film.mkv", "copy", cwd=tmp_path), 2, "no key to attest with")
    assert not (tmp_path / "copy").exists() and not (tmp_path / "e.cbor").exists()


def test_the_driver_attests_and_a_tpm_quotes(film: Path, tmp_path: Path) -> None:
    nonce = ("--nonce", "5eed01")
    made = attesting(tmp_path, "copy", *MODEL, "--evidence", "e.cbor", *nonce, "film.mkv", "backup")
    assert made.returncode == 0, made.stderr
    key = ("--attest-key", "attest.key")
    assert (
        "vouched for by driver model, by its key"
        in run("verify", "e.cbor", *nonce, *key, cwd=tmp_path).stdout
    )
    refused(run("verify", "e.cbor", *key, "--nonce", "5eed02", cwd=tmp_path), 1, "another nonce")
    wanted = run("evidence", "quote", "e.cbor", cwd=tmp_path).stdout.strip()
    message, signature, pcrs = quote(write_key(tmp_path, "tpm"), bytes.fromhex(wanted))
    for name, data in (("q.msg", message), ("q.sig", signature), ("q.pcrs", pcrs)):
        (tmp_path / name).write_bytes(data)
    files = ("--message", "q.msg", "--signature", "q.sig", "--pcrs", "q.pcrs")
    assert run("evidence", "quote", "e.cbor", *files, cwd=tmp_path).stdout == "e.cbor: has the quote\n"
    tpm = ("--tpm-key", "tpm-public.pem", "--pcr", f"sha256:16={pcrs.hex()}")
    done = run("verify", "e.cbor", "film.mkv", *nonce, *key, *tpm, cwd=tmp_path)
    assert "by driver model, by its key and a TPM, by its key" in done.stdout, done.stderr
    refused(
        run("verify", "e.cbor", *tpm[:3], f"sha256:16={bytes(32).hex()}", cwd=tmp_path), 1, "PCR sha256:16"
    )
    refused(run("evidence", "quote", "e.cbor", *files[:4], cwd=tmp_path), 2, "none of them")


def test_slices_are_cut_and_verified(film: Path, tmp_path: Path) -> None:
    copied(tmp_path)
    cut = ("evidence", "slice", "e.cbor", "film.mkv", "--begin", 4096, "--length", 5000, "-o", "part.slice")
    assert run(*cut, cwd=tmp_path).stdout.startswith("part.slice: bytes 4096 to 9096 of film.mkv, ")
    film.unlink()
    done = run("verify", "e.cbor", "--slice", "part.slice", "-o", "part", cwd=tmp_path)
    assert done.stdout.endswith("part.slice: has bytes 4096 to 9096 of backup/film.mkv\n"), done.stderr
    assert (tmp_path / "part").read_bytes() == FILM[4096:9096]
    data = bytearray((tmp_path / "part.slice").read_bytes())
    data[200] ^= 1
    (tmp_path / "part.slice").write_bytes(data)
    refused_ = run("verify", "e.cbor", "--slice", "part.slice", cwd=tmp_path)
    assert refused_.returncode == 1 and "does not prove its bytes" in refused_.stderr
    (tmp_path / "other").write_bytes(b"other")
    cut = ("evidence", "slice", "e.cbor", "other", "--begin", 0, "--length", 1, "-o", "x")
    refused(run(*cut, cwd=tmp_path), 1, "of a file that no transfer has")


def test_signatures_are_of_one_file(film: Path, tmp_path: Path) -> None:
    copied(tmp_path)
    write_key(tmp_path, "key")
    write_key(tmp_path, "other")
    sign = ("evidence", "sign", "e.cbor", "--key", "key.pem", "--signature", "e.sig")
    assert run(*sign, cwd=tmp_path).stdout.startswith("e.sig: e.cbor, by key ")
    public = ("--signature", "e.sig", "--key", "key-public.pem")
    done = run("verify", "e.cbor", "film.mkv", *public, cwd=tmp_path)
    assert done.returncode == 0 and "vouched for by key " in done.stdout
    refused(run("verify", "e.cbor", *public[:3], "other-public.pem", cwd=tmp_path), 1, "was made with key")
    payload = json.loads((tmp_path / "e.sig").read_text())
    for part in ("payload", "sig"):
        changed = json.loads(json.dumps(payload))
        envelope = changed["dsseEnvelope"]
        where = envelope if part == "payload" else envelope["signatures"][0]
        where[part] = ("B" if where[part][40] == "A" else "A").join((where[part][:40], where[part][41:]))
        (tmp_path / "bad.sig").write_text(json.dumps(changed))
        bad = ("--signature", "bad.sig", "--key", "key-public.pem")
        refused(run("verify", "e.cbor", *bad, cwd=tmp_path), 1, "is not a signature by")
    copied(tmp_path, "--by", "another")
    refused(run("verify", "e.cbor", *public, cwd=tmp_path), 1, "has signed another file")
    refused(run("evidence", "sign", "film.mkv", *sign[3:], cwd=tmp_path), 1, "is no evidence")
    refused(run(*sign[:5], "--signature", "film.mkv", cwd=tmp_path), 2, "is no signature")


def test_the_guide_works(film: Path, tmp_path: Path) -> None:
    """Its commands on the model, whose driver has the key that the administrator would give it."""
    first, part, signed, key, attested = (
        block.text for block in doc_blocks.run_by(doc_blocks.EVIDENCE, "docs/how-to/evidence.md")
    )
    key = re.sub(r"^sudo .*$", "", key, flags=re.MULTILINE)
    script = "\n".join((first, part, signed, key, "rm backup/film.mkv", attested))
    script = re.sub(r"^pynymph copy", "pynymph copy --engine model", script, flags=re.MULTILINE)
    program = tmp_path / "attesting.py"
    program.write_text(ATTESTING)
    (tmp_path / "attest.key").write_bytes(KEY)
    name = f"{sys.executable} attesting.py attest.key"
    script = re.sub(r"^pynymph", name, script, flags=re.MULTILINE)
    done = subprocess.run(["sh", "-e"], input=script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "part.bin").read_bytes() == FILM[4096:8192]
    assert "vouched for by key " in done.stdout and "vouched for by driver model, by its key" in done.stdout


def test_the_guide_has_the_driver_sign(film: Path, tmp_path: Path) -> None:
    """Its commands on the model, whose driver has the key that root would add by keyctl."""
    keys, verify = (block.text for block in doc_blocks.run_by(doc_blocks.SIGNED))
    keys, _ = re.sub(r"^sudo .*$", "", keys, flags=re.MULTILINE).split("shred ")
    (tmp_path / "attesting.py").write_text(ATTESTING)
    copy = f"{sys.executable} attesting.py attest.der copy --engine model --nonce 5eed0123456789ab"
    script = f"{keys}{copy} --evidence evidence.cbor film.mkv backup/\n"
    script += re.sub(r"^pynymph", f"{sys.executable} -m pynymph", verify, flags=re.MULTILINE)
    done = subprocess.run(["sh", "-e"], input=script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vouched for by driver model, by its signature" in done.stdout
    # As the guide says: of the other kind of key, or without one, nobody vouches.
    (tmp_path / "other.pem").write_bytes(public_pem(signer()))
    for key, hint in (("attest.key", "has signed its statement"), ("other.pem", "not signed with this key")):
        refused(run("verify", "evidence.cbor", "--attest-key", key, cwd=tmp_path), 1, hint)
    refused(run("verify", "evidence.cbor", "--attest-key", "attest.der", cwd=tmp_path), 2, "nor PEM")
    refused(run("verify", "evidence.cbor", "--attest-key", "attest.pem", cwd=tmp_path), 2, "no public key")
    said = json.loads(run("verify", "evidence.cbor", "--json", cwd=tmp_path).stdout)
    assert said["vouched"] == [] and said["says"]["attested"]["signed"] is True
    # openssl alone has the same verdict of the statement.
    found = evidence.read_evidence(tmp_path / "evidence.cbor")
    told = evidence.verify(found, "e")[0].attested
    assert told and told.signature
    (tmp_path / "statement").write_bytes(told.statement)
    (tmp_path / "signature").write_bytes(told.signature)
    command = ["openssl", "dgst", "-sha256", "-verify", "attest-public.pem", "-signature", "signature"]
    assert subprocess.run([*command, "statement"], cwd=tmp_path).returncode == 0


def test_the_guide_quotes_with_a_tpm(film: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Its commands with swtpm, which is a TPM 2.0 in software, and with tpm2-tools alone."""
    made = attesting(
        tmp_path, "copy", *MODEL, "--evidence", "evidence.cbor", "--nonce", "5eed", "film.mkv", "x"
    )
    assert made.returncode == 0, made.stderr
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        two.bind(("127.0.0.1", port + 1))
    state = tmp_path / "tpm"
    state.mkdir()
    tpm = subprocess.Popen(["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server",
                            f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={port + 1}", "--flags",
                            "not-need-init,startup-clear"])  # fmt: skip
    try:
        environment = os.environ | {"TPM2TOOLS_TCTI": f"swtpm:port={port}"}

        def shell(script: str) -> str:
            done = subprocess.run(["sh", "-e"], input=script, cwd=tmp_path, env=environment,
                                  capture_output=True, text=True, timeout=120)  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stdout

        for _ in range(100):
            if (
                subprocess.run(
                    ["tpm2_getrandom", "--hex", "1"], env=environment, capture_output=True
                ).returncode
                == 0
            ):
                break
            time.sleep(0.1)
        attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"
        module = os.urandom(32).hex()
        shell(f"""tpm2_createprimary -Q -C e -G ecc:ecdsa-sha256:null -g sha256 -c ak.ctx -a '{attributes}'
            tpm2_evictcontrol -Q -C o -c ak.ctx 0x81010001
            tpm2_readpublic -Q -c 0x81010001 -f pem -o ak.pem
            tpm2_pcrextend 10:sha256={module}
            tpm2_pcrread -Q sha256:10 -o expected""")
        expected = (tmp_path / "expected").read_bytes().hex()
        (block,) = doc_blocks.run_by(doc_blocks.QUOTE)
        script = block.text.replace("pynymph", f"{sys.executable} -m pynymph")
        said = shell(script.replace("PCR_OF_YOUR_MODULES", expected))
        assert "vouched for by a TPM, by its key" in said
        checked = json.loads(run("verify", "evidence.cbor", "--json", cwd=tmp_path).stdout)
        assert checked["says"]["attested"]["quote"]["pcrs"] == {"sha256:10": expected}
    finally:
        tpm.kill()
        tpm.wait()
    # tpm2-tools agree, without the TPM.
    found, _ = evidence.verify((tmp_path / "evidence.cbor").read_bytes(), "e")
    assert found.attested
    shell("tpm2_checkquote -Q -u ak.pem -m quote.msg -s quote.sig -f quote.pcrs -l sha256:10 -g sha256 -q "
          + found.attested.to_quote().hex())  # fmt: skip
    wrong = run(
        "verify", "evidence.cbor", "--tpm-key", "ak.pem", "--pcr", f"sha256:10={module}", cwd=tmp_path
    )
    refused(wrong, 1, "PCR sha256:10 was")
