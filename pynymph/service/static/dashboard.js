// SPDX-License-Identifier: MIT
// The dashboard: what /events tells, on the page.

import { History } from "./chart.js";
import { takeFiles } from "./file.js";
import { $, brief, bytes, clock, count, duration, hash, light, make, ms, ns } from "./format.js";
import { ownRing, showRings } from "./ring.js";

const VERIFY_BYTES = 1 << 20;
const KEPT = 100; // of faults and events
const SILENCE_MS = 6000; // telemetry comes every second
const RETRY_MS = [500, 1000, 2000, 4000];

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
	const model = driver.name === "model";
	$("board").textContent = `${status.board_id ?? "Board without a name"} · ${driver.device} · version ${status.version}`;
	$("engine").textContent = status.engine ?? "–";
	$("temperature").textContent = status.temp_c === null ? "no sensor" : `${status.temp_c.toFixed(1)} °C`;
	$("temperature").title = status.temp_reason ?? "";
	$("uptime").textContent = duration(status.uptime_s);
	$("model").hidden = !model;
}

function showContact(state, text) {
	if ($("contact").textContent !== text) {
		$("contact").textContent = text;
	}
	$("contact").dataset.state = state;
}

// Engines, and whether they copy what they are given.

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
	return engine.verified ? `verified at ${clock(engine.verified_at)}` : brief(engine.reason ?? "not verified");
}

function showEngines(status) {
	const rows = status.engines.map((engine) => {
		const said = make("p", { className: "said" }, saidOf(engine));
		said.dataset.state = stateOf(engine);
		const where = make("p", { className: "where" }, placeOf(engine, status));
		const time = engine.time_ms === null ? "" : ms(engine.time_ms);
		return make(
			"li",
			{},
			light(stateOf(engine)),
			make("div", {}, make("p", { className: "name mono" }, engine.name), where),
			said,
			make("p", { className: "time" }, time),
		);
	});
	$("engines").replaceChildren(...rows);
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
		why = bad.length === 1 ? brief(bad[0].reason ?? "It did not prove itself.") : "Below is what is wrong with each.";
	} else if (lastVerification && !hashes) {
		[state, verdict, why] = ["bad", "The ring's hash is wrong", "The driver's and the one computed from its snapshot differ."];
	} else if (lastVerification?.reason) {
		[state, verdict, why] = ["bad", "nymphd's own ring failed", brief(lastVerification.reason)];
	} else if (engines.length && !open.length) {
		state = "good";
		verdict = engines.length === 1 ? "The one engine copies every byte" : `All ${engines.length} engines copy every byte`;
		why = "Random bytes, hashed by the driver at both ends and again in user space: all agree.";
	}
	for (const [id, text] of [["verdict", verdict], ["verdict-why", why]]) {
		if ($(id).textContent !== text) {
			$(id).textContent = text; // only then: it is read out
		}
	}
	document.querySelector(".verdict .light").dataset.state = state;
}

function showVerification(found) {
	lastVerification = found;
	if (found.ring_hash && found.recomputed_ring_hash) {
		$("ring-hashes").hidden = false;
		$("ring-hash").replaceChildren(hash(found.ring_hash));
		$("recomputed-hash").replaceChildren(hash(found.recomputed_ring_hash));
	}
}

async function verifyNow() {
	const button = $("verify");
	button.disabled = true;
	try {
		showVerification(await ask(`/fabric/verify?bytes=${VERIFY_BYTES}`));
		showStatus(await ask("/status"));
	} catch (error) {
		$("verdict-why").textContent = error.message;
	}
	button.disabled = false;
}

// Histories.

