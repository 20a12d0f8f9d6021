// SPDX-License-Identifier: MIT
// Verify SIGNATURE with PUBLIC.pem by @sigstore/verify, without a log or a network: node verify.js SIGNATURE PUBLIC.pem
const crypto = require("crypto");
const fs = require("fs");
const { bundleFromJSON } = require("@sigstore/bundle");
const { Verifier, toSignedEntity, toTrustMaterial } = require("@sigstore/verify");

const [signature, pem] = process.argv.slice(2).map((name) => fs.readFileSync(name, "utf8"));
const hint = crypto.createHash("sha256").update(pem).digest("hex");
const rawBytes = crypto.createPublicKey(pem).export({ format: "der", type: "spki" });
const nobody = { certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] };
const trusted = toTrustMaterial(nobody, { [hint]: { rawBytes } });
const verifier = new Verifier(trusted, { ctlogThreshold: 0, tlogThreshold: 0, timestampThreshold: 0 });
verifier.verify(toSignedEntity(bundleFromJSON(JSON.parse(signature))));
console.log("verified");
