"""Every module equals the published model's behaviour (method.md section 10)."""

from __future__ import annotations

from pathlib import Path

import pytest

from nurie.checkpoints.parity import ParityRow, check_parity

REFERENCE = Path(__file__).parents[3] / "shared" / "parity" / "reference_tiny.safetensors"


@pytest.fixture(scope="module")
def rows() -> list[ParityRow]:
    if not REFERENCE.exists():
        pytest.skip(f"numeric references absent: {REFERENCE}")
    return list(check_parity(REFERENCE))


def test_every_output_is_within_tolerance(rows: list[ParityRow]) -> None:
    for row in rows:
        print(f"{row.name:28s} max abs {row.max_abs:.2e}  relative L2 {row.relative_l2:.2e}")
    assert len(rows) >= 30
    assert [row.name for row in rows if not row.ok] == []
