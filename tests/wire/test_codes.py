from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire.codes import REASON_BYTES, Close, CloseCode, CommandError, ErrorCode, UnsubscribeCode, close

DETAILS = st.builds(
    lambda text, times: text * times, st.text(st.characters(codec="utf-8"), max_size=9), st.integers(0, 99)
)
CODES = [*ErrorCode, *CloseCode, *UnsubscribeCode]


def test_errors_have_the_protocols_numbers() -> None:
    assert [code.value for code in ErrorCode] == list(range(100, 114))
    assert (ErrorCode.PERMISSION_DENIED, ErrorCode.TOKEN_EXPIRED, ErrorCode.UNRECOVERABLE_POSITION) == (103, 109, 112)


def test_closes_have_the_protocols_numbers() -> None:
    again = {code.value for code in CloseCode if code < 3500}
    final = {code.value for code in CloseCode if code >= 3500}
    assert again == {3000, 3001, 3004, 3005, 3006, 3008, 3009, 3010, 3011, 3012, 3013}
    assert final == set(range(3500, 3510))
    assert (CloseCode.SLOW, CloseCode.NO_PONG, CloseCode.INVALID_TOKEN, CloseCode.STALE) == (3008, 3012, 3500, 3502)


def test_unsubscribes_have_the_protocols_numbers() -> None:
    assert {code.name: code.value for code in UnsubscribeCode} == {
        "SERVER": 2000,
        "INSUFFICIENT_STATE": 2500,
        "EXPIRED": 2501,
        "STATE_INVALIDATED": 2502,
    }


@pytest.mark.parametrize("code", CODES, ids=repr)
def test_every_code_has_a_short_plain_text(code: ErrorCode | CloseCode | UnsubscribeCode) -> None:
    assert code.text
    assert code.text.isascii()
    assert code.text.isprintable()
    assert len(code.text) < 40


def test_only_these_errors_are_worth_another_try() -> None:
    assert {code.value for code in ErrorCode if code.temporary} == {100, 111, 113}


def test_an_error_says_what_exactly_is_wrong_where_it_is_known() -> None:
    assert CommandError(ErrorCode.BAD_REQUEST).message == "bad request"
    assert CommandError(ErrorCode.BAD_REQUEST, "publish.data: missing").message == "bad request: publish.data: missing"


def test_a_close_has_a_reason_always() -> None:
    assert close(CloseCode.SLOW) == Close(3008, "slow")
    assert close(CloseCode.BAD_REQUEST, "no command") == Close(3501, "bad request: no command")


@given(st.sampled_from(CloseCode), DETAILS)
def test_a_reason_fits_a_close_frame_whatever_the_detail(code: CloseCode, detail: str) -> None:
    reason = close(code, detail).reason
    assert reason.startswith(code.text)
    assert len(reason.encode()) <= REASON_BYTES
    whole = f"{code.text}: {detail}" if detail else code.text
    assert whole.startswith(reason)
    # cut no shorter than to a whole character
    assert reason == whole or len(reason.encode()) > REASON_BYTES - 4
