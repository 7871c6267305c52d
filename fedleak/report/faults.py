"""What went wrong in a run, and what the run did about it: one line for each fault."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import methodcaller
from typing import Any

from fedleak.evaluation.utility import by_client
from fedleak.printable import plural
from fedleak.report.formats import duration, moment, plain
from fedleak.runs.records import RunRecords, number, rows_of, table
from fedleak.wire.received import NOT_ATTACKED

SLOW = 5.0
"""A client is called slow that took so many times as long as the others do, by their median."""

_NOTICED = 1.0  # seconds; differences below it are nobody's worry
_SILENT = "no reply"
_RAISED = "the client raised: "


@dataclass(frozen=True)
class Fault:
    """One thing that went wrong.

    Attributes
    ----------
    rounds : tuple of int
        In which, ascending.
    clients : tuple of int
        Partition ids, ascending; empty where it was the server.
    what : str
        What happened.
    did : str
        What the run did about it.
    attack : str
        The attack that failed; empty where it was a client or the server, which training notices.
    """

    rounds: tuple[int, ...]
    clients: tuple[int, ...]
    what: str
    did: str
    attack: str = ""

    @property
    def when(self) -> str:
        """The rounds, such as ``2–4, 7``."""
        return spans(self.rounds)

    @property
    def who(self) -> str:
        """The clients, likewise, or ``server``."""
        return spans(self.clients) if self.clients else "server"


def faults(records: RunRecords) -> list[Fault]:
    """Return all that went wrong, by round; the same for several clients is one line."""
    found = [*_interruptions(records), *_merged(_clients(records)), *_attacks(records), *_problems(records), *_slow(records)]
    return sorted(found, key=lambda fault: fault.rounds[:1])


def spans(numbers: Iterable[int]) -> str:
    """Return whole numbers as ranges: ``0–2, 5``."""
    ordered = sorted(set(numbers))
    parts = []
    for _, group in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0]):
        run = [value for _, value in group]
        parts.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}–{run[-1]}")
    return ", ".join(parts)


def _interruptions(records: RunRecords) -> Iterator[Fault]:
    for stop in rows_of(records.manifest, "interruptions"):
        done = _whole(stop.get("after"))
        if done is None:  # not resumed
            broken = records.rounds_done + 1
            yield Fault((broken,), (), f"The run broke off: {plain(stop.get('why'))}.", "What was done until then is kept.")
            continue
        why = stop.get("why") or "its process ended without a word; it was killed, or could not write"
        did = f"Resumed after round {done}, on {moment(stop.get('resumed'))}: round {done + 1} was done again from its start."
        yield Fault((done + 1,), (), f"The run broke off: {plain(why)}.", did)


@dataclass(frozen=True)
class _Round:
    """Who was asked in a round, and why those who failed did."""

    number: int
    asked: frozenset[int]
    failed: dict[int, str]

    def kind(self, client: int) -> str | None:
        """Return how the client failed: silence is one kind, whatever the words; ``None`` if it did not."""
        reason = self.failed.get(client)
        return _SILENT if reason is not None and reason.startswith(_SILENT) else reason


def _rounds(records: RunRecords) -> Iterator[_Round]:
    for row in sorted((row for row in records.rounds if _whole(row.get("round"))), key=lambda row: int(row["round"])):
        told = ((_whole(failure.get("client")), plain(failure.get("reason"))) for failure in rows_of(row, "failures"))
        failed = {client: reason for client, reason in told if client is not None}
        asked = row.get("clients")
        known = [client for client in asked if _whole(client) is not None] if isinstance(asked, list) else []
        yield _Round(int(row["round"]), frozenset([*known, *failed]), failed)


def _clients(records: RunRecords) -> Iterator[Fault]:
    """Yield a fault for each stretch of rounds in which one client failed in one way."""
    rounds = list(_rounds(records))
    timeout = number(table(records.scenario, "federation").get("timeout"))
    for client in sorted({client for one in rounds for client in one.failed}):
        took_part = [one for one in rounds if client in one.asked]
        stretches = [(kind, list(group)) for kind, group in groupby(took_part, key=methodcaller("kind", client))]
        for place, (kind, group) in enumerate(stretches):
            if kind is None:
                continue
            reasons = list(dict.fromkeys(one.failed[client] for one in group))
            after = stretches[place + 1] if place + 1 < len(stretches) else None
            back = after[1][0].number if after is not None and after[0] is None else None
            alone = all(len(one.failed) == len(one.asked) for one in group)
            did = _did(kind, reasons, timeout, alone=alone, back=back)
            yield Fault(tuple(one.number for one in group), (client,), _what(kind, reasons), did)


def _what(kind: str, reasons: list[str]) -> str:
    if kind == _SILENT:
        details = [detail for reason in reasons if (detail := reason.removeprefix(_SILENT).strip(": "))]
        return "Sent no reply" + (f" ({'; '.join(details)})" if details else "")
    if kind.startswith(_RAISED):
        return f"Raised an error: {kind.removeprefix(_RAISED)}"
    if kind.startswith(NOT_ATTACKED):
        return f"Was not attacked: {kind.removeprefix(NOT_ATTACKED)}"
    return f"Sent what cannot be used: {kind}"


def _did(kind: str, reasons: list[str], timeout: float | None, *, alone: bool, back: int | None) -> str:
    if kind.startswith(NOT_ATTACKED):
        did = "Its update trained the model all the same"
    elif alone:
        did = "No reply could be used, so the model stayed as it was"
    elif kind == _SILENT:
        waited = f" after federation.timeout, {duration(timeout)} s" if _SILENT in reasons and timeout is not None else ""
        did = f"The round went on without it{waited}"
    elif kind.startswith(_RAISED):
        did = "The round went on without it"
    else:
        did = "Its reply was left out"
    return did + (f"; it took part again in round {back}." if back is not None else ".")


def _attacks(records: RunRecords) -> Iterator[Fault]:
    """Yield one fault for each attack and reason."""
    failed: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for row in records.rows:
        flags = row.get("flags")
        invalid = isinstance(flags, list) and "invalid-reply" in flags  # told of the client already
        server_round, client = _whole(row.get("round")), _whole(row.get("client"))
        if row.get("error") and not invalid and server_round is not None and client is not None:
            failed.setdefault((plain(row.get("attack")), plain(row["error"])), set()).add((server_round, client))
    for (attack, reason), updates in failed.items():
        rounds, clients = (tuple(sorted({update[index] for update in updates})) for index in (0, 1))
        what = f"Attack {attack} failed on {plural(len(updates), 'update')}: {reason}"
        yield Fault(rounds, clients, what, "Recorded as its result; training took no notice.", attack)


def _problems(records: RunRecords) -> Iterator[Fault]:
    """Yield one fault for each attack that could not be shown a round, or step that failed beside an app, and reason."""
    failed: dict[tuple[str, str, str], set[int]] = {}
    for row in records.problems:
        if (server_round := _whole(row.get("round"))) is not None:
            step = row.get("step")
            key = plain(row.get("attack")), plain(step) if isinstance(step, str) else "", plain(row.get("error"))
            failed.setdefault(key, set()).add(server_round)
    for (attack, step, reason), rounds in failed.items():
        if step:
            yield Fault(tuple(sorted(rounds)), (), f"{step[:1].upper()}{step[1:]}: {reason}", "Training took no notice.", attack)
            continue
        what = f"Attack {attack} could not be shown {plural(len(rounds), 'round')}: {reason}"
        did = "The attack went on without what it would have kept; training took no notice."
        yield Fault(tuple(sorted(rounds)), (), what, did, attack)


def _slow(records: RunRecords) -> Iterator[Fault]:
    rounds = [row for row in records.rounds if _whole(row.get("round"))]
    costs = {client: seconds for client, row in by_client(rounds).items() if (seconds := number(row.get("seconds"))) is not None}
    for name, seconds in costs.items():
        others = [value for other, value in costs.items() if other != name]
        if not others or not name.isdecimal():
            continue
        usual = statistics.median(others)
        if seconds >= SLOW * usual and seconds - usual >= _NOTICED:
            took_part = tuple(int(row["round"]) for row in rounds if name in table(row, "by_client"))
            what = f"Was slow: {duration(seconds)} s a round, where the others took {duration(usual)} s"
            yield Fault(took_part, (int(name),), what, "The round waited for it.")


def _merged(found: Iterable[Fault]) -> list[Fault]:
    """Put together what happened to several clients alike."""
    clients: dict[tuple[tuple[int, ...], str, str], list[int]] = {}
    for fault in found:
        clients.setdefault((fault.rounds, fault.what, fault.did), []).extend(fault.clients)
    return [Fault(rounds, tuple(sorted(who)), what, did) for (rounds, what, did), who in clients.items()]


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
