#!/bin/sh
# SPDX-License-Identifier: MIT
# cbor2 6.3.0 with canonical=True sorts the keys of a map as RFC 7049 has it (section 3.9: shorter ones first), and not
# as RFC 8949 does for its deterministic encoding (section 4.2.1: by their bytes), which npm's cborg 6.1.5 and cbor
# 10.0.12 follow. So "canonical" bytes of one map differ, and with them its digest and its signature, as soon as keys
# of several kinds and lengths meet, such as the numbers 10, 100 and -1. Maps of text keys alone are the same in both.
# Prints the versions and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cbor2==6.3.0
npm install --silent --no-audit --no-fund cborg@6.1.5 cbor@10.0.12
cat > encode.mjs << 'END'
import cbor from "cbor";
import * as cborg from "cborg";

const hex = (bytes) => Buffer.from(bytes).toString("hex");
for (const map of [new Map([[-1, 0], [100, 1], [10, 2]]), new Map([["aa", 0], ["z", 1]])]) {
	console.log("cborg ", hex(cborg.encode(map, cborg.rfc8949EncodeOptions)));
	console.log("cbor  ", hex(cbor.encodeCanonical(map)));
}
END
cat > encode.py << 'END'
import cbor2

for keys in ({-1: 0, 100: 1, 10: 2}, {"aa": 0, "z": 1}):
    print("cbor2 ", cbor2.dumps(keys, canonical=True).hex())
END
{
	venv/bin/python encode.py
	node encode.mjs
} | sort -s -k 1,1 | tee said
cat > expected << 'END'
cbor   a30a021864012000
cbor   a2617a0162616100
cbor2  a30a022000186401
cbor2  a2617a0162616100
cborg  a30a021864012000
cborg  a2617a0162616100
END
diff expected said
