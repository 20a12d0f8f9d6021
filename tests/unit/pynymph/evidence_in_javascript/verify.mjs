// SPDX-License-Identifier: MIT
// A second verifier of evidence, which knows docs/reference/evidence.md and no code of pynymph.
// node verify.mjs EVIDENCE [--key FILE --nonce HEX] [--slice FILE] [FILE...]: each FILE has the bytes of a transfer.
// It prints one line, and exits with 1 if something is wrong. BLAKE3 is that of noble-hashes; CBOR is read here.
import { createPublicKey, verify as isSigned } from "node:crypto";
import { readFileSync } from "node:fs";
import { blake3 } from "./noble-hashes/blake3.js";

const text = (string) => new TextEncoder().encode(string);
const same = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)) === 0;
const fail = (why) => {
  throw new Error(why);
};
const need = (is, why) => is || fail(why);

// --- deterministic CBOR: RFC 8949, 4.2.1; integers are BigInt ---

function decode(data) {
  let at = 0;
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const take = (n) => {
    need(at + n <= data.length, "it ends too early");
    at += n;
    return data.subarray(at - n, at);
  };
  const head = () => {
    const first = take(1)[0];
    const info = first & 31;
    if (info < 24) return [first >> 5, BigInt(info)];
    need(info < 28, "a length is indefinite or reserved");
    const size = 1 << (info - 24);
    let value = 0n;
    for (const byte of take(size)) value = (value << 8n) | BigInt(byte);
    const least = size === 1 ? 24n : 1n << BigInt(4 * size);
    need(value >= least, "an integer or a length is longer than it has to be");
    return [first >> 5, value];
  };
  const count = (value) => {
    need(value <= BigInt(data.length), "a length is more than all there is");
    return Number(value);
  };
  const item = (depth) => {
    need(depth, "it is nested too deeply");
    const [major, value] = head();
    if (major === 0) return value;
    if (major === 1) return -1n - value;
    if (major === 2) return Uint8Array.from(take(count(value)));
    if (major === 3) return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(take(count(value)));
    if (major === 4) return Array.from({ length: count(value) }, () => item(depth - 1));
    need(major === 5, "it has a tag, a float or a simple value");
    const map = new Map();
    let before = null;
    for (let n = count(value); n > 0; n--) {
      const begin = at;
      const key = item(1);
      need(typeof key === "string", "a key is no text");
      const raw = data.subarray(begin, at);
      need(before === null || Buffer.compare(before, raw) < 0, "keys are out of order, or there twice");
      before = raw;
      map.set(key, item(depth - 1));
    }
    return map;
  };
  const found = item(9);
  need(at === data.length, "bytes are behind its end");
  return found;
}

// --- the form: evidence.cddl ---

const isText = (value) => typeof value === "string" && text(value).length <= 4096;
const isBytes = (value) => value instanceof Uint8Array;
const isDigest = (value) => isBytes(value) && value.length === 32;
const isWhole = (value) => typeof value === "bigint" && value >= 0n;
const isStatus = (value) => typeof value === "bigint" && value <= 0n && value >= -(1n << 31n);
const isList = (check) => (value) => Array.isArray(value) && value.every(check);
const isPart = (value) => Array.isArray(value) && value.length === 2 && value.every(isWhole);
const isMap = (fields) => (value) => {
  if (!(value instanceof Map)) return false;
  for (const key of value.keys()) if (!(key in fields) && !(`${key}?` in fields)) return false;
  return Object.entries(fields).every(([key, check]) =>
    key.endsWith("?") ? !value.has(key.slice(0, -1)) || check(value.get(key.slice(0, -1))) : value.has(key) && check(value.get(key)),
  );
};
const isQuote = isMap({ message: isBytes, signature: isBytes, pcrs: isBytes });
const isFile = isMap({
  digest: isDigest,
  evidence: isBytes,
  "attestation?": isMap({
    challenge: (value) => isBytes(value) && value.length <= 64,
    statement: isBytes,
    "digest?": isDigest,
    "signature?": (value) => isBytes(value) && value.length >= 256 && value.length <= 512,
    "quote?": isQuote,
  }),
});
const isTransfer = isMap({
  source: isText, target: isText, bytes: isWhole, status: isStatus, "source-digest?": isDigest,
  "target-digest?": isDigest, sent: isList(isPart), found: isList(isPart), "time?": isWhole,
});
const isEvidence = isMap({
  format: (value) => value === "pynymph.evidence",
  version: (value) => value === 1n,
  by: isText, tool: isText, device: isText,
  engines: (value) => value instanceof Map && [...value].every(([key, number]) => isText(key) && isWhole(number)),
  transcript: isMap({ digest: isDigest, count: isWhole, id: isWhole, records: isBytes }),
  transfers: isList(isTransfer),
});
const isSlice = isMap({
  format: (value) => value === "pynymph.slice",
  version: (value) => value === 1n,
  digest: isDigest, begin: isWhole, length: isWhole, proof: isBytes,
});

