# SPDX-License-Identifier: MIT
"""Adding up what gcov says of several objects."""

from nymph_vm.coverage import SOURCES, Coverage, summarize, total


def _object(name: str, *lines: tuple[int, int, list[int]]) -> dict[str, object]:
    return {
        "files": [
            {
                "file": name,
                "lines": [
                    {"line_number": number, "count": count, "branches": [{"count": way} for way in ways]}
                    for number, count, ways in lines
                ],
            }
        ]
    }


def test_header_of_two_objects_counts_once() -> None:
    files = summarize(
        [
            _object(f"{SOURCES}a.h", (1, 0, [0, 0]), (2, 3, [])),
            _object(f"{SOURCES}a.h", (1, 5, [5, 0]), (2, 0, [])),
            _object(f"{SOURCES}b.c", (7, 0, [])),
        ]
    )
    assert files == {"a.h": Coverage(2, 2, 1, 2), "b.c": Coverage(0, 1, 0, 0)}
    assert total(files) == Coverage(2, 3, 1, 2)
    assert total(files).as_json()["line_percent"] == 66.67


def test_other_code_is_left_out() -> None:
    names = ("include/linux/list.h", f"{SOURCES}pcie_nymph/kunit_ring.c")
    assert summarize([_object(name, (1, 1, [])) for name in names]) == {}
