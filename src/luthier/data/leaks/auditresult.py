"""What an audit found: its settings, its hits with both texts, and its counts, in words and as records.

Knows figures and excerpts; refuses to know how they were found and how a page shows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from luthier.data.leaks.stretches import Excerpt

KINDS = ("group", "exact", "near", "ngram", "media")
WHOLE_WORDS = 5
"""Words from which a text counts where it stands whole inside another."""


@dataclass(frozen=True)
class AuditSettings:
    """What is looked at, and from where on two texts touch."""

    split: str = "train"
    """The table's rows that are looked at; "" for all."""
    against_split: str = ""
    """Of another table: the rows that are looked for; "" for all."""
    ngram: int = 13
    """Words in a row that two texts may not share."""
    near: float = 0.8
    """Jaccard similarity of three-word shingles from which a text is a near copy."""
    shown: int = 5
    """Hits of one kind that are kept with their texts for each item; all are counted."""
    siblings: int = 20
    """Siblings that are kept with their texts; all are counted."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that touches an item. `score`: Jaccard similarity of near, words of the run of ngram and exact, else 1."""

    kind: str
    row: str
    source: str
    row_origin: str
    item: str
    item_origin: str
    score: float
    row_text: Excerpt
    item_text: Excerpt

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class AuditResult:
    """What an audit found; all counts are exact, `hits` and `siblings` are what is kept to be shown."""

    table: str
    against: str
    settings: AuditSettings
    read_as: str
    rows: int = 0
    items: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    """Reason -> items that could not be read."""
    unread: list[tuple[str, str, str]] = field(default_factory=list)
    """(origin, reason, detail) of each of them."""
    pairs: dict[str, int] = field(default_factory=dict)
    """Kind -> pairs of a row and an item."""
    touched: dict[str, dict[str, int]] = field(default_factory=dict)
    """Item id -> kind -> rows that touch it, in the exam's order."""
    origins: dict[str, str] = field(default_factory=dict)
    """Item id -> where it stands, for the touched ones."""
    hits: list[Hit] = field(default_factory=list)
    sibling_pairs: int = 0
    siblings: list[Hit] = field(default_factory=list)
    boilerplate: int = 0
    """Different n-grams that too many items share to count."""
    boilerplate_samples: list[str] = field(default_factory=list)
    boilerplate_items: int = 0
    """Items made of boilerplate alone: of these only whole and near copies are found."""
    too_short: int = 0
    """Items of so few words that only an equal turn, or nothing, could show a copy."""

    @property
    def share(self) -> float:
        """Touched items of all readable ones."""
        return len(self.touched) / self.items if self.items else 0.0

    @cached_property
    def items_by_kind(self) -> dict[str, int]:
        """Kind -> items that it touches."""
        return {kind: sum(kind in kinds for kinds in self.touched.values()) for kind in KINDS}

    def to_json(self) -> dict[str, Any]:
        """The figures and the ids of all touched items; without the hits' texts."""
        return {
            "table": self.table,
            "against": self.against,
            "settings": asdict(self.settings),
            "read_as": self.read_as,
            "rows": self.rows,
            "items": self.items,
            "unreadable": self.unreadable,
            "pairs": self.pairs,
            "items_by_kind": self.items_by_kind,
            "touched": len(self.touched),
            "share": self.share,
            "touched_items": list(self.touched),
            "siblings": self.sibling_pairs,
            "boilerplate": self.boilerplate,
            "boilerplate_items": self.boilerplate_items,
            "too_short": self.too_short,
        }

    def lines(self) -> list[str]:
        """The result in words."""
        found = [
            f"{self.rows:,} rows of {self.table} against {self.items:,} items of {self.against} ({self.read_as})",
            *(
                f"  {kind:<6} {self.items_by_kind[kind]:>7,} items  {self.pairs[kind]:>9,} pairs of a row and an item"
                for kind in KINDS
            ),
            f"  {len(self.touched):,} items are touched ({self.share:.1%})",
            f"  {self.sibling_pairs:,} pairs look like fillings of one template (names, numbers or a word differ)",
        ]
        if self.unreadable:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.unreadable.items())
            found.append(f"  {sum(self.unreadable.values()):,} items could not be read: {reasons}")
        if self.boilerplate:
            found.append(f"  {self.boilerplate:,} {self.settings.ngram}-grams are in too many items and do not count")
        if self.too_short:
            found.append(f"  {self.too_short:,} items have fewer than {WHOLE_WORDS} words: only an equal turn counts")
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        """One record for the audit, then one for each touched item, hit, sibling and unreadable item."""
        yield {"record": "audit", **self.to_json()}
        for identity, kinds in self.touched.items():
            yield {"record": "item", "item": identity, "origin": self.origins[identity], "kinds": kinds}
        for record, hits in (("hit", self.hits), ("sibling", self.siblings)):
            yield from ({"record": record, **hit.to_json()} for hit in hits)
        for origin, reason, detail in self.unread:
            yield {"record": "unreadable", "origin": origin, "reason": reason, "detail": detail}
