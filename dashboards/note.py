"""What a sweep's run says of itself in MLflow: a summary in markdown with links to the runs of the front.

MLflow's pages (3.17) fold it to its first lines; they open links, show pictures of artifacts by relative address, draw
tables without space between the columns, and take 8 000 characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dashboards.final_table import columns, correlation_words, found_by, hours_words
from dashboards.front import COLUMNS, better, counts
from service.final_table import FinalTable
from service.front import Front
from service.note_blocks import BLOCK_LENGTH
from service.pareto import METRICS
from service.records import SweepRecord, TrialRecord

LIMIT = 7_900 - BLOCK_LENGTH
"""Characters, below MLflow's own limit of a tag, with room for what is said of other runs."""
MAX_ROWS = 15
FORMS = {name: form for name, _, form in COLUMNS}
GAP = "&emsp;"
"""Between columns."""
DESCRIPTION_LENGTH = 1_000


def as_note(
    sweep: SweepRecord,
    found: Front,
    *,
    device_hours: float,
    links: Mapping[str, str],
    pictures: Mapping[str, str],
    final: FinalTable | None = None,
) -> str:
    """The note of a sweep's run.

    Args:
        device_hours: of all ended trials.
        links: by trial, the address of its run within MLflow's pages.
        pictures: addresses by caption.
        final: of a promotion, whose table stands in the place of the front's.
    """
    drawn = [f"![{caption}]({address})" for caption, address in pictures.items()]
    before = [*_summary(sweep, found, links), *_facts(sweep, found, device_hours), *drawn[:1]]
    after = [*drawn[1:], *_where(sweep)]
    rows = len(final.rows) if final else len(found.members)
    # The table takes what room is left, and is never cut within a row.
    for count in range(min(rows, MAX_ROWS), -1, -1):
        table = _final(final, links, count) if final else _table(found, links, count)
        text = "\n\n".join(part for part in (*before, *table, *after) if part) + "\n"
        if len(text) <= LIMIT:
            return text
    return text[:LIMIT]


def _summary(sweep: SweepRecord, found: Front, links: Mapping[str, str]) -> list[str]:
    """What people see before they unfold the note."""
    done = f"**{len(found.done)} of {sweep.total_trials} trials done**"
    if not found.members:
        return [_plain(sweep.description), f"{done}; there is no front yet."]
    best = max(found.members, key=lambda trial: trial.metrics[found.accuracy.name])
    parts = [f"{done}, {len(found.members)} {'policy' if len(found.members) == 1 else 'policies'} on the front"]
    if found.knee:
        parts.append(f"**knee**: {_told(found.knee, links)}")
    if best is not found.knee:
        parts.append(f"**best {found.accuracy.name_alone}**: {_told(best, links)}")
    return ["  \n".join(parts), _plain(sweep.description)]


def _told(trial: TrialRecord, links: Mapping[str, str]) -> str:
    numbers = {"top1": "{:.2f} %", "map": "mAP {:.2f} %", "ap": "AP {:.2f} %"}
    numbers |= {"bops_g": "{:.4g} G BOPs", "ard": "ARD {:.3f}"}
    told = ", ".join(form.format(trial.metrics[name]) for name, form in numbers.items() if name in trial.metrics)
    return f"{_link(trial, links, f'trial {trial.number}')}, {told}"


def _link(trial: TrialRecord, links: Mapping[str, str], text: str) -> str:
    return f"[{text}]({links[trial.trial_id]})" if trial.trial_id in links else text


def _plain(text: str) -> str:
    """An author's words, as a paragraph of bounded length."""
    words = " ".join(text.split())
    return words if len(words) <= DESCRIPTION_LENGTH else words[: DESCRIPTION_LENGTH - 1].rstrip() + "…"


