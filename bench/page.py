# SPDX-License-Identifier: MIT
"""Shows a bench.json to people.

report.html has every section, with the meaning of its figures, a plot and tables. It loads nothing else.
performance.md has what a reader of the documentation needs: docs/explanation/performance.md is a copy of it.
"""

from __future__ import annotations

import io
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report import human

TEMPLATES = Path(__file__).parent
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Those of Okabe and Ito, which the colour-blind tell apart."""
WIDE_MARK = " ?"
IN_SUMMARY = ("equal", "instead")
"""The sections of performance.md."""
IN_SUMMARY_BYTES = (64, 4 << 10, 64 << 10, 1 << 20)
"""The sizes of its table of BLAKE3."""
SECTIONS = tomllib.loads((TEMPLATES / "sections.toml").read_text())

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "pynymph",  # the same figures make the same file
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "axes.prop_cycle": cycler(color=COLOURS),
        "font.size": 9,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
)

Figures = list[dict[str, Any]]


@dataclass
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]


@dataclass
class Section:
    name: str
    """Its key in sections.toml."""
    plot: Figure | None = None
    tables: list[Table] = field(default_factory=list)

    @property
    def title(self) -> str:
        return str(SECTIONS[self.name]["title"])

    @property
    def meaning(self) -> str:
        """What the figures mean: one paragraph, with *this* and `that`."""
        return " ".join(SECTIONS[self.name]["meaning"].split())

    @property
    def svg(self) -> Markup:
        """The plot, to stand inside a page."""
        assert self.plot
        text = io.StringIO()
        self.plot.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        found = text.getvalue()
        # ids are of a file, and a page has several
        found = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{self.name}-", found[found.index("<svg") :])
        return Markup(found)


# --- how numbers are said ---


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9)):
        if value * factor >= 1 or unit == "ns":
            return f"{value * factor:.3g} {unit}"
    raise AssertionError


def rate(value: float | None) -> str:
    """Bytes per second."""
    if value is None:
        return "-"
    return f"{value / 1e9:.3g} GB/s" if value >= 1e9 else f"{value / 1e6:.3g} MB/s"


def times(found: dict[str, Any]) -> str:
    """A ratio, with its interval."""
    value, low, high = map(_number, (found["value"], *found["interval"]))
    return f"{value} ({low} to {high}){WIDE_MARK * found['wide']}"


def _number(value: float) -> str:
    """With as many digits as say something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def way(parameters: dict[str, Any], *without: str) -> str:
    """Who does what, and how."""
    said = [str(parameters.get("client", ""))]
    path = parameters.get("path")
    said += [str(path)] if path and path != said[0] else []
    if "what" in parameters and "what" not in without:
        said.append(
            f"({parameters['what']})" if path != "memmove" and path != "io_uring" else parameters["what"]
        )
    if parameters.get("engine") not in (None, "none") and "engine" not in without:
        said.append(f"on {parameters['engine']}")
    return " ".join(filter(None, said))


# --- what is plotted ---


def _select(figures: Figures, group: str, **parameters: Any) -> Figures:
    return [
        each
        for each in figures
        if each["group"] == group
        and each["value"] is not None
        and all(each["parameters"].get(key) == value for key, value in parameters.items())
    ]


def _distinct(figures: Figures, name: str) -> list[Any]:
    return list(dict.fromkeys(each["parameters"][name] for each in figures if name in each["parameters"]))


def _axes(count: int, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    plot = Figure(figsize=(4.6 * count, height), layout="constrained")
    return plot, list(plot.subplots(1, count, sharey=True, squeeze=False)[0])


def _line(
    axes: Axes, rows: Figures, axis: str, label: str, y: Callable[[float, dict[str, Any]], float]
) -> None:
    """Medians, and their intervals as a band; `y` makes of a value of a figure what is shown."""
    rows = sorted(rows, key=lambda row: int(row["parameters"][axis]))
    x = [row["parameters"][axis] for row in rows]
    (drawn,) = axes.plot(x, [y(row["value"], row) for row in rows], marker="o", markersize=3, label=label)
    low, high = zip(*(sorted(y(each, row) for each in row["interval"]) for row in rows), strict=True)
    axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)


