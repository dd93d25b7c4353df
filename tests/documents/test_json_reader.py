"""Test reading JSON that users may have damaged."""

from __future__ import annotations

import pytest

from rllib_hpo.documents import parse_json
from rllib_hpo.errors import UserError


def test_an_object_is_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, null]}', "x") == {"a": [1, 2.5, None]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5_000 + "}", "5,000 digits"),
        ("[1]", "must hold a JSON object, not list"),
        ('{"a": "\\ud800"}', "is invalid JSON"),
        (b"\xff", "is invalid JSON"),
        ("{", "is invalid JSON"),
    ],
)
def test_what_is_none_is_refused_in_a_sentence(text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"The file x .*{message}|The file x {message}") as caught:
        parse_json(text, "The file x")
    assert "\n" not in str(caught.value)
