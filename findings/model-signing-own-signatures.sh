#!/bin/sh
# SPDX-License-Identifier: MIT
# model-signing 1.1.1 signs models of which it does not verify its own signature, though nothing changed:
#  - shards: its Statement keeps numbers as protobuf does, so that the shard size of 1000 comes back as 1000.0, and
#    verify() raises a TypeError of range().
#  - links: the signature says "allow_symlinks": true, and verify() does not look at it: a ValueError names the link.
#  - BLAKE3: verify() in Python agrees; the command computes SHA-256 and says "Signature mismatch".
# The signature of whole files with SHA-256, its default, is verified by both.
# Prints the version and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check model-signing==1.1.1 pyOpenSSL==26.4.0
mkdir model
echo '{}' > model/config.json
head -c 5000 /dev/zero > model/weights
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem
openssl pkey -in key.pem -pubout -out public.pem
venv/bin/python - << 'END'
import importlib.metadata
import pathlib
import subprocess

from model_signing import hashing, signing, verifying

print("model-signing", importlib.metadata.version("model-signing"))


def seen(name, config):
    signer = signing.Config().use_elliptic_key_signer(private_key="key.pem")
    signer.set_hashing_config(config).sign("model", f"{name}.sig")
    try:
        verifying.Config().use_elliptic_key_verifier(public_key="public.pem").verify("model", f"{name}.sig")
        found = "verified"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    print(f"{name}: {found[:100]}")
    return found


def command(name):
    verify = ["venv/bin/model_signing", "verify", "key", "model", "--public_key", "public.pem"]
    done = subprocess.run([*verify, "--signature", f"{name}.sig"], capture_output=True, text=True)
    print(f"{name} by the command: {(done.stdout + done.stderr).strip()[:100]}")
    return done


assert seen("files", hashing.Config()) == "verified"
assert command("files").returncode == 0
assert seen("blake3", hashing.Config().use_file_serialization(hashing_algorithm="blake3")) == "verified"
failed = command("blake3")
assert failed.returncode == 1 and "Signature mismatch" in failed.stderr
shards = seen("shards", hashing.Config().use_shard_serialization(shard_size=1000))
assert shards == "TypeError: 'float' object cannot be interpreted as an integer"
pathlib.Path("model/link").symlink_to("weights")
links = seen("links", hashing.Config().set_allow_symlinks(True))
assert links.startswith("ValueError: Cannot use 'model/link' because it is a symlink")
END
