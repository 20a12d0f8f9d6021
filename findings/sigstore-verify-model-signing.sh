#!/bin/sh
# SPDX-License-Identifier: MIT
# npm's @sigstore/verify 3.1.1 verifies a signature of model-signing 1.1.1 with a P-256 key, and no others of it:
#  - P-384: model-signing signs SHA-384, as Sigstore's registry of algorithms has it for that curve. @sigstore/core
#    3.2.1 passes no algorithm to crypto.verify(), which takes SHA-256: "signature verification failed".
#  - certificates: model-signing puts the chain into a bundle of version 0.3. @sigstore/bundle 4.0.0 refuses it as
#    "invalid bundle", since version 0.3 has the signer's certificate alone.
# model-signing verifies all three. Prints the versions and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check model-signing==1.1.1 pyOpenSSL==26.4.0
npm install --silent --no-audit --no-fund @sigstore/verify@3.1.1 @sigstore/bundle@4.0.0 @sigstore/core@3.2.1
mkdir model
echo '{}' > model/config.json

key() {
	openssl genpkey -algorithm EC -pkeyopt "ec_paramgen_curve:$2" -out "$1.pem"
	openssl pkey -in "$1.pem" -pubout -out "$1-public.pem"
}
key p256 P-256
key p384 P-384
openssl req -x509 -new -key p384.pem -subj /CN=root -days 30 -out root.pem \
	-addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign
openssl req -new -key p256.pem -subj /CN=signer -out signer.csr
echo 'keyUsage=critical,digitalSignature' > usage
openssl x509 -req -in signer.csr -CA root.pem -CAkey p384.pem -CAcreateserial -days 10 -extfile usage -out signer.pem \
	2> openssl.txt || { cat openssl.txt; exit 1; }

cat > verify.js << 'END'
const crypto = require("crypto");
const fs = require("fs");
const { bundleFromJSON } = require("@sigstore/bundle");
const { Verifier, toSignedEntity, toTrustMaterial } = require("@sigstore/verify");

const [signature, pem] = process.argv.slice(2).map((name) => fs.readFileSync(name, "utf8"));
const rawBytes = crypto.createPublicKey(pem).export({ format: "der", type: "spki" });
const hint = crypto.createHash("sha256").update(pem).digest("hex");
const nobody = { certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] };
const trusted = toTrustMaterial(nobody, { [hint]: { rawBytes } });
const verifier = new Verifier(trusted, { ctlogThreshold: 0, tlogThreshold: 0, timestampThreshold: 0 });
try {
	verifier.verify(toSignedEntity(bundleFromJSON(JSON.parse(signature))));
	console.log("verified");
} catch (error) {
	console.log(`${error.name}: ${error.message} ${error.fields ?? ""}`.trim());
}
END

expect() {
	echo "$1: $2"
	test "$2" = "$3"
}
sign() { venv/bin/model_signing sign "$@" > /dev/null 2>&1; }
agree() { venv/bin/model_signing verify "$@" > /dev/null 2>&1; }

venv/bin/model_signing --version
node -e 'for (const n of ["verify", "bundle", "core"]) console.log(n, require(`./node_modules/@sigstore/${n}/package.json`).version)'
for curve in p256 p384; do
	sign key model --signature "$curve.sig" --private_key "$curve.pem"
	agree key model --signature "$curve.sig" --public_key "$curve-public.pem"
done
sign certificate model --signature certificate.sig --private_key p256.pem --signing_certificate signer.pem \
	--certificate_chain root.pem
agree certificate model --signature certificate.sig --certificate_chain root.pem
expect P-256 "$(node verify.js p256.sig p256-public.pem)" verified
expect P-384 "$(node verify.js p384.sig p384-public.pem)" "VerificationError: signature verification failed"
expect certificate "$(node verify.js certificate.sig p256-public.pem)" \
	'Error: invalid bundle verificationMaterial.content.$case'
