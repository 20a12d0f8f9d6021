// SPDX-License-Identifier: MIT
// The dashboard: what /events tells, on the page.

import { addToHistory, chooseSpan, History, loadHistory } from "./chart.js";
import { takeFiles } from "./file.js";
import { $, bytes, count, duration, hash, light, make, ms, ns, rate, say, showAll, showTerms, stamp, when } from "./format.js";
import { showRings } from "./ring.js";

const VERIFY_BYTES = 1 << 20;
const KEPT = 100; // of faults and events
const SILENCE_MS = 6000; // telemetry comes every second
const RETRY_MS = [500, 1000, 2000, 4000];
const MODELS_MS = 5000;

const COUNTERS = {
	completed: "Copies completed",
	bytes: "Bytes moved",
	verified: "Verified",
	mismatched: "Mismatched",
	failed: "Failed",
	engine_failures: "Engine failures",
	fallbacks: "Fallbacks to the CPU",
	quarantined: "Quarantined",
};
const WRONG = new Set(["mismatched", "failed", "engine_failures", "quarantined"]);

/** fetch of JSON. Throws an Error that says what nymphd did not like; without a session, goes to log in. */
async function ask(path, options) {
	let answer;
	try {
		answer = await fetch(path, options);
	} catch {
		throw new Error("nymphd does not answer.");
	}
	if (answer.status === 401) {
		location.replace("/login");
	}
	const said = await answer.json();
	if (!answer.ok) {
		throw new Error(`${answer.status}: ${said.error}`);
	}
	return said;
}

// What the service is.

function showFacts(status) {
	const { driver } = status;
	say($("board"), `${status.board_id ?? "Board without a name"} · ${driver.device} · version ${status.version}`);
	say($("engine"), status.engine ?? "–");
	say($("temperature"), status.temp_c === null ? "no sensor" : `${status.temp_c.toFixed(1)} °C`);
	$("temperature").title = status.temp_reason ?? "";
	say($("uptime"), duration(status.uptime_s));
	$("uptime").title = `since ${new Date(Date.parse(status.time) - status.uptime_s * 1000).toLocaleString("en-GB")}`;
	$("model").hidden = driver.name !== "model";
}

// Whether what the page shows is so now. When it is not, all of it is grey, and the tab says so, too.

const ICONS = { good: "icon", unsure: "icon", bad: "icon-bad", lost: "icon-lost" };
let heard = null; // when nymphd was last heard
let lost = false;
let [verdictState, verdictText] = ["unsure", ""];

function showTab() {
	const title = lost ? "no contact" : verdictState === "bad" ? verdictText : "";
	document.title = title ? `✕ ${title} · nymphd` : "nymphd";
	const icon = `/static/login/${ICONS[lost ? "lost" : verdictState]}.svg`;
	if (document.querySelector("link[rel=icon]").getAttribute("href") !== icon) {
		document.querySelector("link[rel=icon]").setAttribute("href", icon);
	}
}

function showContact(isThere) {
	lost = !isThere;
	document.body.classList.toggle("lost", lost);
	say($("contact"), isThere ? "live" : "no contact");
	$("contact").dataset.state = isThere ? "good" : "bad";
	$("lost").hidden = isThere;
	if (lost) {
		const text = heard ? `No contact since ${when(heard)}. What is below is what was so then.` : "No contact with nymphd.";
		say($("lost"), text);
	}
	showTab();
}

// Engines, and whether they copy what they are given.

const ORDER = ["bad", "unsure", "good"];
let lastVerification = null;

function stateOf(engine) {
	return engine.verified === null ? "unsure" : engine.verified ? "good" : "bad";
}

function placeOf(engine, status) {
	const home = status.functions.find((each) => each.dma_channels.includes(engine.name));
	return home ? `PCI ${home.address}, ${home.link ?? "no link"}` : engine.name === "cpu" ? "the processor" : "";
}

function saidOf(engine) {
	if (engine.verified === null) {
		return "not checked yet";
	}
	const at = engine.verified_at ? when(engine.verified_at) : "";
	return engine.verified ? `verified ${at}` : `${engine.reason ?? "not verified"}${at ? `; checked ${at}` : ""}`;
}

function engineRow() {
	const [mark, said] = [light("unsure"), make("p", { className: "said" })];
	const [name, where, time] = [make("p", { className: "name mono" }), make("p", { className: "where" }), make("p", { className: "time" })];
	const element = make("li", {}, mark, make("div", {}, name, where), said, time);
	element.show = ([engine, status]) => {
		mark.dataset.state = said.dataset.state = stateOf(engine);
		say(name, engine.name);
		say(where, placeOf(engine, status));
		say(said, saidOf(engine));
		say(time, engine.time_ms === null ? "" : ms(engine.time_ms));
	};
	return element;
}

