"""The error tree: words and exit codes are stable and told apart."""

from model_server.errors import ModelServerError


def test_every_error_has_its_own_word_and_exit_code():
    """No two errors share a word or an exit code, and none ends with success."""
    leaves = ModelServerError.__subclasses__()
    assert len({leaf.code for leaf in leaves}) == len(leaves)
    assert len({leaf.exit_code for leaf in leaves}) == len(leaves)
    assert all(leaf.exit_code in range(1, 10) for leaf in leaves)
    assert leaves[0]("what happened").message == "what happened"
