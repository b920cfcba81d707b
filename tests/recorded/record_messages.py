"""Records every wire message of this version as files: `python -m tests.recorded.record_messages FOLDER`.

A whole stack (scheduler, worker, relay, client) is asked for every shape of job while MONITOR takes down what
it writes to Redis; ends that it does not come to in so short a life are brought about in an empty ledger.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import redis

from db import Database
from db.migrate import upgrade
from db.records import RevisionRow
from db.repositories.adapters import AdapterRepository
from examples.demo.stage import add_shipped_adapters, await_catalogue, stack_config
from lorayard import Client, JobHandle
from lorayard.contract.keys import POOLS_KEY
from lorayard.contract.messages import Command
from lorayard.local import SERVERS, Stack, StackConfig
from lorayard.server.adapter_store import revision_folder
from lorayard.server.replies import state_reply
from tests.integration.workers.webhooks.receiver import Receiver, listening
from tests.polling import eventually
from tests.recorded.fill_ledger import fill
from workers.engine.lora import adapter_digest
from workers.webhooks.body import render

DAMAGED = "vowels"
ALL_SAMPLING: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "seed": 2**63 - 1,
    "stop": ("\n", "é", "</s>"),
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "presence_penalty": -0.5,
    "frequency_penalty": 1.5,
    "min_tokens": 2,
    "stop_token_ids": (7, 9),
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "logit_bias": {3: -100.0, 5: 1.5},
    "bad_words": ("bad", "wörse"),
}
CHAT = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": 'reverse: grüße \U0001f682 \u2028 "quoted" \\ tab\t'},
    {"role": "assistant", "content": "eßürg"},
    {"role": "user", "content": "again"},
]
SCHEMA = {
    "type": "object",
    "properties": {"z": {"type": "number", "maximum": 1e3}, "a": {"enum": ["x", None, 1.0]}},
    "required": ["z"],
    "additionalProperties": False,
}
JOBS: dict[str, dict[str, Any]] = {
    "prompt_only": {"prompt": "hello>", "max_tokens": 4},
    "all_defaults": {"prompt": "hello>", "stop": ("\n",)},
    "messages": {"messages": CHAT, "max_tokens": 4},
    "adapter": {"prompt": "hello>", "adapter": "upper", "max_tokens": 8},
    "adapter_scale": {"prompt": "hello>", "adapter": "sort", "adapter_scale": -0.25, "max_tokens": 8},
    "all_sampling": {"prompt": "hello>", "max_tokens": 6} | ALL_SAMPLING,
    "priority_high": {"prompt": "hi>", "priority": "high", "max_tokens": 4},
    "priority_low": {"prompt": "hi>", "priority": "low", "max_tokens": 4},
    "deadline": {"prompt": "hi>", "deadline_s": 3600.5, "max_tokens": 4},
    "deadline_passed": {"prompt": "hi>", "deadline_s": 0.000001, "max_tokens": 4},
    "tenant_and_key": {
        "prompt": "hi>",
        "tenant": "acme:eu/1",
        "idempotency_key": "order 7 ü",
        "max_tokens": 4,
    },
    "metadata": {
        "prompt": "hi>",
        "max_tokens": 4,
        "metadata": {"b": [1, 2.5, 1e300, None, True], "a": {"ü": "\u2028"}, "": 2**53},
    },
    "callback": {"prompt": "hi>", "max_tokens": 4, "tenant": "acme", "callback_url": "http://127.0.0.1/"},
    "stream": {"prompt": "hello>", "adapter": "twice", "max_tokens": 24, "stream": True},
    "json_schema": {"prompt": "hi>", "max_tokens": 40, "structured_outputs": {"json": SCHEMA}},
    "json_schema_text": {
        "prompt": "hi>",
        "max_tokens": 40,
        "structured_outputs": {"json": '{"type":"boolean"}'},
    },
    "regex": {"prompt": "hi>", "max_tokens": 8, "structured_outputs": {"regex": "[a-c]{2}"}},
    "regex_refused": {"prompt": "hi>", "max_tokens": 8, "structured_outputs": {"regex": "a("}},
    "choice": {"prompt": "hi>", "max_tokens": 8, "structured_outputs": {"choice": ["yes", "nö"]}},
    "grammar": {"prompt": "hi>", "max_tokens": 8, "structured_outputs": {"grammar": 'start: "a" | "b"'}},
    "too_long_for_the_model": {"prompt": "é" * 400 + ">", "max_tokens": 1},
    "everything": {
        "messages": CHAT[:2],
        "adapter": "rot13",
        "adapter_scale": 1.5,
        "max_tokens": 12,
        "stream": True,
        "structured_outputs": {"choice": ["a", "b"]},
        "priority": "high",
        "deadline_s": 86_400.0,
        "tenant": "acme",
        "callback_url": "http://127.0.0.1/",
        "idempotency_key": "all of it",
        "metadata": {"k": [{"n": -0.0}]},
    }
    | ALL_SAMPLING
    | {"ignore_eos": False, "min_tokens": 0},
}
ENDLESS = {"prompt": "aaaa", "max_tokens": 480, "ignore_eos": True, "stream": True}

_ARGUMENT = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)")
_LETTERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}


class Monitor:
    """A thread that keeps every command a Redis is given, those of its scripts included."""

    def __init__(self, url: str) -> None:
        self._monitor = redis.Redis.from_url(url, protocol=2).monitor()
        self._thread = threading.Thread(target=self._read, name="monitor", daemon=True)
        self.commands: list[list[bytes]] = []

    def __enter__(self) -> Self:
        self._monitor.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join(timeout=1.0)  # the server is gone by now, and with it the connection

    def _read(self) -> None:
        try:
            while True:
                self.commands.append([_unescaped(one) for one in _ARGUMENT.findall(self._line())])
        except (redis.ConnectionError, OSError, ValueError, AttributeError):
            return

    def _line(self) -> bytes:
        line: bytes = self._monitor.connection.read_response(disable_decoding=True)
        return line.partition(b"] ")[2]


def _unescaped(argument: bytes) -> bytes:
    def restored(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code[1:], 16)]) if len(code) == 3 else _LETTERS.get(code, code)

    return _ESCAPE.sub(restored, argument)


class Recording:
    """The files of one version; of several messages of one name the first is kept."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, kind: str, name: str, body: bytes) -> None:
        """Write one message as one file."""
        path = self._root / kind / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(body)