function showEngines(status) {
	const engines = [...status.engines].sort((a, b) => ORDER.indexOf(stateOf(a)) - ORDER.indexOf(stateOf(b)));
	showAll($("engines"), engines.map((engine) => [engine, status]), ([engine]) => engine.name, engineRow);
	showVerdict(status.engines);
}

function showVerdict(engines) {
	const bad = engines.filter((engine) => engine.verified === false);
	const open = engines.filter((engine) => engine.verified === null);
	const hashes = lastVerification && lastVerification.ring_hash === lastVerification.recomputed_ring_hash;
	let [state, verdict, why] = ["unsure", "Not checked yet", "Each engine will be asked to copy random bytes."];
	if (bad.length) {
		state = "bad";
		verdict = bad.length === 1 ? `${bad[0].name} is not to be trusted` : `${bad.length} engines are not to be trusted`;
		why = bad.length === 1 ? (bad[0].reason ?? "It did not prove itself.") : "Below is what is wrong with each.";
	} else if (lastVerification && !hashes) {
		[state, verdict, why] = ["bad", "The ring's hash is wrong", "The driver's and the one computed from its snapshot differ."];
	} else if (lastVerification?.reason) {
		[state, verdict, why] = ["bad", "nymphd's own ring failed", lastVerification.reason];
	} else if (engines.length && !open.length) {
		state = "good";
		verdict = engines.length === 1 ? "The one engine copies every byte" : `All ${engines.length} engines copy every byte`;
		why = "Random bytes, hashed by the driver at both ends and again in user space: all agree.";
	}
	say($("verdict"), verdict);
	say($("verdict-why"), why);
	document.querySelector(".verdict .light").dataset.state = state;
	[verdictState, verdictText] = [state, verdict];
	showTab();
}

function showHash(box, hex) {
	if (box.textContent !== hex) {
		box.replaceChildren(hash(hex));
	}
}

function showVerification(found) {
	lastVerification = found;
	if (found.ring_hash && found.recomputed_ring_hash) {
		$("ring-hashes").hidden = false;
		showHash($("ring-hash"), found.ring_hash);
		showHash($("recomputed-hash"), found.recomputed_ring_hash);
	}
}

async function verifyNow() {
	const button = $("verify");
	button.disabled = true;
	try {
		showVerification(await ask(`/fabric/verify?bytes=${VERIFY_BYTES}`));
		showStatus(await ask("/status"));
	} catch (error) {
		say($("verdict-why"), error.message);
	}
	button.disabled = false;
}

// Histories. What is told is of the last interval, or of that at the pointer.

const at = (time) => (time === null ? [] : [make("span", { className: "soft" }, `${when(time)} `)]);
const either = (value) => (value === null ? "–" : ns(value));

new History($("throughput"), {
	lines: { bytes_per_s: "flow" },
	format: (value) => `${bytes(value)}/s`,
	show([now], [all], time) {
		$("throughput-now").replaceChildren(...at(time), make("b", {}, `${bytes(now)}/s`));
		$("throughput").ariaLabel = `Throughput: now ${bytes(now)}/s, at most ${bytes(Math.max(...all))}/s`;
	},
});
for (const [what, title] of [["copy", "copies"], ["infer", "inferences"]]) {
	new History($(`${what}-latency`), {
		lines: { [`${what}_p50_ns`]: "flow", [`${what}_p99_ns`]: "unsure" },
		format: ns,
		wide: true,
		show([half, most], _, time) {
			const shares = [make("i"), "p50 ", make("b", {}, either(half)), make("i", { className: "high" }), "p99 ", make("b", {}, either(most))];
			$(`${what}-latency-now`).replaceChildren(...at(time), ...shares);
			const told = half === null ? `no ${title} in the last interval` : `half of the ${title} within ${ns(half)}, 99 of 100 within ${ns(most)}`;
			$(`${what}-latency`).ariaLabel = `Latency: ${told}`;
		},
	});
}

// Inference: how it is, and which models there are.

let models = [];

function showInference(status) {
	const { infer, rates } = status;
	showTerms($("inference-facts"), [
		["Now", rate(rates.inferences_per_s)],
		["Under way", count(infer.in_flight)],
		["So far", count(infer.count)],
		["Failed", count(infer.failed), rates.infer_failed > 0],
	]);
	const refused = models.filter((model) => !model.ready).length;
	const text = rates.infer_failed ? `${count(rates.infer_failed)} failed in the last second` : refused ? `${refused} of ${models.length} models not ready` : models.length ? "ready" : "no model";
	say($("inference-state"), text);
	$("inference-state").dataset.state = rates.infer_failed || !models.length || refused === models.length ? "bad" : refused ? "unsure" : "good";
}

