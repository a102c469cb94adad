"""Topics and the patterns that match them.

A topic is one to 16 tokens separated by `.`, at most 255 bytes of UTF-8. A token is any run of printable characters
but whitespace, `.`, `*` and `>`. A topic does not begin with `$` or `_INBOX`, which NATS keeps for itself.
Patterns are NATS's: `*` stands for one token, `>` for one or more at the end. `name:*` is an addition for those who
come from namespaces: all topics that begin with `name:`. It goes by characters, not by tokens, so `room:*` has
`room:a`, `room:a.b` and `room:.b`, but not `room:` itself. Nobody can subscribe to it, only to a pattern of NATS's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from urllib.parse import quote

MAX_TOPIC_BYTES = 255
MAX_TOPIC_TOKENS = 16

_RESERVED = ("$", "_INBOX")
_WILDCARDS = ("*", ">")


def topic_problem(topic: str) -> str | None:
    """What is wrong with a topic's name, in words for whoever sent it, or None."""
    problem = _text_problem(topic)
    if problem is None and ("*" in topic or ">" in topic):
        problem = "wildcards (* and >) are not allowed here"
    return problem


def subscription_problem(name: str) -> str | None:
    """What is wrong with the name of what is to be subscribed to, a topic or a wildcard, or None."""
    problem = _text_problem(name)
    if problem is None and is_wildcard(name):
        tokens = name.split(".")
        if any(is_wildcard(token) and token not in _WILDCARDS for token in tokens):
            problem = "mixes a wildcard with text in one token"
        elif ">" in tokens[:-1]:
            problem = "> may stand only at the end"
    return problem


def _text_problem(text: str) -> str | None:
    if not text:
        return "must not be empty"
    if len(text) > MAX_TOPIC_BYTES or not text.isascii():
        try:
            size = len(text.encode())
        except UnicodeEncodeError:  # a lone surrogate, from JSON's \ud800
            return "holds a character that has no UTF-8 form"
        if size > MAX_TOPIC_BYTES:
            return f"{size} bytes, at most {MAX_TOPIC_BYTES} are allowed"
    # str.isprintable is false for all whitespace but the plain space, for control characters and for surrogates
    if not text.isprintable() or " " in text:
        return "holds whitespace or a character that is not printable"
    if text.startswith(_RESERVED):
        return "names that begin with $ or _INBOX are reserved"
    if text[0] == "." or text[-1] == "." or ".." in text:
        return "holds an empty token"
    if text.count(".") >= MAX_TOPIC_TOKENS:
        return f"{text.count('.') + 1} tokens, at most {MAX_TOPIC_TOKENS} are allowed"
    return None


def is_wildcard(topic: str) -> bool:
    return "*" in topic or ">" in topic


def escape_token(user: str) -> str:
    """A user's name as one token: whatever could split or widen it is percent-encoded (`%` itself too, so that two
    users never share a form). An empty user stays empty, and so makes any pattern that names it match nothing.
    """
    token = "".join(c if _is_plain(c) else quote(c, safe="", errors="surrogatepass") for c in user).replace(".", "%2E")
    return f"%5F{token[1:]}" if token.startswith(_RESERVED) else token


def _is_plain(character: str) -> bool:
    return character.isprintable() and character not in " *>%$:"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern. Make it with `parse_pattern`.

    What it says of another pattern takes the limits of topics into account: behind 15 tokens `*` covers `>`, since
    there is room for one token only.
    """

    text: str
    tokens: tuple[str, ...]
    """Of `name:*`: those that stand before the one that is cut short, and `>`."""
    prefix: str | None
    """Set for `name:*`: what a topic must begin with."""
    exact: bool
    """No wildcard at all: only equality matches."""

    def matches(self, topic: str) -> bool:
        if self.exact:
            return topic == self.text
        if self.prefix is not None:
            return topic.startswith(self.prefix) and len(topic) > len(self.prefix)
        tokens = topic.split(".")
        if self.tokens[-1] == ">":
            if len(tokens) < len(self.tokens):
                return False
        elif len(tokens) != len(self.tokens):
            return False
        return self._agrees(tokens)

    def covers(self, other: Pattern) -> bool:
        """Whether this matches every topic that the other one matches."""
        if other.exact:
            return self.matches(other.text)
        if other.prefix is not None and _size(other.prefix) >= MAX_TOPIC_BYTES:
            return True  # it matches nothing: no topic is longer
        if self.exact:
            return False
        if self.prefix is not None:
            return (other.prefix or other.text).startswith(self.prefix)
        fewest = len(other.tokens)
        if self.tokens[-1] == ">":
            if fewest < len(self.tokens):
                return False
        elif not fewest == other._most_tokens() == len(self.tokens):
            return False
        return self._agrees(other.tokens)

    def overlaps(self, other: Pattern) -> bool:
        """Whether there is a topic that both match."""
        topic = _shortest_common(self, other)
        return _size(topic) <= MAX_TOPIC_BYTES and self.matches(topic) and other.matches(topic)

    def admits(self, name: str) -> bool:
        """Whether all that a subscription to `name` can bring, a topic or a sound wildcard, is matched by this."""
        return self.covers(parse_pattern(name)) if is_wildcard(name) else self.matches(name)

    def _agrees(self, tokens: Iterable[str]) -> bool:
        return all(want in _WILDCARDS or want == have for want, have in zip(self.tokens, tokens, strict=False))

    def _most_tokens(self) -> int:
        """How many tokens the topics have at most that this pattern, no exact one, matches."""
        if self.tokens[-1] != ">":
            return len(self.tokens)
        spare = MAX_TOPIC_BYTES - _size(self.prefix or self.text)
        return min(MAX_TOPIC_TOKENS, len(self.tokens) + spare // 2)  # each with its dot


def _shortest_common(one: Pattern, other: Pattern) -> str:
    """The shortest topic that both match, if any is. A single letter stands where each of them has a wildcard."""
    if one.prefix is not None and other.prefix is not None:
        return max(one.prefix, other.prefix, key=len) + "x"
    tokens = [
        theirs if mine in _WILDCARDS else mine for mine, theirs in zip_longest(one.tokens, other.tokens, fillvalue=">")
    ]
    prefix = one.prefix or other.prefix
    if prefix is not None:
        last = prefix.count(".")
        if tokens[last] in _WILDCARDS:
            # what follows the prefix may be tokens alone
            tokens[last] = prefix.rpartition(".")[2] + ("" if tokens[last + 1 :] else "x")
    return ".".join("x" if token in _WILDCARDS else token for token in tokens)


def _size(text: str) -> int:
    return len(text.encode())


@lru_cache(maxsize=4096)
def parse_pattern(text: str) -> Pattern:
    """Compile a pattern.

    Raises:
        ValueError: not a pattern; the message says why.
    """
    namespace = text.endswith(":*") and not is_wildcard(text[:-2])
    problem = _text_problem(text[:-1] if namespace else text)
    if problem is not None:
        raise ValueError(problem)
    if namespace:
        return Pattern(text, (*text.split(".")[:-1], ">"), text[:-1], exact=False)
    tokens = tuple(text.split("."))
    for position, token in enumerate(tokens):
        if token == ">" and position < len(tokens) - 1:
            raise ValueError("> may stand only at the end")
        if token not in _WILDCARDS and is_wildcard(token):
            raise ValueError(f"token {token!r} mixes a wildcard with text")
    return Pattern(text, tokens, None, exact=not is_wildcard(text))
