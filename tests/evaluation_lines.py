"""Answer lines without a model behind them."""

from __future__ import annotations

from typing import Any

SUBJECT = "<Nz>"


def lines_of(right: float, n: int = 20, subject: str = SUBJECT) -> list[dict[str, Any]]:
    """2 n existence lines, one per clip, the first half with the subject; `right` of each side answered rightly."""
    lines = []
    for i in range(2 * n):
        present = i < n
        says = present == (i % n < right * n)
        lines.append(
            {
                "qa_id": str(i), "video_id": str(i), "subject": subject, "split": "test", "category": "existence",
                "question": f"Is {subject} here?", "gold": "Yes." if present else "No.", "source": "template",
                "present": present, "origin": "user" if present else "hard_negative",
                "answer": "Yes." if says else "No.", "margin": 1.0 if says else -1.0,
            }
        )  # fmt: skip
    return lines
