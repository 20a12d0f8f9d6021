// SPDX-License-Identifier: MIT
// A file's journey: into the ring, out of it again, and what the model says of what arrived.

import { $, bytes, hash, light, make, ms } from "./format.js";
import { blake3 } from "./vendor/noble-hashes/blake3.js";

const TOO_LARGE = 256 << 20; // nymphd's own limit is lower, and it says so; this only spares the browser

const hex = (digest) => Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");

function stage(list, state, what, how, ...more) {
	const item = make("li", {}, light(state), make("div", {}, make("p", { className: "what" }, what), make("p", { className: "how" }, how), ...more));
	list.append(item);
	return item;
}

async function send(file, ask) {
	if (file.size > TOO_LARGE) {
		throw new Error(`${bytes(file.size)} are too many for this page.`);
	}
	if (!file.size) {
		throw new Error("The file is empty: there is nothing to copy.");
	}
	const content = await file.arrayBuffer();
	const expected = hex(blake3(new Uint8Array(content)));
	const chosen = new URLSearchParams({ model: $("file-model").value, profile: $("file-profile").value });
	const headers = { "Content-Type": "application/octet-stream" };
	return { expected, answer: await ask(`/infer?${chosen}`, { method: "POST", headers, body: content }) };
}

function show(list, expected, answer) {
	const faults = answer.faults.map((fault) => `${fault.engine}: ${fault.reason}`).join("; ");
	const how = `${bytes(answer.input_bytes)} in ${ms(answer.transfer_ms)}`;
	stage(list, faults ? "unsure" : "good", `Copied by ${answer.engine}`, faults ? `${how}, not by ${faults}` : how);
	const same = answer.input_digest === expected;
	const digests = make("dl", { className: "hashes" });
	digests.append(make("dt", {}, "Hashed here, in the browser"), make("dd", {}, hash(expected)));
	digests.append(make("dt", {}, "Hashed behind the ring"), make("dd", {}, hash(answer.input_digest)));
	const verdict = same ? "Verified: every byte arrived" : "Not what was sent: the digests differ";
	stage(list, same ? "good" : "bad", verdict, "BLAKE3 of what left, and of what arrived", digests);
	const { description, mime_type: mime, note, score } = answer.output;
	const sure = `${(score * 100).toFixed(score > 0.999 ? 1 : 0)} % sure`;
	const work = `${answer.model} took ${ms(answer.latency_ms)} for ${answer.tokens} tokens, profile ${answer.profile}.`;
	const item = stage(list, same ? (note ? "unsure" : "good") : "bad", description, `${mime}, ${sure}. ${work}${note ? ` ${note}.` : ""}`);
	item.querySelector(".what").classList.add("answer");
}

/** ask(path, options): fetch, which gives the answer's JSON or throws an Error that says what nymphd did. */
export function takeFiles(ask) {
	const [drop, chosen, journey] = [$("drop"), $("chosen"), $("journey")];
	let sending = false;

	async function take(file) {
		if (!file || sending) {
			return;
		}
		sending = true;
		const list = make("ol");
		journey.replaceChildren(list);
		const waiting = stage(list, "unsure", file.name, `${bytes(file.size)} on their way`);
		try {
			const { expected, answer } = await send(file, ask);
			waiting.remove();
			stage(list, "good", file.name, `${bytes(file.size)} left the browser`);
			show(list, expected, answer);
		} catch (error) {
			waiting.remove();
			stage(list, "bad", file.name, error.message);
		}
		sending = false;
	}

	chosen.addEventListener("change", () => {
		take(chosen.files[0]);
		chosen.value = "";
	});
	for (const kind of ["dragover", "dragleave", "drop"]) {
		drop.addEventListener(kind, (event) => {
			event.preventDefault();
			drop.classList.toggle("over", kind === "dragover");
		});
	}
	drop.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
	// A file that misses the box would else replace the page.
	for (const kind of ["dragover", "drop"]) {
		window.addEventListener(kind, (event) => event.preventDefault());
	}
}
