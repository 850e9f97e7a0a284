"""Regular expressions in linear time, compared with Python's ``re`` where the syntax is shared."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.consul.regex import Regex
from discovery.consul.regex_parser import BadRegex


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("", "", True),
        ("a", "bab", True),
        ("^a", "ba", False),
        ("a$", "ab", False),
        ("^$", "", True),
        ("^$", "x", False),
        ("a|b|cd", "xcd", True),
        ("^(ab)+$", "ababab", True),
        ("^(ab)+$", "aba", False),
        ("a{2,3}b", "xaab", True),
        ("^a{2}$", "aaa", False),
        ("^a{2,}$", "aaaa", True),
        (r"^\d+\.\d*$", "12.", True),
        (r"[^a-c]", "abc", False),
        ("[[:upper:]]", "aB", True),
        ("(?i)WEB-[0-9]", "web-7", True),
        ("(?i)[^a]", "A", False),
        ("^.$", "\n", False),
        ("(?s)^.$", "\n", True),
        (r"\x41\x{42}", "AB", True),
        ("x{", "x{", True),
        ("[]a]", "]", True),
        (r"\Aab\z", "ab", True),
        ("(?P<name>a)b", "ab", True),
        ("(?:a|)b", "b", True),
        ("a*?b", "aab", True),
        ("[a\\-z]", "-", True),
        ("[+-]", "-", True),
        ("a(?i)b", "aB", True),
        ("(?i:a)b", "AB", False),
        ("()", "", True),
        ("(a|b)*$", "xyab", True),
        ("ü", "grün", True),
    ],
)
def test_matches_are_those_of_go(pattern: str, text: str, found: bool) -> None:
    assert Regex(pattern).search(text) is found


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "a)",
        "[a",
        "[b-a]",
        "*a",
        "a**",
        "a{1001}",
        "a{3,2}",
        r"\b",
        r"\1",
        r"\pL",
        "(?=a)",
        "(?!a)",
        "(?<=a)b",
        "(?m)a",
        "[[:nothing:]]",
        r"\x{110000}",
        r"\xzz",
        "\\",
        "(?P<a",
        "(" * 60 + ")" * 60,
        "(a{100}){100}",
        "a" * 1001,
        "(((((){1000}){1000}){1000}){1000}){1000}",
    ],
)
def test_unsupported_syntax_is_refused(pattern: str) -> None:
    with pytest.raises(BadRegex):
        Regex(pattern)


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|aa)*$", "(.*)*x", "(a|a|a|a)*b", "(a*)*b", "(?:a?){500}a{500}"])
def test_patterns_that_backtrack_exponentially_elsewhere(pattern: str) -> None:
    try:
        assert Regex(pattern).search("a" * 4000 + "!") is False
    except BadRegex as error:
        assert "too long to match" in str(error)


@given(
    st.text(alphabet="ab.|*+?()[]^$\\d{1,2}", max_size=20), st.lists(st.text(alphabet="ab1.", max_size=12), max_size=4)
)
@settings(max_examples=600)
def test_results_are_those_of_python(pattern: str, texts: list[str]) -> None:
    try:
        ours = Regex(pattern)
        theirs = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    except (BadRegex, re.error):
        return
    for text in texts:
        # Possessive quantifiers and {,2} exist only in Python.
        if not re.search(r"[*+?}]\+|\{,", pattern):
            assert ours.search(text) is (theirs.search(text) is not None), (pattern, text)


@given(st.text(max_size=60), st.text(max_size=60))
def test_random_patterns(pattern: str, text: str) -> None:
    with contextlib.suppress(BadRegex):
        Regex(pattern).search(text)