// --- records ---

const NOP = 0, COPY = 1, HASH = 2, FILL = 3;

function recordsOf(stream) {
  const view = new DataView(stream.buffer, stream.byteOffset, stream.byteLength);
  const found = [];
  for (let at = 0; at < stream.length; at += 128) {
    const digests = view.getUint16(at + 10, true);
    const digest = (bit, from) => {
      const bytes = stream.subarray(at + from, at + from + 32);
      if (digests & bit) return bytes;
      need(bytes.every((byte) => byte === 0), "a record has a digest that it says it has not");
      return null;
    };
    found.push({
      status: view.getInt32(at, true),
      opcode: view.getUint16(at + 8, true),
      engine: BigInt(view.getUint32(at + 12, true)),
      length: view.getBigUint64(at + 16, true),
      done: view.getBigUint64(at + 56, true),
      src: digest(1, 64),
      dst: digest(2, 96),
    });
  }
  return found;
}

function checkTransfer(transfer, records, taken) {
  const done = transfer.get("status") === 0n;
  const total = transfer.get("bytes");
  const [sent, found] = [["sent", [COPY, HASH, FILL]], ["found", [HASH]]].map(([name, opcodes]) => {
    const side = new Map();
    let end = 0n;
    for (const [at, number] of transfer.get(name)) {
      need(number < BigInt(records.length) && !taken.has(number), "a record is missing, or there twice");
      taken.add(number);
      const record = records[Number(number)];
      need(opcodes.includes(record.opcode), `a record is not one of bytes that were ${name}`);
      need(at >= end && at + record.length <= total, "a record is of another's bytes, or behind the end");
      end = at + record.length;
      if (done) {
        need(record.status === 0 && record.done === record.length, "a record failed");
        need(!record.src || !record.dst || same(record.src, record.dst), "a record has two digests");
      }
      side.set(`${at}+${record.length}`, record);
    }
    return side;
  });
  if (!done) return;
  need(!found.size || (found.size === sent.size && [...sent.keys()].every((key) => found.has(key))), "not all was read again");
  for (const [key, record] of found) need(record.src && sent.get(key).src && same(record.src, sent.get(key).src), "other bytes were read again");
  const ours = [transfer.get("source-digest"), transfer.get("target-digest")];
  if (ours[0] && ours[1]) need(same(ours[0], ours[1]), "its two digests differ");
  if (total === 0n) for (const digest of ours) need(!digest || same(digest, blake3(new Uint8Array())), "a digest of nothing");
  const whole = `0+${total}`;
  if (sent.has(whole)) {
    const recorded = [sent.get(whole).src, found.has(whole) ? found.get(whole).src : sent.get(whole).dst];
    ours.forEach((digest, i) => need(!digest || !recorded[i] || same(digest, recorded[i]), "a digest is not its record's"));
  }
}

// --- what the driver attests ---

