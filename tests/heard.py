"""Someone who hears of all that is done, and may act while it is."""

from collections.abc import Callable

from underpaint.progress import At


class Heard:
    """Remembers (what, done, total), and hands each on to `then`."""

    def __init__(self, then: Callable[[str, float, float], None] | None = None) -> None:
        self.said: list[tuple[str, float, float]] = []
        self.then = then

    def begin(self, what: str, total: float) -> At:
        def at(
            done: float, total: float = total, *, note: str = "", left: float | None = None
        ) -> None:
            self.said.append((what, done, total))
            if self.then:
                self.then(what, done, total)

        at(0, total)
        return at

    def end(self, at: At) -> None:
        pass
