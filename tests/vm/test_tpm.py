# SPDX-License-Identifier: MIT
"""A TPM vouches for the module: the kernel measures it as it loads (IMA), and the TPM quotes that.

The TPM is swtpm, a TPM 2.0 in software. The commands are the guide's.
"""

import base64
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import doc_blocks
import pytest
from nymph_vm import build, slots
from nymph_vm.arch import AMD64
from nymph_vm.machine import Machine

from pynymph import evidence

NONCE = "5eed0123456789ab"
ROOT = """
set -e
export TPM2TOOLS_TCTI=device:/dev/tpmrm0
sudo() { "$@"; }
pynymph() { python3 -m pynymph "$@"; }
"""
MEASURE = """
rmmod nymph_endpoint pcie_nymph
mountpoint -q /sys/kernel/security || mount -t securityfs none /sys/kernel/security
echo 'measure func=MODULE_CHECK' > /sys/kernel/security/ima/policy
"""
MAKE_KEY = """
tpm2_createprimary -Q -C e -G ecc:ecdsa-sha256:null -g sha256 -c ak.ctx \
	-a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda'
tpm2_evictcontrol -Q -C o -c ak.ctx 0x81010001
tpm2_readpublic -Q -c 0x81010001 -f pem -o ak.pem
"""
LOG = "/sys/kernel/security/ima/binary_runtime_measurements"
MADE = ("evidence.cbor", "attest.key", "ak.pem", "quote.msg", "quote.sig", "quote.pcrs", "ima.log")
RECORD, ENTRY = struct.Struct("<I20sI"), struct.Struct("<I")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("tpm")
    control = folder / "control"
    usual = slots.usual(AMD64, 0)
    options = (
        *usual.options,
        ("chardev", f"socket,id=tpm,path={control}"),
        ("tpmdev", "emulator,id=tpm,chardev=tpm"),
        ("device", "tpm-tis,tpmdev=tpm"),
    )
    command = [
        "swtpm",
        "socket",
        "--tpm2",
        "--tpmstate",
        f"dir={folder}",
        "--ctrl",
        f"type=unixio,path={control}",
    ]
    with subprocess.Popen([*command, "--terminate"]) as tpm:
        try:
            name = f"test-tpm-{os.getpid()}"
            with Machine(name, slots=replace(usual, options=options), append="tpm_tis.force=1") as machine:
                yield machine
                assert machine.complaints() == []
        finally:
            tpm.kill()


def measured(log: bytes) -> tuple[str, dict[str, str]]:
    """What PCR 10 is after all that IMA logged, in hexadecimal, and each file's SHA-256 by its path."""
    pcr, files = bytes(32), {}
    while log:
        number, _, length = RECORD.unpack_from(log)
        assert number == 10
        log = log[RECORD.size + length :]
        (length,) = ENTRY.unpack_from(log)
        data, log = log[ENTRY.size : ENTRY.size + length], log[ENTRY.size + length :]
        pcr = hashlib.sha256(pcr + hashlib.sha256(data).digest()).digest()
        (length,) = ENTRY.unpack_from(data)
        digest, data = data[ENTRY.size : ENTRY.size + length], data[ENTRY.size + length :]
        (length,) = ENTRY.unpack_from(data)
        files[data[ENTRY.size : ENTRY.size + length].rstrip(b"\0").decode()] = digest[-32:].hex()
    return pcr.hex(), files


def quoted(machine: Machine, folder: Path) -> tuple[str, dict[str, str]]:
    """Have a copy's evidence attested and quoted by the guide's commands; bring all that is made to a folder.

    Returns what measured() does of the log of the kernel.
    """
    copy = next(each for each in doc_blocks.run_by(doc_blocks.EVIDENCE) if "--nonce" in each.text)
    (quote,) = doc_blocks.run_by(doc_blocks.QUOTE)
    made, _ = quote.text.rsplit("pynymph verify", 1)
    machine.run(["rm", "-rf", "evidence.cbor", "backup"])
    script = f"{ROOT}mkdir backup; head -c 3M /dev/urandom > film.mkv\n{copy.text}{made}cp {LOG} ima.log"
    print(machine.run(["bash", "-c", script]).stdout)
    for name in MADE:
        (folder / name).write_bytes(base64.b64decode(machine.run(["base64", name]).stdout))
    return measured((folder / "ima.log").read_bytes())


def verify(folder: Path, pcr: str) -> "subprocess.CompletedProcess[str]":
    """`pynymph verify`, on the host, where there is neither a driver nor a TPM."""
    options = [
        "--nonce",
        NONCE,
        "--attest-key",
        "attest.key",
        "--tpm-key",
        "ak.pem",
        "--pcr",
        f"sha256:10={pcr}",
    ]
    command = [sys.executable, "-m", "pynymph", "verify", "evidence.cbor", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_quote_shows_which_module_is_loaded(machine: Machine, tmp_path: Path) -> None:
    """The PCR is that of the module's own bytes; with one byte more, the module is another."""
    (key,) = (each for each in doc_blocks.run_by(doc_blocks.EVIDENCE) if "keyctl" in each.text)
    modules = {path.stem: path for path in build.prepare(machine.state.kernel).modules}
    machine.run(["sh", "-ec", MEASURE])
    machine.load(*modules.values())
    machine.run(["bash", "-c", ROOT + MAKE_KEY + key.text])

    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        folder.mkdir()
    pcr, files = quoted(machine, good)
    loaded = hashlib.sha256(modules["pcie_nymph"].read_bytes()).hexdigest()
    assert [digest for path, digest in files.items() if path.endswith("/pcie_nymph.ko")] == [loaded]
    said = verify(good, pcr)
    assert said.returncode == 0, said.stderr
    assert "by its key and a TPM, by its key" in said.stdout

    # tpm2-tools agree, with a TPM nowhere.
    found, _ = evidence.verify((good / "evidence.cbor").read_bytes(), "evidence.cbor")
    assert found.attested
    check = "TPM2TOOLS_TCTI=none tpm2_checkquote -Q -u ak.pem -m quote.msg -s quote.sig -f quote.pcrs"
    machine.run(["sh", "-c", f"{check} -l sha256:10 -g sha256 -q {found.attested.to_quote().hex()}"])

    machine.run(["rmmod", "nymph_endpoint", "pcie_nymph"])
    changed = tmp_path / "pcie_nymph.ko"
    shutil.copy(modules["pcie_nymph"], changed)
    with changed.open("ab") as file:
        file.write(b"\0")
    machine.copy_in(str(changed))
    machine.run(["bash", "-c", f"{ROOT}insmod ./pcie_nymph.ko; udevadm settle\n{key.text}"])
    other, files = quoted(machine, bad)
    assert hashlib.sha256(changed.read_bytes()).hexdigest() in files.values()
    assert other != pcr
    assert verify(bad, other).returncode == 0
    said = verify(bad, pcr)
    assert (said.returncode, said.stdout) == (1, "")
    assert f"PCR sha256:10 was {other} instead of {pcr}" in said.stderr
