from __future__ import annotations

from broker.core.roster import Changes, Roster


def listed(roster: Roster, node: str, *clients: str) -> Changes:
    """A listing in one part."""
    return roster.listed(node, {client: client.encode() for client in clients}, first=True, last=True)


def test_who_joins_is_news_once() -> None:
    roster = Roster()
    assert roster.joined("n1", "ann", b"info") is True
    assert roster.joined("n1", "ann", b"info") is False


def test_who_leaves_is_told_as_it_was_known() -> None:
    roster = Roster()
    roster.joined("n1", "ann", b"info")
    roster.joined("n1", "ann", b"newer info")
    assert roster.left("n1", "ann") == b"newer info"
    assert roster.left("n1", "ann") is None


def test_nobody_leaves_for_a_node_that_it_is_not_on() -> None:
    roster = Roster()
    roster.joined("n1", "ann", b"info")
    assert roster.left("n2", "ann") is None
    assert roster.left("n1", "ann") == b"info"


def test_a_listing_shows_who_has_come_and_who_has_gone() -> None:
    roster = Roster()
    assert listed(roster, "n1", "ann", "bob") == Changes(came=[b"ann", b"bob"])
    assert listed(roster, "n1", "bob", "eve") == Changes(came=[b"eve"], went=[b"ann"])
    assert listed(roster, "n2", "ann") == Changes(came=[b"ann"])
    assert listed(roster, "n1") == Changes(went=[b"bob", b"eve"])


def test_a_listing_in_parts_is_judged_at_its_end() -> None:
    roster = Roster()
    listed(roster, "n1", "ann", "bob")
    assert roster.listed("n1", {"eve": b"eve"}, first=True, last=False) == Changes(came=[b"eve"])
    assert roster.listed("n1", {"ann": b"ann"}, first=False, last=False) == Changes()
    assert roster.listed("n1", {}, first=False, last=True) == Changes(went=[b"bob"])


def test_a_listing_that_was_cut_short_is_begun_anew() -> None:
    roster = Roster()
    listed(roster, "n1", "ann", "bob")
    roster.listed("n1", {"ann": b"ann"}, first=True, last=False)
    assert listed(roster, "n1", "bob") == Changes(went=[b"ann"])


def test_the_end_of_a_listing_without_its_beginning_says_nothing() -> None:
    roster = Roster()
    listed(roster, "n1", "ann")
    roster.doubt()
    assert roster.listed("n1", {"eve": b"eve"}, first=False, last=True) == Changes()
    assert roster.doubtful() == ["n1"]
    assert roster.listed("n2", {"eve": b"eve"}, first=False, last=True) == Changes()
    roster.listed("n1", {"eve": b"eve"}, first=True, last=False)
    roster.doubt()  # the rest of it is lost
    assert roster.listed("n1", {}, first=False, last=True) == Changes()


def test_a_doubt_ends_with_a_listing() -> None:
    roster = Roster()
    for node in ("n1", "n2", "n3"):
        listed(roster, node, f"ann of {node}")
    roster.doubt("n3")
    assert roster.doubtful() == ["n3"]
    roster.doubt()
    roster.joined("n1", "bob", b"bob")
    assert roster.doubtful() == ["n1", "n2", "n3"]
    listed(roster, "n1", "ann of n1", "bob")
    listed(roster, "n3")
    assert roster.doubtful() == ["n2"]
    assert [roster.is_sure_of(node) for node in ("n1", "n2", "n3", "n4")] == [True, False, False, False]


def test_whom_nobody_vouches_for_is_dropped_a_few_at_a_time() -> None:
    roster = Roster()
    listed(roster, "n1", *"abcde")
    listed(roster, "n2", "x")
    assert roster.drop("n1", 2) == []  # there is no doubt
    roster.doubt("n1")
    assert roster.drop("n1", 2) == [b"a", b"b"]
    assert roster.left("n1", "c") == b"c"
    assert roster.drop("n1", 2) == [b"d", b"e"]
    assert roster.drop("n1", 2) == []
    assert roster.drop("n2", 2) == []


def test_who_is_listed_while_it_is_dropped_stays() -> None:
    roster = Roster()
    listed(roster, "n1", *"abcd")
    roster.doubt("n1")
    roster.drop("n1", 2)
    assert listed(roster, "n1", *"abcd") == Changes(came=[b"a", b"b"])
    assert roster.drop("n1", 2) == []


def test_nothing_is_kept_of_nodes_without_members() -> None:
    roster = Roster()
    listed(roster, "n1", "ann")
    roster.left("n1", "ann")
    listed(roster, "n2", "ann")
    listed(roster, "n2")
    listed(roster, "n3", "ann")
    roster.doubt("n3")
    roster.drop("n3", 10)
    roster.listed("n4", {}, first=True, last=False)
    roster.doubt("n4")
    roster.drop("n4", 10)
    assert roster._nodes == {}
