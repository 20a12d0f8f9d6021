#!/bin/sh
# SPDX-License-Identifier: MIT
# A predicate of an in-toto statement may be any JSON object. in-toto-attestation 0.9.3 for Python keeps it in a
# google.protobuf.Struct (protobuf 7.35.1), whose numbers are doubles: 9007199254740993 bytes come out as
# 9007199254740992.0, and 3 as 3.0. So a statement that it has read and written is another one, which no signature of the
# first verifies, and sizes from 8 PiB on are wrong without an error. Numbers that are written as text stay.
# Prints the versions and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check in-toto-attestation==0.9.3 protobuf==7.35.1
cat > made.py << 'END'
from google.protobuf.json_format import MessageToJson
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

subject = ResourceDescriptor(name="file", digest={"sha256": "00" * 32})
predicate = {"bytes": 9007199254740993, "count": 3, "text": "9007199254740993"}
statement = Statement([subject.pb], "https://example.com/sizes/v1", predicate)
statement.validate()
print(MessageToJson(statement.pb, indent=1))
END
venv/bin/pip list --disable-pip-version-check 2> /dev/null | grep -E 'in-toto|protobuf'
venv/bin/python made.py | tee said
grep -q '"bytes": 9007199254740992.0' said
grep -q '"count": 3.0' said
grep -q '"text": "9007199254740993"' said
