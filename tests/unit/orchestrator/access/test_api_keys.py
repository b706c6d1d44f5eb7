"""API keys: what is kept of them, who they let in, and when they stop."""

import asyncio
import stat

import pytest

from orchestrator.access.api_keys import NOBODY, KeyLimits, id_in, new_secret
from orchestrator.access.key_file import KeyFile
from orchestrator.access.keyring import Keyring
from orchestrator.concurrency import Threads
from orchestrator.domain import Band
from orchestrator.errors import InvalidApiKey, InvalidParameter, StoreUnavailable
from tests.faults import wait_until

LIMITS = KeyLimits(requests_per_min=7, tokens_per_min=1000, documents=3, size_bytes=10_000)


@pytest.fixture
def file(tmp_path):
    return KeyFile(tmp_path)


@pytest.fixture
def keyring(file):
    threads = Threads(1)
    yield Keyring(file, threads=threads, refresh_s=0.01)
    threads.close()


def test_a_key_comes_back_as_it_was_made(file):
    """With its owner, its band and its limits; the first one is the first in the list."""
    made, _ = file.create("laptop", owner="ann", admin=True, band=Band.BATCH, limits=LIMITS)
    file.create("other", owner="bob")
    assert file.all()[0] == made
    assert [key.owner for key in file.all()] == ["ann", "bob"]


def test_the_secret_is_kept_nowhere(file):
    """Nor is any long part of it; and nobody else may look into the file."""
    _, text = file.create("laptop", owner="ann")
    written = b"".join(path.read_bytes() for path in file.path.parent.iterdir())
    secret = text.rpartition("_")[2]
    assert text.encode() not in written
    assert secret[:12].encode() not in written
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_every_key_is_another():
    """And carries its id, which a made-up text does not."""
    texts = {new_secret()[1] for _ in range(100)}
    assert len(texts) == 100
    key_id, text = new_secret()
    assert id_in(text) == key_id
    assert id_in("tg_x_y") is None
    assert id_in(f"{text}\n") is None


def test_an_owner_has_no_separator_in_its_name(file):
    """With one it could be somebody else's collection."""
    for owner in ("ann/bob", "", "../x", "a b", "x" * 65):
        with pytest.raises(InvalidParameter):
            file.create("laptop", owner=owner)


def test_without_keys_everybody_is_the_same_person(keyring):
    """Also before the file exists."""
    keyring.read()
    assert not keyring.required
    assert keyring.identify("") is NOBODY
    assert keyring.identify("Bearer whatever") is NOBODY


def test_with_a_key_only_a_key_opens(file, keyring):
    """The whole of it, in the header that is meant for it."""
    made, text = file.create("laptop", owner="ann", limits=LIMITS)
    keyring.read()
    found = keyring.identify(f"Bearer {text}")
    assert (found.owner, found.key, found.limits, found.admin) == ("ann", made, LIMITS, False)
    assert keyring.identify(f"bearer {text}").key == made
    _, other = new_secret()
    wrong = f"tg_{made.id}_{other.rpartition('_')[2][:43].rjust(43, 'x')}"
    for given in ("", "Bearer ", text, f"Basic {text}", f"Bearer {text}x", f"Bearer {wrong}",
                  f"Bearer {other}", f"Bearer {made.id}"):  # fmt: skip
        with pytest.raises(InvalidApiKey):
            keyring.identify(given)


def test_a_revoked_key_opens_nothing_and_the_door_stays_shut(file, keyring):
    """Also where it was the last one."""
    made, text = file.create("laptop", owner="ann")
    assert file.revoke(made.id)
    assert not file.revoke(made.id)
    assert not file.revoke("no-such-key")
    keyring.read()
    assert keyring.required
    with pytest.raises(InvalidApiKey):
        keyring.identify(f"Bearer {text}")


def test_a_file_that_goes_missing_opens_nothing(file, keyring):
    """What was closed once is closed until the next start."""
    file.create("laptop", owner="ann")
    keyring.read()
    file.path.unlink()
    keyring.read()
    assert keyring.required


def test_a_file_that_cannot_be_read_is_no_open_door(file, keyring):
    """A start fails by it; a look later leaves the keys as they were."""
    file.create("laptop", owner="ann")
    keyring.read()
    file.path.write_bytes(b"no database" * 100)
    with pytest.raises(StoreUnavailable):
        keyring.read()
    assert keyring.required


async def test_keys_are_followed_while_it_runs(file, keyring):
    """One that is made, and one that is revoked; a file that breaks in between ends nothing."""
    keyring.read()
    await keyring.start()
    made, text = file.create("laptop", owner="ann")
    assert await asyncio.to_thread(wait_until, lambda: keyring.required)
    whole = file.path.read_bytes()
    file.path.write_bytes(b"no database" * 100)
    await asyncio.sleep(0.05)
    file.path.write_bytes(whole)
    assert keyring.identify(f"Bearer {text}").key == made
    file.revoke(made.id)

    def revoked():
        try:
            keyring.identify(f"Bearer {text}")
        except InvalidApiKey:
            return True
        return False

    assert await asyncio.to_thread(wait_until, revoked)
    await keyring.aclose()
