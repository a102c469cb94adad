"""Topics and the patterns that match them.

A topic is one to 16 tokens separated by `.`, at most 255 bytes of UTF-8. A token is any run of printable characters
but whitespace, `.`, `*` and `>`. A topic does not begin with `$` or `_INBOX`, which NATS keeps for itself.
Patterns are NATS's: `*` stands for one token, `>` for one or more at the end. `name:*` is an addition for those who
come from namespaces: all topics that begin with `name:`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

MAX_TOPIC_BYTES = 255
MAX_TOPIC_TOKENS = 16

_RESERVED = ("$", "_INBOX")


def topic_problem(topic: str) -> str | None:
    """What is wrong with a topic's name, in words for whoever sent it, or None."""
    problem = _text_problem(topic)
    if problem is None and ("*" in topic or ">" in topic):
        problem = "wildcards (* and >) are not allowed here"
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
    """A compiled pattern. Make it with `parse_pattern`."""

    text: str
    tokens: tuple[str, ...]
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
        return all(want in ("*", ">") or want == have for want, have in zip(self.tokens, tokens, strict=False))


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
        return Pattern(text, (), text[:-1], exact=False)
    tokens = tuple(text.split("."))
    for position, token in enumerate(tokens):
        if token == ">" and position < len(tokens) - 1:
            raise ValueError("> may stand only at the end")
        if token not in ("*", ">") and is_wildcard(token):
            raise ValueError(f"token {token!r} mixes a wildcard with text")
    return Pattern(text, tokens, None, exact=not is_wildcard(text))
