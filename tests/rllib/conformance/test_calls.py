"""Test that every call of the table behaves as with RLlib's SAC, or is rejected in the listed sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kinds import OF_VECTORS
from tests.rllib.conformance import page
from tests.rllib.conformance.calls import BOTH, CALLS, Call
from tests.rllib.conformance.subjects import REFERENCE, Raised, Subject
from tests.rllib.tiny import REPEATS, SAFE_ALGORITHMS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CASES = [
    pytest.param(
        name,
        stack,
        call,
        id=f"{stack}-{name}-{call.code}",
        marks=[pytest.mark.exhaustive] if name in {*SAFE_ALGORITHMS, *REPEATS} else [],
    )
    for stack in BOTH
    for name in OF_VECTORS
    for call in CALLS
    if stack in call.stacks and (stack == "new" or name not in SAFE_ALGORITHMS)
]


class Subjects:
    """Make subjects on first use, and query RLlib's SAC once per call."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory, self._subjects = factory, dict[tuple[str, str], Subject]()
        self._expected: dict[tuple[str, str], Any] = {}

    def get(self, name: str, stack: str) -> Subject:
        """Return the subject of an algorithm on a stack."""
        key = name, stack
        if key not in self._subjects:
            self._subjects[key] = Subject(name, stack == "new", self._factory.mktemp("subject"))
        return self._subjects[key]

    def expected(self, call: Call, stack: str) -> Any:
        """Return the facts of RLlib's SAC."""
        key = call.code, stack
        if key not in self._expected:
            self._expected[key] = self.get(REFERENCE, stack).facts(call.run)
        return self._expected[key]

    def stop(self) -> None:
        """Stop all built algorithms."""
        for subject in self._subjects.values():
            subject.stop()


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Subjects]:
    """Start Ray, which RLlib's SAC needs; it would otherwise start one and leave it running."""
    made = Subjects(tmp_path_factory)
    yield made
    made.stop()


@pytest.mark.parametrize(("name", "stack", "call"), CASES)
def test_a_call_is_as_with_rllibs_sac(subjects: Subjects, name: str, stack: Any, call: Call) -> None:
    subject = subjects.get(name, stack)
    if stack in call.refused:
        with pytest.raises(Exception, match=call.refused[stack].match) as caught:
            call.run(subject)
        assert re.search(r"[a-z].*[.:]", str(caught.value))
        return
    found, expected = subject.facts(call.run), subjects.expected(call, stack)
    is_missing = not expected or isinstance(expected, Raised)
    assert found == expected or (call.may_be_more and is_missing and found)


def test_the_page_is_what_the_command_writes() -> None:
    assert page.PATH.read_text() == page.text(), "run `make support-page`"
