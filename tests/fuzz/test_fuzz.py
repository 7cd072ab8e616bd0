"""The fuzz of `mutants`, short and with hypothesis: `make fuzz` is the long one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutants import NASTY, Fuzz


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", "")  # which Fuzz sets
        yield Fuzz(tmp_path_factory.mktemp("fuzz"))


EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),  # where, as a share of the file
        st.integers(0, 80),  # bytes that go
        st.one_of(st.binary(max_size=12), st.sampled_from(NASTY)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(choice=st.integers(0, 10**6), edits=EDITS)
def test_a_damaged_file_is_read_or_refused_in_one_line(
    choice: int, edits: list[tuple[float, int, bytes]], fuzz: Fuzz
) -> None:
    names = sorted(fuzz.seeds)
    name = names[choice % len(names)]
    content = bytearray(fuzz.whole[name])
    for share, length, text in edits:
        at = int(share * len(content))
        content[at : at + length] = text
    assert fuzz.try_one(name, bytes(content)) in ("read", "refused")


def test_the_seeds_themselves_are_read(fuzz: Fuzz, tmp_path: Path) -> None:
    assert {name: fuzz.try_one(name, fuzz.whole[name]) for name in fuzz.seeds} == dict.fromkeys(
        fuzz.seeds, "read"
    )
