// SPDX-License-Identifier: MIT
// Histories of the last five minutes, drawn by uPlot.

const SECONDS = 300;
const charts = [];

export class History {
	/** A chart in `box`. lines: the colour, by its name in the style sheet, of each. show: what `at` the values there to say. */
	constructor(box, lines, format, show) {
		Object.assign(this, { box, lines, format, show });
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
		const options = {
			...this.size(),
			padding: [10, 12, 0, 0],
			legend: { show: false },
			cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
			scales: {
				x: { time: false, range: () => [now() - SECONDS, now()] },
				y: { range: (_, __, most) => [0, most > 0 ? most * 1.15 : 1] },
			},
			axes: [
				{
					...axis,
					splits: () => [5, 4, 3, 2, 1, 0].map((minutes) => now() - 60 * minutes),
					values: (_, at) => at.map((x, i) => (i === at.length - 1 ? "now" : `−${Math.round((now() - x) / 60)} min`)),
					space: 40,
					size: 28,
				},
				{ ...axis, values: (_, at) => at.map((value) => (value ? this.format(value) : "0")), size: 72, space: 44 },
			],
			series: [
				{},
				...this.lines.map((name, i) => ({
					stroke: colour(name),
					width: 2,
					fill: i === 0 ? colour(`${name}-wash`) : undefined,
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