function checkStatement(file, body, records, key, nonce) {
  const told = file.get("attestation");
  need(told, "the driver attests nothing");
  need(told.has("digest") !== told.has("signature"), "the driver's statement has no digest or signature, or both");
  const statement = told.get("statement");
  const view = new DataView(statement.buffer, statement.byteOffset, statement.byteLength);
  need(statement.length >= 208 && same(statement.subarray(0, 16), text("nymph attest v1\0")), "no statement");
  need(view.getUint32(48, true) === statement.length, "the statement has another length");
  const challenge = told.get("challenge");
  const size = Uint8Array.of(challenge.length);
  const material = Buffer.concat([size, challenge, file.get("digest")]);
  const expected = blake3(material, { context: text("pynymph 2026-12 evidence nonce v1") });
  need(same(statement.subarray(16, 48), expected), "the driver attests other evidence");
  const transcript = body.get("transcript");
  need(same(statement.subarray(64, 96), transcript.get("digest")), "the driver attests another transcript");
  need(view.getBigUint64(96, true) === transcript.get("count"), "the driver attests another number of entries");
  need(view.getBigUint64(104, true) === transcript.get("id"), "the driver attests another transcript's number");
  const lines = new TextDecoder("utf-8", { fatal: true }).decode(statement.subarray(view.getUint32(52, true))).split("\n");
  for (const [name, number] of body.get("engines")) need(lines.includes(`engine.${number}=${name}`), "another engine");
  const moved = records.filter((each) => [COPY, FILL].includes(each.opcode)).reduce((sum, each) => sum + each.done, 0n);
  need(view.getBigUint64(112, true) === moved, "the driver attests other bytes");
  if (view.getUint32(176, true) === 0) {
    const ring = Buffer.concat([statement.subarray(152, 176), statement.subarray(112, 120)]);
    need(same(blake3(ring), statement.subarray(120, 152)), "the driver attests another ring");
  }
  if (key) {
    if (key.length === 32) need(told.has("digest") && same(blake3(statement, { key }), told.get("digest")), "the driver attests with another key");
    else need(told.has("signature") && isSigned("sha256", statement, createPublicKey(Buffer.from(key)), told.get("signature")), "the driver signs with another key");
    need(!nonce || same(nonce, challenge), "the driver attests in answer to another nonce");
  }
}

// --- slices, in Bao's format, by BLAKE3's own compression: the paper, section 2 ---

const IV = [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
const ORDER = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];

function compress(chaining, block, counter, flags) {
  const padded = new Uint8Array(64);
  padded.set(block);
  const bytes = new DataView(padded.buffer);
  let words = Array.from({ length: 16 }, (_, i) => bytes.getUint32(4 * i, true));
  const v = [...chaining, ...IV.slice(0, 4), Number(counter & 0xffffffffn), Number(counter >> 32n), block.length, flags];
  const mix = (a, b, c, d, x, y) => {
    const turn = (value, n) => (value >>> n) | (value << (32 - n));
    v[a] = (v[a] + v[b] + x) | 0;
    v[d] = turn(v[d] ^ v[a], 16);
    v[c] = (v[c] + v[d]) | 0;
    v[b] = turn(v[b] ^ v[c], 12);
    v[a] = (v[a] + v[b] + y) | 0;
    v[d] = turn(v[d] ^ v[a], 8);
    v[c] = (v[c] + v[d]) | 0;
    v[b] = turn(v[b] ^ v[c], 7);
  };
  for (let round = 0; round < 7; round++) {
    for (let i = 0; i < 4; i++) mix(i, 4 + i, 8 + i, 12 + i, words[2 * i], words[2 * i + 1]);
    for (let i = 0; i < 4; i++) mix(i, 4 + ((i + 1) & 3), 8 + ((i + 2) & 3), 12 + ((i + 3) & 3), words[8 + 2 * i], words[9 + 2 * i]);
    words = ORDER.map((i) => words[i]);
  }
  return v.slice(0, 8).map((word, i) => (word ^ v[8 + i]) >>> 0);
}

function bytesOf(words) {
  const out = new DataView(new ArrayBuffer(32));
  words.forEach((word, i) => out.setUint32(4 * i, word, true));
  return new Uint8Array(out.buffer);
}

function leaf(data, number, root) {
  let chaining = IV;
  for (let at = 0; at === 0 || at < data.length; at += 64) {
    const last = at + 64 >= data.length;
    const flags = (at === 0 ? 1 : 0) | (last ? 2 | (root ? 8 : 0) : 0);
    chaining = compress(chaining, data.subarray(at, at + 64), number, flags);
  }
  return bytesOf(chaining);
}

