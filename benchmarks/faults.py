"""`make faults`: what the tests of faults have measured, from the XML that pytest writes."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import defaultdict

from rich.console import Console
from rich.table import Table


def main() -> int:
    """Print a line for every figure; 1 if a test has failed."""
    figures: dict[tuple[str, str], list[str]] = defaultdict(list)
    failed = 0
    for case in ET.parse(sys.argv[1]).iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        failed += bad
        name = case.get("name", "").partition("[")[0]
        figures[name, "times passed"].append(str(int(not bad)))
        for figure in case.iter("property"):
            figures[name, figure.get("name", "")].append(figure.get("value", ""))
    table = Table("test", "figure", "values")
    for (name, figure), values in figures.items():
        if figure == "times passed":
            values = [f"{values.count('1')} of {len(values)}"]
        table.add_row(name, figure, ", ".join(values))
    Console().print(table)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
