// SPDX-License-Identifier: MIT
// How numbers, times and hashes are shown, and how elements are made. Text from the service is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";
const SI = ["", "k", "M", "G", "T", "P"];

export const $ = (id) => document.getElementById(id);

/** make("li", {className: "x"}, "text", child, ...) */
export function make(name, properties = {}, ...children) {
	const element = Object.assign(document.createElement(name), properties);
	element.append(...children);
	return element;
}

export function drawn(name, attributes = {}, ...children) {
	const element = document.createElementNS(SVG, name);
	for (const [key, value] of Object.entries(attributes)) {
		element.setAttribute(key, value);
	}
	element.append(...children);
	return element;
}

/** Set an element's text, only if it is another: what is selected stays so, and nothing is read out again. */
export function say(element, text) {
	if (element.textContent !== text) {
		element.textContent = text;
	}
}

/**
 * Have `list` show `items`, in their order. An item's element, by its key, is made once, by build(item), and then
 * only brought up to date, by its own `show(item)`.
 */
export function showAll(list, items, key, build) {
	const old = new Map(Array.from(list.children, (element) => [element.dataset.key, element]));
	let next = list.firstElementChild;
	for (const item of items) {
		const name = String(key(item));
		let element = old.get(name);
		if (!element) {
			element = build(item);
			element.dataset.key = name;
		}
		old.delete(name);
		if (element === next) {
			next = next.nextElementSibling;
		} else {
			list.insertBefore(element, next);
		}
		element.show(item);
	}
	for (const gone of old.values()) {
		gone.remove();
	}
}

/** A list of terms and values in a `dl`, brought up to date: [[term, value, isWrong], ...] */
export function showTerms(list, terms) {
	showAll(list, terms, ([term]) => term, ([term]) => {
		const value = make("dd");
		const pair = make("div", {}, make("dt", {}, term), value);
		pair.show = ([, text, isWrong]) => {
			say(value, text);
			pair.classList.toggle("wrong", Boolean(isWrong));
		};
		return pair;
	});
}

function digits(value) {
	return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
}

export function bytes(count) {
	let step = 0;
	while (count >= 1000 && step < SI.length - 1) {
		count /= 1000;
		step++;
	}
	return `${digits(count)}\u00a0${SI[step]}B`;
}

export const count = (value) => value.toLocaleString("en");

export const rate = (value) => `${value >= 1000 ? count(Math.round(value)) : digits(value)}/s`;

export function ns(value) {
	if (value < 1e6) {
		return `${digits(value / 1e3)}\u00a0µs`;
	}
	return value < 1e9 ? `${digits(value / 1e6)}\u00a0ms` : `${digits(value / 1e9)}\u00a0s`;
}

export const ms = (value) => ns(value * 1e6);

export function duration(seconds) {
	const [d, h, m] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
	if (d) {
		return `${d} d ${h} h`;
	}
	return h ? `${h} h ${m} min` : m ? `${m} min` : `${Math.floor(seconds)} s`;
}

const DAY = { day: "numeric", month: "short" };

/** The time of day, and the date unless it is today. */
export function when(time) {
	const then = new Date(time);
	const clock = then.toLocaleTimeString("en-GB");
	return then.toDateString() === new Date().toDateString() ? clock : `${then.toLocaleDateString("en-GB", DAY)}, ${clock}`;
}

/** A `time` element, whose title has the date, too. */
export function stamp(iso) {
	const title = new Date(iso).toLocaleString("en-GB", { dateStyle: "full", timeStyle: "long" });
	return make("time", { dateTime: iso, title }, when(iso));
}

/** 64 hex digits as 32 bars, so that two of them can be compared at a glance, and whole, to be copied. */
export function hash(hex) {
	const bars = drawn("svg", { viewBox: "0 0 256 20", preserveAspectRatio: "none", "aria-hidden": "true" });
	for (let i = 0; i < 32; i++) {
		const value = parseInt(hex.slice(2 * i, 2 * i + 2), 16);
		const opacity = 0.12 + (0.88 * value) / 255;
		bars.append(drawn("rect", { x: 8 * i, y: 0, width: 8, height: 20, "fill-opacity": opacity.toFixed(3) }));
	}
	return make("span", { className: "hash" }, bars, make("code", {}, hex));
}

export function light(state) {
	const element = make("span", { className: "light" });
	element.dataset.state = state;
	return element;
}
