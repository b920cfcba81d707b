"""The fewest bytes that a cache could have loaded, had it known the order of all uses beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.policies.workload import Adapter

_NEVER = float("inf")


def least_bytes(order: Sequence[Adapter], capacity: int, warm: Iterable[Adapter] = ()) -> int:
    """Return the bytes loaded by the better of two offline rules, for a cache of so many adapters.

    Both evict what is needed last (Belady, 1966); one counts the distance in uses, the other in uses per
    byte, so that a small adapter leaves before a large one needed a little later. With sizes that differ the
    exact optimum is costly; with equal ones the first rule is it. Uses come one after another: no adapter is
    held by a running batch.
    """
    warm = list(warm)
    return min(_bytes(order, capacity, warm, rule) for rule in (_by_distance, _by_distance_per_byte))


def _bytes(
    order: Sequence[Adapter],
    capacity: int,
    warm: Sequence[Adapter],
    value: Callable[[float, Adapter], float],
) -> int:
    next_uses = _next_uses(order)
    first_uses = {adapter.name: place for place, adapter in reversed(list(enumerate(order)))}
    cached = {adapter.name: (first_uses.get(adapter.name, _NEVER), adapter) for adapter in warm}
    loaded = 0
    for place, adapter in enumerate(order):
        if adapter.name not in cached:
            loaded += adapter.size
            if len(cached) >= capacity:
                del cached[max(cached, key=lambda name: value(cached[name][0] - place, cached[name][1]))]
        cached[adapter.name] = (next_uses[place], adapter)
    return loaded


def _next_uses(order: Sequence[Adapter]) -> list[float]:
    """Return for each use the place of the same adapter's next one."""
    seen: dict[str, int] = {}
    found = [_NEVER] * len(order)
    for place in range(len(order) - 1, -1, -1):
        found[place] = seen.get(order[place].name, _NEVER)
        seen[order[place].name] = place
    return found


def _by_distance(distance: float, adapter: Adapter) -> float:  # noqa: ARG001 - the rule that sees no sizes
    return distance


def _by_distance_per_byte(distance: float, adapter: Adapter) -> float:
    return distance / adapter.size