def _facts(sweep: SweepRecord, found: Front, device_hours: float) -> list[str]:
    of_references = sum(float(record.get("device_hours", 0.0)) for record in sweep.references.values())
    lines = [f"- {key}: {_plain(value)[:200]}" for key, value in sweep.facts.items() if key != "trials"]
    lines += [f"- trials: {counts(sweep, found)}"]
    lines += [f"- device-hours: {device_hours:.3g}, and {of_references:.3g} for full precision"]
    lines += [f"- full precision: {sweep.full_precision}"] if sweep.full_precision else []
    lines += [f"- only policies with {' and '.join(sweep.constraints)}"] if sweep.constraints else []
    lines += [f"- code: {sweep.revision}"] if sweep.revision else []
    lines += [f"- ended: {_plain(sweep.end)[:300]}"] if sweep.end else []
    return ["\n".join(lines)]


def _table(found: Front, links: Mapping[str, str], count: int) -> list[str]:
    """`count` members of the front, the knee and an even choice of the others, cheapest first."""
    if not found.members:
        return []
    names = list(dict.fromkeys([found.accuracy.name, "bops_g", *(o.name for o in found.objectives), "compression"]))
    heads = ["trial", *(METRICS[name].label for name in names), "policy"]
    shown = chosen(found.members, found.knee, count)
    rows = [
        [
            f"{_link(trial, links, str(trial.number))}{' ◆' if trial is found.knee else ''}",
            *(FORMS.get(name, "{:.4g}").format(trial.metrics[name]) if name in trial.metrics else "" for name in names),
            trial.policy_hash[:10],
        ]
        for trial in shown
    ]
    lines = [_row(heads), _row(["---"] * len(heads), gap=""), *map(_row, rows)] if rows else []
    rest = len(found.members) - len(shown)
    more = [f"… and {rest} more in the page"] if rest else []
    return [
        "**Pareto front**, cheapest first: " + better(found.objectives) + "; ◆ is the knee",
        "\n".join(lines),
        *more,
    ]


def _final(final: FinalTable, links: Mapping[str, str], count: int) -> list[str]:
    """The first `count` rows of the final table, and what its numbers are."""
    shown = columns(final)
    heads = ["policy", "found by", *(column.head for column in shown)]
    rows = [
        [
            f"{_link(row.trial, links, row.policy_hash[:10])}{' ◆' if row.is_knee else ''}",
            found_by(row, most=1),
            *(column.text(row) for column in shown),
        ]
        for row in final.rows[:count]
    ]
    lines = [_row(heads), _row(["---"] * len(heads), gap=""), *map(_row, rows)] if rows else []
    rest = len(final.rows) - count
    more = [f"… and {rest} more in `final.md`"] if rest else []
    return [
        "**Promoted policies**, cheapest first; ◆ is the knee",
        "\n".join(lines),
        *more,
        hours_words(final),
        correlation_words(final),
    ]


def _row(cells: Sequence[str], *, gap: str = GAP) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") + gap for cell in cells) + " |"


def chosen(members: Sequence[TrialRecord], knee: TrialRecord | None, count: int) -> list[TrialRecord]:
    """`count` of the members, evenly over their order, first and last among them; the nearest gives way to the knee."""
    if count >= len(members):
        return list(members)
    if count < 1:
        return []
    last = len(members) - 1
    places = {round(i * last / (count - 1)) for i in range(count)} if count > 1 else {0}
    wanted = next((place for place, member in enumerate(members) if member is knee), None)
    if wanted is not None and wanted not in places:
        ends = {0, last} if count > 2 else set()
        places.discard(min(places - ends, key=lambda place: abs(place - wanted)))
        places.add(wanted)
    return [members[place] for place in sorted(places)]


def _where(sweep: SweepRecord) -> list[str]:
    return [
        f"**All of it**: `front.html` among this run's artifacts is the interactive page; `{sweep.name}/front.html` in "
        "the sweep's storage is the same one, whose points open their runs.",
        f"**The front's runs**: search the experiment for `tags.\"bitfront.front\" = 'true' and "
        f'tags."bitfront.sweep_id" = \'{sweep.sweep_id}\'`; `tags."bitfront.rank"` is 1 for them, 2 for the front of '
        "the rest, and so on. MLflow lists them below their sweep: open the + beside its name.",
    ]
