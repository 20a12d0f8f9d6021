#!/bin/sh
# SPDX-License-Identifier: MIT
# A bundle of Sigstore is JSON of a protobuf message, whose bytes may be written in the URL-safe alphabet of base64, too,
# with or without padding. sigstore-models 0.0.6, which sigstore-python 4 reads bundles with, drops the characters "-"
# and "_": it refuses the bundle as "Incorrect padding", or, if what is left has the length of base64, takes other bytes
# than those written. protobuf 7.35.1 for Python and npm's @sigstore/bundle 4.0.0 take the same bytes in each form.
# Prints the versions and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check sigstore-models==0.0.6 protobuf==7.35.1
npm install --silent --no-audit --no-fund @sigstore/bundle@4.0.0
cat > models.py << 'END'
import base64
import json

from google.protobuf import json_format, wrappers_pb2
from sigstore_models.bundle.v1 import Bundle

for name, payload in (("nine bytes", b"\xfb\xef\xbe\xfb\xef\xbe\xfb" + b"a" * 2), ("six bytes", b"\xfb\xef\xbe" + b"a" * 3)):
    for form, text in (
        ("standard", base64.b64encode(payload).decode()),
        ("URL-safe", base64.urlsafe_b64encode(payload).decode()),
    ):
        bundle = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
            "dsseEnvelope": {"payload": text, "payloadType": "t", "signatures": [{"sig": "AAAA"}]},
        }
        with open(f"{name} {form}.json", "w") as file:
            json.dump(bundle, file)
        try:
            said = Bundle.model_validate(bundle).dsse_envelope.payload.hex()
        except ValueError as error:
            said = "Incorrect padding" if "Incorrect padding" in str(error) else repr(error)
        print(f"{name} {form}: models {said}")
        print(f"{name} {form}: protobuf {json_format.Parse(json.dumps(text), wrappers_pb2.BytesValue()).value.hex()}")
END
cat > bundle.js << 'END'
const fs = require("fs");
const { bundleFromJSON } = require("@sigstore/bundle");
for (const file of fs.readdirSync(".").filter((name) => / (standard|URL-safe).json$/.test(name)).sort()) {
	const bundle = bundleFromJSON(JSON.parse(fs.readFileSync(file)));
	console.log(`${file.slice(0, -5)}: npm ${bundle.content.dsseEnvelope.payload.toString("hex")}`);
}
END
venv/bin/python models.py > said
node bundle.js >> said
LC_ALL=C sort said | tee sorted
cat > expected << 'END'
nine bytes URL-safe: models Incorrect padding
nine bytes URL-safe: npm fbefbefbefbefb6161
nine bytes URL-safe: protobuf fbefbefbefbefb6161
nine bytes standard: models fbefbefbefbefb6161
nine bytes standard: npm fbefbefbefbefb6161
nine bytes standard: protobuf fbefbefbefbefb6161
six bytes URL-safe: models 616161
six bytes URL-safe: npm fbefbe616161
six bytes URL-safe: protobuf fbefbe616161
six bytes standard: models fbefbe616161
six bytes standard: npm fbefbe616161
six bytes standard: protobuf fbefbe616161
END
diff expected sorted