function checkSlice(slice) {
  const proof = slice.get("proof");
  need(proof.length >= 8, "the slice has no header");
  const total = new DataView(proof.buffer, proof.byteOffset).getBigUint64(0, true);
  const begin = slice.get("begin"), end = begin + slice.get("length");
  const last = begin + (slice.get("length") || 1n);
  const sought = begin < total ? begin : total ? total - 1n : 0n;
  let at = 8;
  const take = (n) => {
    need(at + n <= proof.length, "the slice ends too early");
    at += n;
    return proof.subarray(at - n, at);
  };
  const parts = [];
  const least = (a, b) => (a < b ? a : b);
  const walk = (from, nbytes, expected) => {
    if (total && (from + nbytes <= sought || from >= last)) return;
    if (nbytes <= 1024n) {
      const data = take(Number(nbytes));
      need(same(leaf(data, from / 1024n, nbytes === total), expected), "the slice has other bytes");
      const first = begin > from ? Number(least(begin - from, nbytes)) : 0;
      const behind = end > from ? Number(least(end - from, nbytes)) : 0;
      parts.push(data.subarray(first, Math.max(first, behind)));
      return;
    }
    const pair = take(64);
    need(same(bytesOf(compress(IV, pair, 0n, 4 | (nbytes === total ? 8 : 0))), expected), "the slice has other nodes");
    let left = 1024n;
    while (2n * left < nbytes) left *= 2n;
    walk(from, left, pair.subarray(0, 32));
    walk(from + left, nbytes - left, pair.subarray(32));
  };
  walk(0n, total, slice.get("digest"));
  need(at === proof.length, "bytes are behind the slice's end");
  return [total, Buffer.concat(parts)];
}

// --- all ---

function verify(args) {
  const files = [];
  let key = null, nonce = null;
  const slices = [];
  for (let i = 0; i < args.length; i++) {
    if (args[i] === "--key") key = new Uint8Array(readFileSync(args[++i]));
    else if (args[i] === "--nonce") nonce = Buffer.from(args[++i], "hex");
    else if (args[i] === "--slice") slices.push(args[++i]);
    else files.push(args[i]);
  }
  const file = decode(new Uint8Array(readFileSync(files.shift())));
  need(isFile(file), "it is no evidence");
  const raw = file.get("evidence");
  need(same(blake3(raw, { context: text("pynymph 2026-12 evidence digest v1") }), file.get("digest")), "its digest is another");
  const body = decode(raw);
  need(isEvidence(body), "it is no evidence of version 1");
  const transcript = body.get("transcript");
  const stream = transcript.get("records");
  need(BigInt(stream.length) === 128n * transcript.get("count"), "records are missing");
  need(same(blake3(stream, { context: text("pcie_nymph 2026-12 transcript v1") }), transcript.get("digest")), "the transcript is another");
  const records = recordsOf(stream);
  const numbers = [...body.get("engines").values()];
  need(!numbers.includes(0n) && new Set(numbers).size === numbers.length, "two engines have one number");
  for (const record of records) need(record.engine === 0n || numbers.includes(record.engine), "an engine has no name");
  const taken = new Set();
  for (const transfer of body.get("transfers")) checkTransfer(transfer, records, taken);
  if (key || file.has("attestation")) checkStatement(file, body, records, key, nonce);
  const good = body.get("transfers").filter((each) => each.get("status") === 0n);
  const digestOf = (each) => each.get("target-digest") ?? each.get("source-digest");
  const fits = (each, data) =>
    each.get("sent").every(([at, number]) => {
      const record = records[Number(number)];
      return !record.src || same(blake3(data.subarray(Number(at), Number(at + record.length))), record.src);
    });
  for (const name of files) {
    const data = new Uint8Array(readFileSync(name));
    const digest = blake3(data);
    const is = (each) => digestOf(each) && same(digestOf(each), digest) && each.get("bytes") === BigInt(data.length) && fits(each, data);
    need(good.some(is), `${name}: no transfer has its bytes`);
  }
  for (const name of slices) {
    const slice = decode(new Uint8Array(readFileSync(name)));
    need(isSlice(slice), "it is no slice");
    const [total] = checkSlice(slice);
    const is = (each) => digestOf(each) && same(digestOf(each), slice.get("digest")) && each.get("bytes") === total;
    need(good.some(is), `${name}: it is of no transfer`);
  }
  return `${body.get("transfers").length} transfers, ${records.length} records`;
}

function verdict(args) {
  try {
    return verify(args);
  } catch (error) {
    return `wrong: ${error.message}`;
  }
}

const [option, list] = process.argv.slice(2);
// --many FILE: arguments of many calls, in JSON; a line for each.
const calls = option === "--many" ? JSON.parse(readFileSync(list, "utf8")) : [process.argv.slice(2)];
const lines = calls.map(verdict);
console.log(lines.map((line) => line.replaceAll("\n", " ")).join("\n"));
if (option !== "--many" && lines[0].startsWith("wrong: ")) process.exitCode = 1;
