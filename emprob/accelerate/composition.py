"""What an accelerator may be made of."""

from typing import Any

from emprob.em import EM


def check_em(wrapper: str, method: Any) -> None:
    """Refuse what is not an EM whose map is a function of the parameters alone.

    Args:
        wrapper: name of the accelerator.
        method: what it was given.

    Raises:
        ValueError: saying what to write instead.
    """
    if not isinstance(method, EM):
        raise ValueError(
            f"{wrapper}({method!r}): expected an EM, such as ep.EM().{_remedy(method)}"
        )
    check_estep(wrapper, method.estep)


def check_estep(wrapper: str, estep: Any) -> None:
    """Refuse an E-step that does not give the same answer twice."""
    able = estep.capabilities
    if not (able.deterministic and able.memoryless):
        raise ValueError(
            f"{wrapper} over {estep!r}: it compares one map with the next, which needs an E-step "
            "that gives the same answer twice. Use EM alone, or common random numbers: "
            f"{wrapper}(ep.EM(ep.FixedKey({estep!r})))."
        )


def em_of(wrapper: str, method: Any, kinds: tuple[type, ...]) -> EM:
    """The EM inside accelerators of some kinds, or the EM itself; anything else is refused.

    Raises:
        ValueError: saying what to write instead.
    """
    inner = method
    while isinstance(inner, kinds):
        inner = inner.method  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(inner, EM):
        raise ValueError(
            f"{wrapper}({method!r}): expected an EM or an accelerator of one, such as ep.EM() or "
            "ep.Squarem(ep.EM())."
        )
    check_estep(wrapper, inner.estep)
    return inner


def check_share(wrapper: str, name: str, value: Any, low: float, high: float) -> None:
    """Refuse a number outside an open interval."""
    if not low < value < high:
        raise ValueError(f"{wrapper}({name}={value!r}): expected {low:g} < {name} < {high:g}.")


def _remedy(method: Any) -> str:
    inner = getattr(method, "method", None)
    if isinstance(inner, EM):
        return f" Accelerators do not stack: write one of them over {inner!r}."
    return ""


def check_count(wrapper: str, name: str, value: Any) -> None:
    """Refuse what is not an integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{wrapper}({name}={value!r}): expected an integer >= 1.")
