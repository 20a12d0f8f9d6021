// SPDX-License-Identifier: MIT
// Histories, of five minutes at most, drawn by uPlot.

const SECONDS = 300;
const FIRST_SECONDS = 60; // so that a page just opened is not all empty
const charts = [];

/** Round numbers for a logarithmic axis: powers of ten, and if that is few, two and five times these. */
function roundBetween(least, most) {
	const steps = most / least < 100 ? [1, 2, 5] : [1];
	const found = [];
	for (let ten = Math.floor(Math.log10(least)); ten <= Math.log10(most); ten++) {
		found.push(...steps.map((step) => step * 10 ** ten).filter((value) => value >= least && value <= most));
	}
	return found;
}

export class History {
	/**
	 * A chart in `box`. lines: the colour, by its name in the style sheet, of each. wide: the values are of very
	 * different sizes. show(values, columns): called with what is there now, or where the pointer is, and with all.
	 */
	constructor(box, { lines, format, wide = false, show }) {
		Object.assign(this, { box, lines, format, wide, show });
		this.data = Array.from({ length: lines.length + 1 }, () => []);
		new ResizeObserver(() => this.plot?.setSize(this.size())).observe(box);
		charts.push(this);
		this.draw();
	}

	size() {
		return { width: this.box.clientWidth, height: this.box.clientHeight };
	}

	draw() {
		this.plot?.destroy();
		const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
		const axis = {
			stroke: colour("soft"),
			font: "12px Geist, system-ui, sans-serif",
			grid: { stroke: colour("line"), width: 1 },
			ticks: { show: false },
		};
		const now = () => this.data[0].at(-1) ?? Date.now() / 1000;
		const span = () => Math.min(Math.max(now() - (this.data[0][0] ?? now()), FIRST_SECONDS), SECONDS);
		const step = () => (span() > 150 ? 60 : span() > 75 ? 30 : 15);
		const ago = (seconds) => (seconds < 0.5 ? "now" : seconds < 119 ? `−${Math.round(seconds)} s` : `−${Math.round(seconds / 60)} min`);
		const even = [0, 1, 2, 3, 4, 5];
		const options = {
			...this.size(),
			padding: [10, 12, 0, 0],
			legend: { show: false },
			cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
			scales: {
				x: { time: false, range: () => [now() - span(), now()] },
				y: this.wide
					? { distr: 3, range: (_, least, most) => [(least || 1e4) / 2, (most || 1e6) * 2] }
					: { range: (_, __, most) => [0, most > 0 ? most * 1.15 : 1] },
			},
			axes: [
				{
					...axis,
					splits: () => even.map((i) => now() - i * step()).reverse().filter((x) => x >= now() - span() - 0.5),
					values: (_, at) => at.map((x) => ago(now() - x)),
					space: 40,
					size: 28,
				},
				{
					...axis,
					...(this.wide && { splits: (_, __, least, most) => roundBetween(least, most) }),
					values: (_, at) => at.map((value) => (value ? this.format(value) : "0")),
					filter: (_, at) => at,
					size: 68,
					space: 40,
				},
			],
			series: [
				{},
				...this.lines.map((name, i) => ({
					stroke: colour(name),
					width: 2,
					fill: i === 0 && !this.wide ? colour(`${name}-wash`) : undefined,
					points: { show: false },
				})),
			],
			hooks: { setCursor: [(plot) => this.say(plot.cursor.idx)] },
		};
		this.plot = new uPlot(options, this.data, this.box);
	}

	add(seconds, ...values) {
		[seconds, ...values].forEach((value, i) => this.data[i].push(value));
		while (this.data[0][0] < seconds - SECONDS) {
			this.data.forEach((column) => column.shift());
		}
		this.plot.setData(this.data);
		if (this.plot.cursor.idx == null || this.plot.cursor.left < 0) {
			this.say(null);
		}
	}

	/** Have what was there at a point of the chart shown, or what is there now. */
	say(index) {
		const at = index ?? this.data[0].length - 1;
		if (at >= 0 && at < this.data[0].length) {
			this.show(this.data.slice(1).map((column) => column[at]), this.data.slice(1));
		}
	}
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.draw()));
document.fonts.ready.then(() => charts.forEach((chart) => chart.draw()));