def _sizes_on(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    shown = sizes if len(sizes) < 7 else sizes[::2]
    axes.set_xticks(shown, [human(size).replace("iB", "") for size in shown])
    axes.minorticks_off()
    axes.set_xlabel("bytes of each")


def _dots(axes: Axes, rows: Sequence[tuple[str, dict[str, Any]]], base: str) -> None:
    """Ratios with intervals, one below the other."""
    for place, (_, found) in enumerate(rows):
        value, (low, high) = found["value"], found["interval"]
        colour = COLOURS[7] if found["wide"] else COLOURS[0]
        axes.errorbar(
            value, place, xerr=[[max(0, value - low)], [max(0, high - value)]], fmt="o", markersize=4,
            color=colour, capsize=2,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(f"times as fast as {base}\n(grey: too wide an interval)")


def _sizes(report: dict[str, Any]) -> Section:
    figures = _select(report["figures"], "size", path="enter")
    section = Section("sizes")
    engines = _distinct(figures, "engine")
    if not figures:
        return section
    section.plot, panels = _axes(len(engines))
    for axes, engine in zip(panels, engines, strict=True):
        for what in _distinct(figures, "what"):
            rows = _select(figures, "size", engine=engine, what=what)
            if len(rows) > 1:
                _line(axes, rows, "bytes", what, lambda value, row: row["parameters"]["bytes"] / value / 1e6)
        axes.set_title(f"on {engine}")
        axes.set_yscale("log")
        _sizes_on(axes, sorted(set(_distinct(figures, "bytes"))))
    panels[0].set_ylabel("MB/s")
    section.plot.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    for engine in engines:
        whats = _distinct(_select(figures, "size", engine=engine), "what")
        lines = []
        for size in sorted(set(_distinct(figures, "bytes"))):
            found = {
                each["parameters"]["what"]: each
                for each in _select(figures, "size", engine=engine, bytes=size)
            }
            cells = [
                rate(found[what]["bytes_per_s"]) + WIDE_MARK * found[what]["wide"] if what in found else "-"
                for what in whats
            ]
            lines.append([human(size), *cells])
        section.tables.append(Table(f"on {engine}", ["bytes", *whats], lines))
    lines = [
        [
            human(each["parameters"]["bytes"]),
            each["parameters"]["engine"],
            each["parameters"]["what"],
            f"{each['cpu_s_per_gib']:.3g} s",
            f"{each['interrupts_per_operation']:,.2f}",
            f"{each['interrupts_per_s']:,.0f}",
        ]
        for each in figures
        if each["parameters"]["what"] in ("copy", "copy, verify")
    ]
    head = [
        "bytes",
        "engine",
        "what",
        "CPU time per GiB",
        "interrupts per operation",
        "interrupts per second",
    ]
    section.tables.append(Table("What it costs", head, lines))
    return section


def _latency(report: dict[str, Any]) -> Section:
    figures = _select(report["figures"], "size", path="enter-1")
    section = Section("latency")
    if not figures:
        return section
    engines = _distinct(figures, "engine")
    section.plot, panels = _axes(len(engines))
    for axes, engine in zip(panels, engines, strict=True):
        for what, colour in zip(("copy", "copy, verify"), COLOURS, strict=False):
            rows = sorted(
                _select(figures, "size", engine=engine, what=what),
                key=lambda row: int(row["parameters"]["bytes"]),
            )
            for quantile, style in (("p50", "-"), ("p99", ":")):
                known = [row for row in rows if row["latency"][f"{quantile}_s"]]
                axes.plot(
                    [row["parameters"]["bytes"] for row in known],
                    [row["latency"][f"{quantile}_s"] * 1e6 for row in known],
                    style, color=colour, marker="o", markersize=3, label=f"{what}, {quantile}",
                )  # fmt: skip
        axes.set_title(f"on {engine}")
        axes.set_yscale("log")
        _sizes_on(axes, sorted(set(_distinct(figures, "bytes"))))
    panels[0].set_ylabel("µs")
    panels[0].legend(loc="upper left")
    quantiles = ("p50", "p95", "p99", "p99.9", "max")
    lines = [
        [
            human(each["parameters"]["bytes"]),
            each["parameters"]["engine"],
            each["parameters"]["what"],
            str(each["latency"]["count"]),
            *(seconds(each["latency"][f"{quantile}_s"]) for quantile in quantiles),
        ]
        for each in figures
    ]
    section.tables.append(Table("", ["bytes", "engine", "what", "timed", *quantiles], lines))
    return section


def ratios(report: dict[str, Any], group: str, same: Sequence[str]) -> dict[tuple[Any, ...], list[Any]]:
    """Of a group, by what they have in common: pairs of a figure and its ratio."""
    by_id = {each["id"]: each for each in report["figures"]}
    found: dict[tuple[Any, ...], list[Any]] = {}
    for ratio in report["ratios"]:
        if ratio["group"] == group:
            figure = by_id[ratio["of"]]
            found.setdefault(tuple(figure["parameters"].get(key) for key in same), []).append((figure, ratio))
    return found


def by_way(found: dict[tuple[Any, ...], list[Any]], *without: str) -> dict[str, dict[tuple[Any, ...], Any]]:
    """The same, turned: the ratios of each way."""
    turned: dict[str, dict[tuple[Any, ...], Any]] = {}
    for key, pairs in found.items():
        for figure, ratio in pairs:
            turned.setdefault(way(figure["parameters"], *without), {})[key] = ratio
    return turned


def _compared(
    report: dict[str, Any], section: Section, group: str, same: Sequence[str], base: str,
    title: Callable[[Any], str], *without: str,
) -> Section:  # fmt: skip
    """A section of ratios within a group: dots, and a table."""
    found = ratios(report, group, same)
    if not found:
        return section
    most = max(map(len, found.values()))
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    section.plot = Figure(figsize=(5.8 * columns, (0.8 + 0.21 * most) * lines), layout="constrained")
    panels = list(section.plot.subplots(lines, columns, squeeze=False, sharex=True).flat)
    for axes, (key, pairs) in zip(panels, found.items(), strict=False):
        _dots(axes, [(way(figure["parameters"], *without), ratio) for figure, ratio in pairs], base)
        axes.set_title(title(key))
    for axes in panels[len(found) :]:
        axes.axis("off")
    rows = [
        [name, *(times(cells[key]) if key in cells else "-" for key in found)]
        for name, cells in by_way(found, *without).items()
    ]
    section.tables.append(Table(f"Times as fast as {base}", ["", *map(title, found)], rows))
    return section


def _paths(report: dict[str, Any]) -> Section:
    section = Section("paths")
    return _compared(
        report,
        section,
        "path",
        ("bytes", "engine"),
        "C submit",
        lambda key: f"{human(key[0])} on {key[1]}",
        "engine",
    )


def _instead(report: dict[str, Any]) -> Section:
    section = Section("instead")
    return _compared(
        report, section, "instead", ("bytes",), "memmove, then blake3", lambda key: f"{human(key[0])}"
    )


def _equal(report: dict[str, Any]) -> Section:
    base = "the same work in user space"
    return _compared(report, Section("equal"), "equal", ("bytes",), base, lambda key: human(key[0]), "engine")


def _depth(report: dict[str, Any]) -> Section:
    figures = _select(report["figures"], "depth")
    section = Section("depth")
    if figures:
        section.plot, (axes,) = _axes(1)
        for engine in _distinct(figures, "engine"):
            for client in _distinct(figures, "client"):
                rows = _select(figures, "depth", engine=engine, client=client)
                _line(axes, rows, "depth", way(rows[0]["parameters"]), lambda value, row: value * 1e6)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        depths = sorted(set(_distinct(figures, "depth")))
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.minorticks_off()
        axes.set_xlabel("copies queued at once")
        axes.set_ylabel("µs for each")
        axes.legend()
    return section


def _parallel(report: dict[str, Any]) -> Section:
    groups = [group for group in ("rings", "processes", "channels") if _select(report["figures"], group)]
    section = Section("parallel")
    if not groups:
        return section
    section.plot, panels = _axes(len(groups))
    for axes, group in zip(panels, groups, strict=True):
        figures = _select(report["figures"], group)
        several = [each for each in _distinct(figures, "engine") if group != "channels"] or [None]
        for engine in several:
            rows = sorted(
                (each for each in figures if engine in (None, each["parameters"]["engine"])),
                key=lambda each: int(each["parameters"][group]),
            )
            one = rows[0]["value"]
            _line(axes, rows, group, engine or "DMA channels", lambda value, row, one=one: one / value)  # type: ignore[misc]
        counts = sorted(set(_distinct(figures, group)))
        axes.plot(counts, counts, ":", color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_yscale("log", base=2)
        axes.minorticks_off()
        axes.set_xlabel(group)
        axes.legend()
    panels[0].set_ylabel("times as much as one")
    panels[0].yaxis.set_major_formatter("{x:g}")
    lines = [
        [
            each["id"],
            "as many" if not each["bend"] else f"falls short at {each['bend']['at']}",
            each["bend"]["because"] if each["bend"] else "-",
        ]
        for each in report["scaling"]
        if each["group"] in groups
    ]
    section.tables.append(Table("Where it bends", ["", "", "what ran out"], lines))
    return section


def _fairness(report: dict[str, Any]) -> Section:
    rows = [
        [
            each["parameters"]["engine"],
            each["parameters"]["beside"],
            *(seconds(each["latency"][f"{quantile}_s"]) for quantile in ("p50", "p95", "p99", "max")),
        ]
        for each in _select(report["figures"], "fairness")
    ]
    section = Section("fairness")
    if rows:
        head = ["engine", "beside", "p50", "p95", "p99", "max"]
        section.tables.append(Table("A copy of 4 KiB, as its client sees it", head, rows))
    slower = [
        [key[0], figure["parameters"]["beside"], times(ratio)]
        for key, pairs in ratios(report, "fairness", ("engine",)).items()
        for figure, ratio in pairs
    ]
    if slower:
        section.tables.append(Table("Times as fast as alone", ["engine", "beside", ""], slower))
    return section


def _set_up(report: dict[str, Any]) -> Section:
    section = Section("set-up")
    rows = [
        [
            way(each["parameters"]),
            str(each["parameters"].get("entries", "-")),
            human(each["parameters"]["bytes"])
            if each["parameters"].get("path") in ("allocate", "register")
            else "-",
            seconds(each["value"]) + WIDE_MARK * each["wide"],
        ]
        for each in _select(report["figures"], "set-up")
    ]
    if rows:
        section.tables.append(Table("", ["", "entries", "bytes", "takes"], rows))
    memory = _select(report["figures"], "memory")
    if memory:
        section.plot, (axes,) = _axes(1)
        for engine in _distinct(memory, "engine"):
            _line(
                axes,
                _select(memory, "memory", engine=engine),
                "entries",
                f"on {engine}",
                lambda value, row: value / 1024,
            )
        axes.set_xlabel("entries of a ring")
        axes.set_ylabel("KiB for each ring")
        axes.legend()
    return section


def _infer(report: dict[str, Any]) -> Section:
    rows = [
        [
            each["parameters"]["what"],
            human(each["parameters"]["bytes"]),
            seconds(each["value"]) + WIDE_MARK * each["wide"],
            f"{each['tokens_per_s']:.0f}",
        ]
        for each in _select(report["figures"], "infer")
    ]
    return Section(
        "infer", None, [Table("", ["", "bytes", "takes", "tokens per second"], rows)] if rows else []
    )


def _nulls(report: dict[str, Any]) -> Section:
    rows = [[each["id"], each["because"]] for each in report["figures"] if each["value"] is None]
    return Section("nulls", None, [Table("", ["", "because"], rows)] if rows else [])


def sections(report: dict[str, Any]) -> list[Section]:
    makers = (
        _sizes,
        _latency,
        _equal,
        _instead,
        _paths,
        _depth,
        _parallel,
        _fairness,
        _set_up,
        _infer,
        _nulls,
    )
    return [each for each in (make(report) for make in makers) if each.plot or each.tables]


def _native(blake3: dict[str, Any] | None, sizes: Sequence[int] | None = None) -> list[Table]:
    """Make tables of what bench/native_blake3.py measured natively: of all sizes, or of these."""
    if not blake3 or blake3["failures"]:
        return []
    variants = blake3["variants"]
    by_size: dict[int, dict[str, dict[str, Any]]] = {}
    for row in blake3["rows"]:
        if row["series"] == "hash" and (sizes is None or row["bytes"] in sizes):
            by_size.setdefault(row["bytes"], {})[row["variant"]] = row

    def cell(row: dict[str, Any]) -> str:
        speed = row["bytes"] * row.get("times", 1) / max(row["ns"]["ours"], 1)
        ratio = row["ratio"].get("official")
        return f"{speed:.2f} GB/s" + (f", {ratio:.2f}" if ratio else "")

    rows = [
        [human(size), *(cell(found[name]) for name in variants)] for size, found in sorted(by_size.items())
    ]
    official = (
        f"times as fast as the official C {blake3['official']}"
        if blake3["official"]
        else "official C not here"
    )
    title = f"kernel/blake3 built for user space, natively on {blake3['cpu']}: GB/s, {official}"
    tables = [Table(title, ["bytes", *variants], rows)]
    copies = [
        [row["variant"], human(row["bytes"]), f"{1 / row['ratio']['hash alone']:.2f}",
         f"{row['ratio']['official']:.2f}" if "official" in row["ratio"] else "-"]
        for row in blake3["rows"] if row["series"] == "copy"
    ]  # fmt: skip
    head = ["variant", "bytes", "cost, hashing alone being 1", "times as fast as memmove, then official C"]
    tables.append(Table("copy and hash in one pass, natively", head, copies))
    return tables


def write(report: dict[str, Any], blake3: dict[str, Any] | None, folder: Path) -> None:
    """Write report.html and performance.md into `folder`."""
    shown = sections(report)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["emphasized"] = _emphasized
    environment.filters["times"] = times
    environment.filters["seconds"] = seconds
    for name in ("report.html", "performance.md"):
        text = environment.get_template(f"{name}.j2").render(
            report=report,
            sections=shown,
            summary=[each for each in shown if each.name in IN_SUMMARY],
            native=_native(blake3),
            native_summary=_native(blake3, IN_SUMMARY_BYTES),
            wide=wide(report["figures"]),
            engines=_devices(report["engines"]),
        )
        (folder / name).write_text(text)


def _devices(engines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Names of engines, and what ran; those of one device together."""
    names: dict[str, list[str]] = {}
    for each in engines:
        names.setdefault(each["ran"], []).append(each["name"])
    return [(", ".join(found), ran) for ran, found in names.items()]


def wide(figures: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """How many figures have too wide an interval, and of how many."""
    known = [each for each in figures if each["value"] is not None]
    return sum(each["wide"] for each in known), len(known)


def _emphasized(text: str) -> Markup:
    """Markdown's *this* and `that`, as HTML."""
    escaped = str(Markup.escape(text))
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", re.sub(r"\*(.+?)\*", r"<em>\1</em>", escaped)))
