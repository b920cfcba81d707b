"""What to do when Redis refuses: the server's own sentence, and the remedy that its code asks for."""

from __future__ import annotations

import re
from typing import Final

from redis import exceptions as redis_errors

_PRIMARY: Final = "point LORAYARD_REDIS_URL at the primary, not at a replica"
_CLUSTER: Final = "point LORAYARD_REDIS_URL at a single server, a Redis cluster is not supported"
_CREDENTIALS: Final = "check the user and the password in LORAYARD_REDIS_URL"
_FLUSHED: Final = "wait a moment: it was flushed or replaced, and the leader makes its consumer groups again"

_REMEDIES: Final = {
    "MISCONF": "free space on the server's disk or make it writable, its log says what failed",
    "OOM": "raise maxmemory or let the backlog drain",
    "READONLY": _PRIMARY,
    "MASTERDOWN": _PRIMARY,
    "NOREPLICAS": "bring its replicas back, or lower min-replicas-to-write",
    "NOPERM": "have its ACL give the user access to the keys and channels lorayard:* and to all commands",
    "NOAUTH": _CREDENTIALS,
    "WRONGPASS": _CREDENTIALS,
    "DENIED": "give it a password or bind it to a private address, it is in protected mode",
    "MOVED": _CLUSTER,
    "ASK": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
    "CLUSTERDOWN": _CLUSTER,
    "TRYAGAIN": _CLUSTER,
    "LOADING": "wait until it has loaded its data, then submit again",
    "NOGROUP": _FLUSHED,
    "stream key no longer exists": _FLUSHED,
    "BUSY": "wait for the script that it runs and submit again, or end that with SCRIPT KILL",
    "WRONGTYPE": "give Lorayard a database of its own, another application uses names of it",
    "DB index is out of range": "correct the database number at the end of LORAYARD_REDIS_URL",
    "max number of clients reached": "raise maxclients, or close connections that nobody needs",
    "unknown command": "upgrade the server, it is older than 6.2",
}
"""By code, or by words where the code is a plain ERR."""

_CODES: Final = re.compile(rf"(?:^|[- ])({'|'.join(code for code in _REMEDIES if code.isupper())})\b")
_ELSE: Final = "check the server's version (6.2 or newer) and its access rules"


def sentence_of(error: redis_errors.RedisError) -> str:
    """Return what the server said with its code in front, or what redis-py says of the connection."""
    said = str(error).rstrip(".") or type(error).__name__
    code = error.status_code
    return f"{code} {said}" if code and code != "ERR" and not said.startswith(code) else said


def is_out_of_memory(answer: object) -> bool:
    """Whether it is an error of a Redis at its memory limit, which still reads and deletes.

    kombu's errors are judged by what caused them.
    """
    if isinstance(answer, redis_errors.ResponseError):
        found = _CODES.search(sentence_of(answer))
        return found is not None and found[1] == "OOM"
    return isinstance(answer, BaseException) and is_out_of_memory(answer.__cause__)


def has_no_group(error: BaseException) -> bool:
    """Whether it is the error of a Redis that has lost the consumer groups that were made there."""
    return isinstance(error, redis_errors.RedisError) and remedy_of(error) == _FLUSHED


def explained(error: redis_errors.RedisError) -> str:
    """Tell an error in one line, with the remedy if the server refused."""
    remedy = remedy_of(error)
    return f"{sentence_of(error)}; {remedy}" if remedy else sentence_of(error)


def remedy_of(error: redis_errors.RedisError) -> str | None:
    """Tell what helps against a refusal; None if the server did not answer at all."""
    said = sentence_of(error)
    for words, remedy in _REMEDIES.items():
        if not words.isupper() and words in said:
            return remedy
    is_answer = error.status_code is not None or isinstance(error, redis_errors.ResponseError)
    # A script of before Redis 7 tells its error's code in the middle, after a dash.
    if is_answer and (found := _CODES.search(said)):
        return _REMEDIES[found[1]]
    if isinstance(error, redis_errors.AuthenticationError):
        return _CREDENTIALS
    return _ELSE if isinstance(error, redis_errors.ResponseError) else None