function modelRow() {
	const [mark, name, said] = [light("unsure"), make("p", { className: "name mono" }), make("p", { className: "said" })];
	const digest = make("code", { className: "soft" });
	const element = make("li", {}, mark, make("div", {}, name, said, digest));
	element.show = (model) => {
		mark.dataset.state = said.dataset.state = model.ready ? "good" : "bad";
		say(name, model.name);
		say(said, model.ready ? `${model.source ?? model.kind}, ready` : (model.reason ?? "not ready"));
		say(digest, model.model_digest ?? "");
	};
	return element;
}

async function showModels() {
	({ models } = await ask("/models"));
	const failedFirst = [...models].sort((a, b) => a.ready - b.ready);
	showAll($("models"), failedFirst, (model) => model.name, modelRow);
	const classifiers = models.filter((model) => model.kind === "magika" && model.ready);
	showAll($("file-model"), classifiers, (model) => model.name, (model) => {
		const option = make("option", { value: model.name }, model.name);
		option.show = () => {};
		return option;
	});
}

// Faults and other events.

const SAID = {
	ring: (event) => [`${event.name} ${event.what}`, event.engine],
	engine: (event) => [`${event.name} ${event.what}`, ""], // if for a reason, that is a fault of its own
	infer: (event) => [event.label ?? event.model, `${bytes(event.input_bytes)} ${event.label ? "classified" : "run"} in ${ms(event.latency_ms)}`],
	fault: (event) => [event.engine ?? event.source, event.reason],
};
let faults = 0;

function note(event) {
	if (!(event.type in SAID)) {
		return;
	}
	const wrong = event.type === "fault";
	const list = $(wrong ? "faults" : "events");
	const [what, more] = SAID[event.type](event);
	list.querySelector(".none")?.remove();
	list.prepend(make("li", {}, stamp(event.time), make("p", {}, make("b", {}, what), more ? `: ${more}` : "")));
	while (list.children.length > KEPT) {
		list.lastChild.remove();
	}
	faults += wrong;
	say($("faults-count"), faults === 1 ? "1 so far" : faults ? `${faults} so far` : "");
}

function clearEvents() {
	faults = 0;
	say($("faults-count"), "");
	$("faults").replaceChildren(make("li", { className: "none" }, "None so far."));
	$("events").replaceChildren(make("li", { className: "none" }, "None so far."));
}

function showCounters(counters) {
	const items = Object.entries(COUNTERS).filter(([name]) => name in counters);
	showTerms(
		$("counters"),
		items.map(([name, title]) => {
			const value = name === "bytes" ? bytes(counters[name]) : count(counters[name]);
			return [title, value, WRONG.has(name) && counters[name] > 0];
		}),
	);
}

function showStatus(status) {
	showFacts(status);
	showEngines(status);
	showRings(status);
	showInference(status);
	showCounters(status.counters);
}

// The connection.

let retries = 0;

function hear(event) {
	if (event.type === "hello") {
		clearEvents();
		event.recent.forEach(hear);
		retries = 0;
		loadHistory(ask).catch(() => {}); // it grows from here on
	} else if (event.type === "telemetry") {
		heard = event.time;
		showContact(true);
		showStatus(event.status);
		addToHistory(ask, event.status.rates);
	} else if (event.type === "verify") {
		showVerification(event);
	} else {
		note(event);
	}
}

function connect() {
	const socket = new WebSocket(`wss://${location.host}/events`);
	const silence = () =>
		setTimeout(() => {
			showContact(false); // as it may take long until the browser has closed it
			socket.close();
		}, SILENCE_MS);
	let timer = silence();
	socket.addEventListener("message", ({ data }) => {
		clearTimeout(timer);
		timer = silence();
		hear(JSON.parse(data));
	});
	socket.addEventListener("close", async () => {
		clearTimeout(timer);
		showContact(false);
		await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(retries++, RETRY_MS.length - 1)]));
		await ask("/status").catch(() => {}); // which goes to log in, if that is what is wrong
		connect();
	});
}

async function keepModels() {
	await showModels().catch(() => {}); // what is shown stays; lost contact says so already
	setTimeout(keepModels, MODELS_MS);
}

$("verify").addEventListener("click", verifyNow);
$("leave").addEventListener("click", async () => {
	await fetch("/session", { method: "DELETE" });
	location.replace("/login");
});
chooseSpan($("span"));
takeFiles(ask);
keepModels();
ask("/status").then(showStatus, () => {});
connect();