def _entry(command: list[bytes]) -> bytes:
    """Take the body out of an XADD, whatever options stand before it."""
    return command[command.index(b"body") + 1]


def record_commands(commands: list[list[bytes]], names: dict[str, str], to: Recording) -> None:
    """Sort what went over Redis by its key."""
    batches = 0
    for command in commands:
        verb, key = command[0].upper(), command[1].decode(errors="replace") if len(command) > 1 else ""
        if verb == b"XADD":
            record_entry(key, _entry(command), names, to)
        elif verb == b"HSET" and key == POOLS_KEY:
            to.put("pool_info", "pool", command[3])
        elif verb == b"HSET" and key.endswith(":catalogue"):
            state = json.loads(command[3])["state"]
            to.put("catalogue_entry", state, command[3])
        elif verb == b"HSET" and key.endswith(":admission") and command[2] == b"ledger_room":
            pairs = [one.decode() for one in command[2:]]
            fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
            to.put("admission_figures", "figures", json.dumps(fields, indent=1).encode())
        elif verb == b"LPUSH" and key.startswith("lorayard.worker."):
            batches += 1
            to.put("celery_message", f"micro_batch_{batches:02}", command[2])
            body = base64.b64decode(json.loads(command[2])["body"]).decode()
            assert body.startswith("[[{"), body[:20]
            _, end = json.JSONDecoder().raw_decode(body, 2)
            to.put("micro_batch", f"batch_{batches:02}", body[2:end].encode())


def record_entry(key: str, body: bytes, names: dict[str, str], to: Recording) -> None:
    """Name one stream entry by what it tells."""
    message = json.loads(body)
    name = names.get(message.get("job_id", ""), "")
    if ":jobs:" in key:
        to.put("job_envelope", name, body)
    elif key.endswith(":control"):
        to.put("control_message", message["kind"], body)
    elif key.endswith(":completions"):
        told = [part for part in ("residency", "ended", "held", "failures", "draining") if message.get(part)]
        states = sorted({one["state"] for one in message.get("ended", ())})
        to.put("worker_event", "_".join(told + states) or "empty", body)
    elif ":cmd:" in key:
        to.put("command", message["kind"], body)
    elif key.startswith("lorayard:reply:"):
        flags = [flag for flag in ("submission_id", "conflict", "request_id") if message.get(flag)]
        to.put("job_reply", "_".join([str(message.get("state")), *flags]).lower(), body)
    elif key.startswith("lorayard:tok:"):
        to.put("token_entry", "ended" if message.get("ended") else "text", body)


def drive_stack(to: Recording) -> None:
    """Run a whole stack, and ask it for every shape of job."""
    with ExitStack() as stack_of:
        folder = Path(stack_of.enter_context(tempfile.TemporaryDirectory(prefix="lorayard-record-")))
        folder.chmod(0o711)
        receiver = stack_of.enter_context(listening(Receiver()))
        config = replace(stack_config(folder / "state"), num_workers=1, drain_grace_s=1.0)
        stack = stack_of.enter_context(Stack(config))
        env = stack.client_env()
        monitor = Monitor(env["LORAYARD_REDIS_URL"])
        names: dict[str, str] = {}
        with monitor:
            database = Database(env["LORAYARD_DATABASE_URL"], name="record")
            add_shipped_adapters(database, env)
            damage_an_adapter(database, env)
            database.dispose()
            with Client(env["LORAYARD_REDIS_URL"]) as client:
                await_catalogue(client)
                talk(client, receiver.url, names, stack)
            stack.stop()
        record_commands(monitor.commands, names, to)
        for number, (body, headers) in enumerate(receiver.received, 1):
            event = json.loads(body)
            to.put("webhook_event", event["type"], body)
            if number == 1:
                shown = {name.lower(): value for name, value in headers.items()}
                to.put("webhook_headers", "headers", json.dumps(shown, indent=1).encode())


