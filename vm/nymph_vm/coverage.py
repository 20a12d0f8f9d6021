# SPDX-License-Identifier: MIT
"""How much of the module's code ran, from what gcov counted in a debug kernel."""

import json
import tarfile
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from nymph_vm import build, project, root
from nymph_vm.host import HarnessError, step

SOURCES = "/tmp/build/kernel/"  # where the module was built
TESTS = "pcie_nymph/kunit"  # start of the names of tests, which are no code to be tested

SCRIPT = """
    tar -xf counts.tar
    mkdir out
    for file in $(find kernel -name '*.gcda' ! -name '*.mod.gcda'); do
        gcov --json-format --branch-probabilities --stdout "$file" > out/$(basename "$file").json
    done"""


@dataclass(frozen=True)
class Coverage:
    """Of one file: how many of its lines, and of the ways its branches can go, were taken."""

    lines: int
    all_lines: int
    branches: int
    all_branches: int

    def as_json(self) -> dict[str, float]:
        """With per cents; of nothing, all is covered."""
        parts = {"line": (self.lines, self.all_lines), "branch": (self.branches, self.all_branches)}
        percent = {
            f"{kind}_percent": round(100 * part / of, 2) if of else 100.0
            for kind, (part, of) in parts.items()
        }
        return asdict(self) | percent


def report(kernel: str, counts: Path) -> dict[str, Coverage]:
    """The coverage of each source file of the module, from the tar that Machine.gcov() made."""
    ours = project.pynymph()
    built = ours.build / kernel / ours.source.name
    with tempfile.TemporaryFile() as archive, tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path in build.module_sources(ours.source):
                tar.add(path, path.relative_to(ours.folder))
            for path in built.rglob("*.gcno"):
                tar.add(path, path.relative_to(built))
            tar.add(counts, "counts.tar")
        archive.seek(0)
        disk = root.prepare()
        with step("gcov"):
            root.run_inside(disk, {}, SCRIPT, archive, Path(folder))
        files = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    found = summarize(files)
    if not found:
        raise HarnessError("gcov found nothing of the module")
    return found


def summarize(objects: list[dict[str, object]]) -> dict[str, Coverage]:
    """Add up gcov's JSON, one for each object; what several objects have of a header counts once."""
    lines: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    branches: dict[str, dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
    for each in objects:
        for file in each["files"]:  # type: ignore[attr-defined]
            name = file["file"].removeprefix(SOURCES)
            if name == file["file"] or name.startswith(TESTS):
                continue
            for line in file["lines"]:
                lines[name][line["line_number"]] += line["count"]
                for number, branch in enumerate(line["branches"]):
                    branches[name][line["line_number"], number] += branch["count"]
    return {
        name: Coverage(
            *(sum(map(bool, lines[name].values())), len(lines[name])),
            *(sum(map(bool, branches[name].values())), len(branches[name])),
        )
        for name in sorted(lines)
    }


def total(files: dict[str, Coverage]) -> Coverage:
    """All files as one."""
    every = list(files.values())
    return Coverage(
        *(sum(file.lines for file in every), sum(file.all_lines for file in every)),
        *(sum(file.branches for file in every), sum(file.all_branches for file in every)),
    )
