"""Tests of server/credentials.py."""

from __future__ import annotations

import gc
import random

from server.credentials import CredentialCache
from tests.support.clock import Clock


def _cache(cache_s: float = 300, max_entries: int = 100) -> tuple[CredentialCache, Clock]:
    clock = Clock()
    return CredentialCache(cache_s, max_entries, clock), clock


def test_what_was_put_is_found_by_all_its_parts_only() -> None:
    """Parts do not run together."""
    cache, _ = _cache()
    cache.put("carol", "secret", value="config", user_id="7")
    assert cache.get("carol", "secret") == "config"
    for parts in [("carol", "secreT"), ("caro", "lsecret"), ("carolsecret",), ("carol", "secret", ""), ()]:
        assert cache.get(*parts) is None


def test_it_lasts_its_time_whether_asked_for_or_not() -> None:
    """And another time from when it is put again."""
    cache, clock = _cache()
    cache.put("a", value="1", user_id="u")
    clock.now += 299
    assert cache.get("a") == "1"
    clock.now += 1
    assert cache.get("a") is None
    cache.put("a", value="2", user_id="u")
    clock.now += 299
    assert cache.get("a") == "2"


def test_a_shorter_time_counts_for_what_is_held() -> None:
    """As after a reload; with 0 nothing is held."""
    cache, clock = _cache()
    cache.put("a", value="1", user_id="u")
    clock.now += 20
    cache.cache_s = 10
    assert cache.get("a") is None
    cache.cache_s = 0
    cache.put("a", value="1", user_id="u")
    assert len(cache) == 0
    assert cache.get("a") is None


def test_the_one_unused_for_longest_makes_room() -> None:
    """It never holds more than it may."""
    cache, _ = _cache(max_entries=2)
    cache.put("a", value="1", user_id="u")
    cache.put("b", value="2", user_id="v")
    assert cache.get("a") == "1"
    cache.put("c", value="3", user_id="w")
    assert [cache.get(part) for part in "abc"] == ["1", None, "3"]
    assert len(cache) == 2


def test_a_user_is_forgotten_with_all_that_is_theirs() -> None:
    """The others stay; forgetting again, or a stranger, is nothing."""
    cache, _ = _cache()
    cache.put("a", value="1", user_id="u")
    cache.put("b", value="2", user_id="u")
    cache.put("c", value="3", user_id="v")
    for user_id in ("u", "u", "stranger"):
        cache.forget(user_id)
    assert [cache.get(part) for part in "abc"] == [None, None, "3"]
    cache.clear()
    cache.forget("v")
    assert cache.get("c") is None


def test_any_text_is_a_part() -> None:
    """Also one that is no Unicode, as JSON can hold it."""
    cache, _ = _cache()
    cache.put("\ud800", "a", value="1", user_id="u")
    assert (cache.get("\ud800", "a"), cache.get("?", "a")) == ("1", None)


def test_it_never_grows_whatever_is_done_with_it() -> None:
    """Neither the entries nor what is known of their users."""
    chance, (cache, clock) = random.Random(7), _cache(max_entries=10)  # noqa: S311
    for _ in range(5000):
        part, user_id = str(chance.randrange(40)), str(chance.randrange(8))
        chance.choice(
            [
                lambda part=part, user_id=user_id: cache.put(part, value="1", user_id=user_id),
                lambda part=part: cache.get(part),
                lambda user_id=user_id: cache.forget(user_id),
            ]
        )()
        clock.now += chance.choice([0, 0, 50])
        assert len(cache) <= 10
        assert set().union(*cache._of_user.values()) == set(cache._entries)
        assert all(cache._of_user.values())


def test_no_password_is_kept() -> None:
    """What is reachable from a cache holds neither it nor the login, and two caches hold different hashes of it."""
    caches = [_cache()[0] for _ in range(2)]
    for cache in caches:
        cache.put("the login", "the password", value="config", user_id="7")
    for cache in caches:
        found = [*gc.get_referents(cache._entries), *gc.get_referents(cache._of_user), *cache._entries]
        assert "the password" not in repr(found)
        assert "the login" not in repr(found)
    assert set(caches[0]._entries).isdisjoint(caches[1]._entries)
