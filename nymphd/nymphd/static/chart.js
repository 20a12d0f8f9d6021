// SPDX-License-Identifier: MIT
// Histories, which nymphd keeps, drawn by uPlot: the last five minutes, the last hour, the last day.

// The seconds shown, of which rows, and the seconds between two times on the axis.
const SPANS = {
	"5 min": [300, "hour", [60, 120]],
	hour: [3600, "hour", [600, 1200]],
	day: [86400, "day", [10800, 21600]],
};
const charts = [];
const rows = { hour: [], day: [] };
let columns = [];
let dayDue = Infinity;
let [seconds, span, steps] = SPANS["5 min"];

/** Round numbers for a logarithmic axis: powers of ten, and if that is few, two and five times these. */
function roundBetween(least, most) {
	const digits = most / least < 100 ? [1, 2, 5] : [1];
	const found = [];
	for (let ten = Math.floor(Math.log10(least)); ten <= Math.log10(most); ten++) {
		found.push(...digits.map((digit) => digit * 10 ** ten).filter((value) => value >= least && value <= most));
	}
	return found;
}

function clockAt(time) {
	const then = new Date(time * 1000);
	if (span === "day" && then.getHours() === 0 && then.getMinutes() === 0) {
		return then.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
	}
	return then.toLocaleTimeString("en-GB", seconds > 300 ? { hour: "2-digit", minute: "2-digit" } : {});
}

export class History {
	/**
	 * A chart in `box` of the columns named in `lines`, each with its colour's name in the style sheet. wide: the
	 * values are of very different sizes. show(values, columns, time): called with what is there now, or where the
	 * pointer is, then with a time; and with all.
	 */
	constructor(box, { lines, format, wide = false, show }) {
		Object.assign(this, { box, lines, format, wide, show });
		new ResizeObserver(() => this.plot?.setSize(this.size())).observe(box);
		charts.push(this);
	}

	size() {
		return { width: this.box.clientWidth, height: this.box.clientHeight };
	}

	data() {
		const last = rows.hour.at(-1)?.[0] ?? Date.now() / 1000;
		const shown = rows[span].filter((row) => row[0] > last - seconds);
		const places = ["time", ...Object.keys(this.lines)].map((name) => columns.indexOf(name));
		return places.map((place) => shown.map((row) => row[place]));
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
		const now = () => rows.hour.at(-1)?.[0] ?? Date.now() / 1000;
		const options = {
			...this.size(),
			padding: [10, 12, 0, 0],
			legend: { show: false },
			cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
			scales: {
				x: { range: () => [now() - seconds, now()] },
				y: this.wide
					? { distr: 3, range: (_, least, most) => [(least || 1e4) / 2, (most || 1e6) * 2] }
					: { range: (_, __, most) => [0, most > 0 ? most * 1.15 : 1] },
			},
			axes: [
				{ ...axis, values: (_, at) => at.map(clockAt), incrs: steps, space: 70, size: 28 },
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
				...Object.values(this.lines).map((name, i) => ({
					stroke: colour(name),
					width: 2,
					fill: i === 0 && !this.wide ? colour(`${name}-wash`) : undefined,
					// What was not measured all the time is points with lines between them.
					spanGaps: this.wide,
					points: { show: this.wide && seconds === 300, size: 4, fill: colour(name) },
				})),
			],
			hooks: { setCursor: [(plot) => this.say(plot.cursor.idx)] },
		};
		this.plot = new uPlot(options, this.data(), this.box);
		this.say(null);
	}

	refresh() {
		if (!this.plot) {
			this.draw();
			return;
		}
		this.plot.setData(this.data());
		if (this.plot.cursor.idx == null || this.plot.cursor.left < 0) {
			this.say(null);
		}
	}

	/** Have what was there at a point of the chart shown, or what is there now. */
	say(index) {
		const [times, ...values] = this.plot.data;
		const at = index ?? times.length - 1;
		if (at >= 0 && at < times.length) {
			this.show(values.map((column) => column[at]), values, index == null ? null : times[at] * 1000);
		}
	}
}

async function load(ask, wanted) {
	const found = await ask(`/history?span=${wanted}`);
	columns = found.columns;
	rows[wanted] = found.rows;
}

/** Have all charts show what nymphd has kept. */
export async function loadHistory(ask) {
	await Promise.all([load(ask, "hour"), load(ask, "day")]);
	dayDue = 0;
	charts.forEach((chart) => chart.refresh());
}

/** The newest second: `rates` of /status, which has a row's values by name. */
export function addToHistory(ask, rates) {
	columns = Object.keys(rates);
	const newest = rows.hour.at(-1)?.[0] ?? 0;
	if (rates.time <= newest) {
		return;
	}
	rows.hour.push(Object.values(rates));
	while (rows.hour[0][0] < rates.time - 3600) {
		rows.hour.shift();
	}
	charts.forEach((chart) => chart.refresh());
	if (rates.time >= dayDue) {
		dayDue = rates.time + 60;
		load(ask, "day").catch(() => {}); // as good as it is until the next minute
	}
}

/** Show what the reader chooses of SPANS, by the radio buttons in `box`. */
export function chooseSpan(box) {
	box.addEventListener("change", (event) => {
		[seconds, span, steps] = SPANS[event.target.value];
		charts.forEach((chart) => chart.draw());
	});
}

const redraw = () => charts.forEach((chart) => chart.plot && chart.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.fonts.ready.then(redraw);
