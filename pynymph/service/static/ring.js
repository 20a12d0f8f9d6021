// SPDX-License-Identifier: MIT
// One ring: filled as far as it has entries, and turning as fast as bytes flow.

import { $, bytes, count, drawn, make, ns } from "./format.js";

const TICKS = 48;
const SHOWN = 13;

class Ring {
	constructor(mine) {
		this.ticks = Array.from({ length: TICKS }, (_, i) =>
			drawn("line", { class: "tick", x1: 60, y1: 5, x2: 60, y2: 17, transform: `rotate(${(360 / TICKS) * (i + 0.5)} 60 60)` }),
		);
		this.flow = drawn("circle", { class: "flow still", cx: 60, cy: 60, r: 39.789, pathLength: 250 });
		this.active = drawn("text", { x: 60, y: 63 });
		this.of = drawn("text", { x: 60, y: 77 });
		const gauge = drawn("svg", { class: "ring", viewBox: "0 0 120 120", "aria-hidden": "true" });
		gauge.append(...this.ticks, this.flow, this.active, this.of);
		this.name = make("p", { className: "name" });
		this.facts = mine ? make("dl") : make("p", { className: "brief" });
		this.element = make("li", { className: mine ? "mine" : "" }, gauge, make("div", {}, this.name, this.facts));
		this.mine = mine;
		this.seen = null;
	}

	update(ring, time) {
		const seconds = this.seen ? (time - this.seen.time) / 1000 : 0;
		const rate = seconds > 0 ? Math.max(0, ring.dma_bytes - this.seen.bytes) / seconds : 0;
		if (!this.seen || seconds > 0) {
			this.seen = { time, bytes: ring.dma_bytes };
		}
		const filled = Math.ceil((TICKS * ring.active) / ring.entries);
		this.ticks.forEach((tick, i) => tick.classList.toggle("filled", i < filled));
		this.active.textContent = count(ring.active);
		this.of.textContent = `of ${count(ring.entries)}`;
		this.flow.classList.toggle("still", rate === 0);
		// From one turn in 12 s for a trickle to three a second for gigabytes.
		this.flow.style.animationDuration = `${(12 / (1 + Math.log10(1 + rate) ** 2 / 2.5)).toFixed(2)}s`;
		this.name.textContent = this.mine ? `${ring.name}, nymphd's own` : ring.name;
		const said = [
			["Engine", ring.engine],
			["Moved", bytes(ring.dma_bytes)],
			["Flow", `${bytes(rate)}/s`],
			["Unread", count(ring.unread)],
			["Errors", count(ring.errors)],
			["p50", ns(ring.latency_p50_ns)],
			["p99", ns(ring.latency_p99_ns)],
		];
		if (this.mine) {
			this.facts.replaceChildren(...said.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]));
		} else {
			this.facts.textContent = `${ring.engine}, ${ring.mine ? "nymphd" : `process ${ring.owner}`}. ${bytes(ring.dma_bytes)} moved, ${bytes(rate)}/s`;
		}
	}
}

const shown = new Map();

/** Of nymphd's rings, the one that carries what it is sent; the others are another engine's, or a verification's. */
export const ownRing = (status) => status.rings.find((ring) => ring.mine && ring.engine === status.engine);

export function showRings(status) {
	const { rings } = status;
	const time = Date.parse(status.time);
	const own = ownRing(status);
	const ordered = [...rings].sort((a, b) => (b === own) - (a === own));
	const first = ordered.slice(0, SHOWN);
	for (const name of [...shown.keys()]) {
		const ring = first.find((each) => each.name === name);
		if (!ring || shown.get(name).mine !== (ring === own)) {
			shown.get(name).element.remove();
			shown.delete(name);
		}
	}
	for (const ring of first) {
		if (!shown.has(ring.name)) {
			shown.set(ring.name, new Ring(ring === own));
			$("rings")[ring === own ? "prepend" : "append"](shown.get(ring.name).element);
		}
		shown.get(ring.name).update(ring, time);
	}
	$("rings-count").textContent = rings.length === 1 ? "1 open" : `${rings.length} open`;
	const more = rings.length - first.length;
	$("rings-more").textContent = more > 0 ? `and ${more} more` : "";
}
