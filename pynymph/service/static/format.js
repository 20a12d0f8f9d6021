// SPDX-License-Identifier: MIT
// How numbers and hashes are shown, and how elements are made. Text from the service is only ever set as text.

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

export const clock = (iso) => new Date(iso).toLocaleTimeString("en-GB");

/** Hashes in a text, cut down to their ends. */
export const brief = (text) => text.replace(/\b([0-9a-f]{8})[0-9a-f]{48}([0-9a-f]{8})\b/g, "$1…$2");

/** 64 hex digits as 32 bars, so that two of them can be compared at a glance, and their two ends as text. */
export function hash(hex) {
	const bars = drawn("svg", { viewBox: "0 0 256 20", preserveAspectRatio: "none", "aria-hidden": "true" });
	for (let i = 0; i < 32; i++) {
		const value = parseInt(hex.slice(2 * i, 2 * i + 2), 16);
		const opacity = 0.12 + (0.88 * value) / 255;
		bars.append(drawn("rect", { x: 8 * i, y: 0, width: 8, height: 20, "fill-opacity": opacity.toFixed(3) }));
	}
	return make("span", { className: "hash", title: hex }, bars, make("code", {}, brief(hex)));
}

export function light(state) {
	const element = make("span", { className: "light" });
	element.dataset.state = state;
	return element;
}
