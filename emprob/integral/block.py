"""How the continuous latents of a program are laid out for integration: series, positions, widths.

A block is an array (S, T, D): S independent series, each a Markov chain of T positions with D
coordinates. Latents of a plate are S series of one position; a scan is a chain; a latent that
fills its carry before the first step stands at a position of its own in front; a chain whose steps
reach back L steps has L steps to a position. What is left over (padding, masked latents) is given a
standard normal of its own, which integrates to one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Slot(NamedTuple):
    """One site's coordinates.

    Attributes:
        site: its name.
        shape: of its value at one time step.
        axes: of that shape, those that count the series.
        timed: whether its value has time as a further, first axis.
    """

    site: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    timed: bool

    @property
    def width(self) -> int:
        return math.prod(n for i, n in enumerate(self.shape) if i not in self.axes)


@dataclass(frozen=True)
class Block:
    """The layout.

    Attributes:
        slots: of every site.
        series: lengths of the axes that count the series.
        length: steps of the scan, 0 without one.
        lag: steps to a position.
        offset: steps of padding in front, which say where positions begin.
    """

    slots: tuple[Slot, ...]
    series: tuple[int, ...]
    length: int = 0
    lag: int = 1
    offset: int = 0

    @property
    def num_series(self) -> int:
        return math.prod(self.series)

    @property
    def lead(self) -> int:
        """Steps in front of the scan's first."""
        return int(any(not s.timed for s in self.slots))

    @property
    def num_steps(self) -> int:
        return max(self.length + self.lead, 1)

    @property
    def step_width(self) -> int:
        widths = [sum(s.width for s in self.slots if s.timed is timed) for timed in (False, True)]
        return max(widths)

    @property
    def num_positions(self) -> int:
        return -(-(self.offset + self.num_steps) // self.lag)

    @property
    def width(self) -> int:
        return self.step_width * self.lag

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.num_series, self.num_positions, self.width

    @property
    def is_chain(self) -> bool:
        return self.num_positions > 1

    def resized(self, series: tuple[int, ...]) -> "Block":
        """The layout of the same latents in plates of other sizes."""

        def shape(slot: Slot) -> tuple[int, ...]:
            sizes = dict(zip(slot.axes, series, strict=True))
            return tuple(sizes.get(i, n) for i, n in enumerate(slot.shape))

        slots = tuple(s._replace(shape=shape(s)) for s in self.slots)
        return replace(self, slots=slots, series=series)

    def pack(self, values: Mapping[str, Array], fill: float = 0.0) -> Array:
        """Values by site -> (S, T, D)."""
        parts = []
        for timed in (False, True):
            found = [self._flat(s, values[s.site]) for s in self.slots if s.timed is timed]
            if found:
                part = jnp.concatenate(found, -1)
                room = self.step_width - part.shape[-1]
                parts.append(jnp.pad(part, ((0, 0), (0, 0), (0, room)), constant_values=fill))
        steps = jnp.concatenate(parts, 1)
        return self.grouped(steps, fill)

    def grouped(self, steps: Array, fill: float = 0.0) -> Array:
        """(S, steps, step width) -> (S, T, D)."""
        rest = self.num_positions * self.lag - steps.shape[1] - self.offset
        padding = ((0, 0), (self.offset, rest), (0, 0))
        return jnp.pad(steps, padding, constant_values=fill).reshape(self.shape)

    def by_step(self, z: Array) -> Array:
        """(S, T, D) -> (S, steps, step width)."""
        steps = z.reshape(self.num_series, -1, self.step_width)
        return steps[:, self.offset : self.offset + self.num_steps]

    def unpack(self, z: Array) -> dict[str, Array]:
        """(S, T, D) -> values by site."""
        steps = self.by_step(z)
        values, at = {}, {False: 0, True: 0}
        for s in self.slots:
            start = at[s.timed]
            at[s.timed] = start + s.width
            first, last = (self.lead, self.lead + self.length) if s.timed else (0, 1)
            values[s.site] = self._shaped(s, steps[:, first:last, start : start + s.width])
        return values

    def _order(self, slot: Slot) -> tuple[int, ...]:
        """Axes of a timed value in the order series, time, rest."""
        rest = [i for i in range(len(slot.shape)) if i not in slot.axes]
        return (*(i + 1 for i in slot.axes), 0, *(i + 1 for i in rest))

    def _flat(self, slot: Slot, value: Array) -> Array:
        value = jnp.asarray(value)
        value = value if slot.timed else value[None]
        moved = value.transpose(self._order(slot))
        return moved.reshape(self.num_series, value.shape[0], slot.width)

    def _shaped(self, slot: Slot, part: Array) -> Array:
        order = self._order(slot)
        steps = part.shape[1]
        full = (steps, *slot.shape)
        moved = part.reshape([full[i] for i in order])
        value = moved.transpose([order.index(i) for i in range(len(order))])
        return value if slot.timed else value[0]
