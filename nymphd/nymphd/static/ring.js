// SPDX-License-Identifier: MIT
// Rings: nymphd's own as a gauge, filled as far as it has entries and turning as fast as bytes flow; all in a table.

import { $, bytes, count, drawn, make, ns, say, showAll, showTerms, when } from "./format.js";

const TICKS = 48;

/** Of nymphd's rings, the one that carries what it is sent; the others are another engine's, or a verification's. */
const ownRing = (status) => status.rings.find((ring) => ring.mine && ring.engine === status.engine);

class Gauge {
	constructor(box) {
		this.ticks = Array.from({ length: TICKS }, (_, i) =>
			drawn("line", { class: "tick", x1: 60, y1: 5, x2: 60, y2: 17, transform: `rotate(${(360 / TICKS) * (i + 0.5)} 60 60)` }),
		);
		this.flow = drawn("circle", { class: "flow still", cx: 60, cy: 60, r: 39.789, pathLength: 250 });
		this.active = drawn("text", { x: 60, y: 63 });
		this.of = drawn("text", { x: 60, y: 77 });
		this.drawing = drawn("svg", { class: "ring", viewBox: "0 0 120 120", role: "img" });
		this.drawing.append(...this.ticks, this.flow, this.active, this.of);
		this.name = make("p", { className: "name" });
		this.facts = make("dl");
		box.replaceChildren(this.drawing, make("div", {}, this.name, this.facts));
	}

	show(ring, flow) {
		const filled = Math.ceil((TICKS * ring.active) / ring.entries);
		this.ticks.forEach((tick, i) => tick.classList.toggle("filled", i < filled));
		say(this.active, count(ring.active));
		say(this.of, `of ${count(ring.entries)}`);
		this.drawing.setAttribute("aria-label", `${count(ring.active)} of ${count(ring.entries)} entries are active`);
		this.flow.classList.toggle("still", flow === 0);
		// From one turn in 12 s for a trickle to three a second for gigabytes.
		this.flow.style.animationDuration = `${(12 / (1 + Math.log10(1 + flow) ** 2 / 2.5)).toFixed(2)}s`;
		say(this.name, `${ring.name}, nymphd's own`);
		showTerms(this.facts, [
			["Engine", ring.engine],
			["Moved", bytes(ring.dma_bytes)],
			["Flow", `${bytes(flow)}/s`],
			["Unread", count(ring.unread)],
			["Errors", count(ring.errors), ring.errors > 0],
			["Since", when(ring.seen_since)],
		]);
	}
}

function row() {
	const name = make("th", { scope: "row" });
	const cells = Array.from({ length: 6 }, () => make("td"));
	const bar = make("i", { className: "bar" });
	const filled = make("span");
	cells[2].append(bar, filled);
	const element = make("tr", {}, name, ...cells);
	element.show = ([ring, flow]) => {
		say(name, ring.name);
		say(cells[0], ring.engine ?? "–");
		say(cells[1], ring.mine ? "nymphd" : `process ${ring.owner}`);
		say(filled, `${count(ring.active)} of ${count(ring.entries)}`);
		bar.style.setProperty("--share", ring.active / ring.entries);
		say(cells[3], `${bytes(flow)}/s`);
		say(cells[4], count(ring.errors));
		say(cells[5], ring.latency_p99_ns ? ns(ring.latency_p99_ns) : "–");
		element.classList.toggle("wrong", ring.errors > 0);
	};
	return element;
}

const seen = new Map(); // by the ring's name: when it was, and what it had moved
let gauge = null;

function flowOf(ring, time) {
	const before = seen.get(ring.name);
	const seconds = before ? (time - before.time) / 1000 : 0;
	const flow = seconds > 0 ? Math.max(0, ring.dma_bytes - before.bytes) / seconds : (before?.flow ?? 0);
	if (!before || seconds > 0) {
		seen.set(ring.name, { time, bytes: ring.dma_bytes, flow });
	}
	return flow;
}

export function showRings(status) {
	const time = Date.parse(status.time);
	const own = ownRing(status);
	const flows = new Map(status.rings.map((ring) => [ring, flowOf(ring, time)]));
	for (const name of seen.keys()) {
		if (!status.rings.some((ring) => ring.name === name)) {
			seen.delete(name);
		}
	}
	$("own-ring").hidden = !own;
	if (own) {
		gauge ??= new Gauge($("own-ring"));
		gauge.show(own, flows.get(own));
	}
	const ordered = [...flows].sort(([a], [b]) => (b.errors > 0) - (a.errors > 0) || (b === own) - (a === own));
	showAll($("rings"), ordered, ([ring]) => ring.name, row);
	const failed = status.rings.filter((ring) => ring.errors > 0).length;
	// Those of processes that nymphd may not look into are counted alone.
	const open = Math.max(status.counters.rings ?? 0, status.rings.length);
	const shown = open > status.rings.length ? `${count(status.rings.length)} of ` : "";
	say($("rings-count"), `${shown}${count(open)} open${failed ? `, ${count(failed)} with errors` : ""}`);
}