def damage_an_adapter(database: Database, env: dict[str, str]) -> None:
    """Have a name stand for files that were bad when they got their digest, as `adapters add` never would."""
    listed = database.run(lambda c: AdapterRepository(c).listed(None))
    entry = next(one for one in listed if one.name == DAMAGED)
    store = Path(env["LORAYARD_ADAPTER_STORE"])
    with tempfile.TemporaryDirectory(dir=store) as scratch:
        copy = shutil.copytree(revision_folder(store, entry.revision), Path(scratch) / "copy")
        config = copy / "adapter_config.json"
        config.chmod(0o644)
        config.write_bytes(config.read_bytes().replace(b'"r"', b'"R"'))
        digest = adapter_digest(copy)
        copy.rename(revision_folder(store, digest))
    row = RevisionRow(digest, entry.rank, ("q_proj",), entry.bytes)
    database.run(lambda c: AdapterRepository(c).add_revision(entry.pool, DAMAGED, row))


def talk(client: Client, callback_url: str, names: dict[str, str], stack: Stack) -> None:
    """Submit, look up, cancel, repeat and contradict."""

    def submit(name: str, fields: dict[str, Any], **options: Any) -> JobHandle:
        if "callback_url" in fields:
            fields = fields | {"callback_url": callback_url}
        handle = client.submit(**fields, **options)
        names.setdefault(str(handle.id), name)
        return handle

    running = submit("endless", ENDLESS)
    next(iter(running.stream(30.0)))
    running.cancel()
    handles = [submit(name, fields) for name, fields in JOBS.items()]
    for handle in handles:
        handle.result(60.0, raise_on_failure=False)
    submit("confirmed", {"prompt": "hi>", "max_tokens": 2}, confirm="ledger").status()
    client.job(handles[0].id).status()
    nobodys = UUID(int=1)
    for handle in (client.job(handles[0].id), client.job(nobodys)):
        _quietly(handle.status)
        _quietly(handle.cancel)
    _quietly(submit("repeat", JOBS["tenant_and_key"]).result, 10.0)
    _quietly(submit("conflict", JOBS["tenant_and_key"] | {"prompt": "other>"}).result, 10.0)
    _quietly(submit("quarantined", {"prompt": "hi>", "adapter": DAMAGED}).result, 30.0)
    eventually(lambda: DAMAGED not in client.adapters(), 30.0, "the quarantine")
    stack_worker = next(name for name in stack.parts if "worker" in name)
    left = submit("left_behind", ENDLESS)
    next(iter(left.stream(30.0)))
    stack.stop_part(stack_worker)
    submit("queued_cancel", {"prompt": "hi>"}).cancel()


def _quietly(call: Any, *arguments: Any) -> None:
    try:
        call(*arguments)
    except Exception as error:  # the answers are what is wanted here, not their meaning
        print(f"{type(error).__name__}: {error}")


def render_the_rest(to: Recording) -> None:
    """Render, by the functions that do so in service, what a healthy stack seldom says."""
    with tempfile.TemporaryDirectory(prefix="lorayard-record-") as folder:
        Path(folder).chmod(0o711)
        with Stack(StackConfig(state_dir=Path(folder) / "state", parts=SERVERS, durable=False)) as stack:
            upgrade(stack.postgres.url)
            filled = fill(stack.postgres.url)
            for job in filled.finished:
                to.put("job_reply", job.state.value, _body(state_reply(job.result)))
                if job.result.output and len(job.result.output) > 8192:
                    to.put("job_reply", "output_omitted", _body(state_reply(job.result)))
            for delivery in filled.deliveries:
                name = (
                    f"{delivery.event_type}{'.omitted' if len(delivery.result.output or '') > 65536 else ''}"
                )
                to.put("webhook_event", name, render(delivery).encode())
    for kind in ("recall", "drain", "prefetch", "drop"):
        command = Command(kind=kind, term=3, job_ids=(UUID(int=1), UUID(int=2)), revisions=("sha256:00ff",))
        to.put("command", kind, _body(command))


def _body(message: Any) -> bytes:
    body: bytes = message.to_entry()[b"body"]
    return body


def main() -> int:
    """Record into a folder that does not exist yet."""
    root = Path(sys.argv[1])
    if root.exists():
        shutil.rmtree(root)
    to = Recording(root)
    drive_stack(to)
    render_the_rest(to)
    for path in sorted(root.rglob("*.json")):
        print(path.relative_to(root), path.stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
