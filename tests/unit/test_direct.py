"""The gids of one-to-one chats: unambiguous for any two uids, and read back."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imcore.errors import InvalidInput
from imcore.model.direct import gid_of, is_direct, peer_of
from imcore.model.limits import MAX_NAME_BYTES, check_name


def _valid(uid: str) -> bool:
    try:
        check_name(uid, "uid")
    except InvalidInput:
        return False
    return True


odd = st.text("ab:0123456789#@ é群👩\u200d💻", min_size=1, max_size=30).filter(_valid)
uids = odd | st.text(min_size=1, max_size=MAX_NAME_BYTES).filter(_valid)


@given(uids, uids)
@example("a:b", "a")
@example("3:ann", "bob")
@example("1", "1:1")
@example("👩\u200d💻", "群主")
@example("ann", "ann")
def test_a_direct_gid_names_the_peer_of_either_member(one: str, other: str) -> None:
    gid = gid_of(one, other)

    assert is_direct(gid)
    assert _valid(gid)
    assert gid == gid_of(other, one)
    assert peer_of(gid, one, [one, other]) == other
    assert peer_of(gid, other, [one, other]) == one
    if gid.startswith("dm:"):
        assert (peer_of(gid, one), peer_of(gid, other)) == (other, one)
    else:
        assert peer_of(gid, one) is None


@given(uids, uids, uids)
def test_a_stranger_has_no_peer_in_a_direct_gid(one: str, other: str, stranger: str) -> None:
    if stranger not in (one, other):
        assert peer_of(gid_of(one, other), stranger, [one, other, stranger]) is None


@given(uids, uids, uids, uids)
def test_no_two_pairs_share_a_direct_gid(one: str, other: str, third: str, fourth: str) -> None:
    assert (gid_of(one, other) == gid_of(third, fourth)) == ({one, other} == {third, fourth})


@pytest.mark.parametrize(
    "gid",
    [
        *("team", "3:ann:bob", "dm", "dm:", "dm::", "dm:ann:bob", "dm:03:ann:bob", "dm:٣:ann:bob", "dm:3:annxbob"),
        *("dm:3:bob:ann", "dm:-1:ann:bob", "dm:9999:ann:bob", "dm#ann"),
    ],
)
def test_other_gids_name_no_pair(gid: str) -> None:
    assert peer_of(gid, "ann", ["bob"]) is None