const throughput = new History($("throughput"), {
	lines: ["flow"],
	format: (value) => `${bytes(value)}/s`,
	show([now], [all]) {
		$("throughput-now").replaceChildren(make("b", {}, `${bytes(now)}/s`));
		$("throughput").ariaLabel = `Throughput: now ${bytes(now)}/s, at most ${bytes(Math.max(...all))}/s of late`;
	},
});
const latency = new History($("latency"), {
	lines: ["flow", "unsure"],
	format: ns,
	wide: true,
	show([half, most]) {
		const shares = [make("i"), "p50 ", make("b", {}, ns(half)), make("i", { className: "high" }), "p99 ", make("b", {}, ns(most))];
		$("latency-now").replaceChildren(...shares);
		$("latency").ariaLabel = `Latency: half of the copies within ${ns(half)}, 99 of 100 within ${ns(most)}`;
	},
});

function addToHistories(status) {
	const seconds = Date.parse(status.time) / 1000;
	throughput.add(seconds, status.rates.bytes_per_s);
	const own = ownRing(status);
	if (own?.latency_p50_ns) {
		latency.add(seconds, own.latency_p50_ns, own.latency_p99_ns);
	}
}

// Faults and other events.

const SAID = {
	ring: (event) => [`${event.name} ${event.what}`, event.engine],
	engine: (event) => [`${event.name} ${event.what}`, ""], // if for a reason, that is a fault of its own
	infer: (event) => [`${event.label}`, `${bytes(event.input_bytes)} classified in ${ms(event.latency_ms)}`],
	fault: (event) => [event.engine ?? event.source, brief(event.reason)],
};
let faults = 0;

function note(event) {
	if (!(event.type in SAID)) {
		return;
	}
	const wrong = event.type === "fault";
	const list = $(wrong ? "faults" : "events");
	const [what, more] = SAID[event.type](event);
	const time = make("time", { dateTime: event.time }, clock(event.time));
	list.querySelector(".none")?.remove();
	list.prepend(make("li", {}, time, make("p", {}, make("b", {}, what), more ? `: ${more}` : "")));
	while (list.children.length > KEPT) {
		list.lastChild.remove();
	}
	faults += wrong;
	$("faults-count").textContent = faults === 1 ? "1 so far" : faults ? `${faults} so far` : "";
}

function forgetEvents() {
	faults = 0;
	$("faults-count").textContent = "";
	$("faults").replaceChildren(make("li", { className: "none" }, "None so far."));
	$("events").replaceChildren(make("li", { className: "none" }, "None so far."));
}

function showCounters(counters) {
	const items = Object.entries(COUNTERS).filter(([name]) => name in counters);
	const shown = items.map(([name, title]) => {
		const value = name === "bytes" ? bytes(counters[name]) : count(counters[name]);
		const wrong = WRONG.has(name) && counters[name] > 0;
		return make("div", { className: wrong ? "wrong" : "" }, make("dt", {}, title), make("dd", {}, value));
	});
	$("counters").replaceChildren(...shown);
}

function showStatus(status) {
	showFacts(status);
	showEngines(status);
	showRings(status);
	showCounters(status.counters);
}

// The connection.

let retries = 0;

function hear(event) {
	if (event.type === "hello") {
		forgetEvents();
		event.recent.forEach(hear);
		retries = 0;
	} else if (event.type === "telemetry") {
		showContact("good", "live");
		showStatus(event.status);
		addToHistories(event.status);
	} else if (event.type === "verify") {
		showVerification(event);
	} else {
		note(event);
	}
}

function connect() {
	const socket = new WebSocket(`wss://${location.host}/events`);
	const silence = () => setTimeout(() => socket.close(), SILENCE_MS);
	let timer = silence();
	socket.addEventListener("message", ({ data }) => {
		clearTimeout(timer);
		timer = silence();
		hear(JSON.parse(data));
	});
	socket.addEventListener("close", async () => {
		clearTimeout(timer);
		showContact("bad", "no contact");
		await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(retries++, RETRY_MS.length - 1)]));
		await ask("/status").then(showStatus, () => {}); // which goes to log in, if that is what is wrong
		connect();
	});
}

$("verify").addEventListener("click", verifyNow);
$("leave").addEventListener("click", async () => {
	await fetch("/session", { method: "DELETE" });
	location.replace("/login");
});
takeFiles(ask);
ask("/status").then(showStatus, () => {});
connect();
