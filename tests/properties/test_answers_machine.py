"""Any order of answers, steers, edits, forks and deaths of the server leaves the trees that plain
lists of messages say; every prompt has exactly the tokens that were run before it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import AnswerNotFound, InvalidField
from lmserve.messages import unpack_ids
from lmserve.service.answers import log as answer_log
from lmserve.service.answers.answers import Answer
from lmserve.service.answers.records import Ask, Record
from lmserve.service.items import Call
from lmserve.service.sessions.sessions import SessionKey
from lmserve.settings import EngineSettings, ServerSettings
from lmserve.text.tokenizer import Tokenizer
from lmserve.types import Tool
from tests.service.plain import Place, ask, finish, names, said, told
from tests.service.talk import user

T = TypeVar("T")

SERVER = ServerSettings(tool_call_parser="hermes")
TOOLS: dict[str, Any] = {"tools": (Tool("f"),), "splits": True}
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'

TEXTS = st.text("ab<|> \n\u00e9", max_size=6)
PIECES = st.lists(st.lists(st.sampled_from([97, 195, 169, 256, 300]), max_size=3), max_size=3)
WORDS = st.lists(st.sampled_from(["a", "bc", " "]), max_size=3)


@dataclass
class Message:
    """`ids`: of the whole line up to here, where it was run."""

    id: int
    parent: Message | None
    role: str
    text: str
    ids: list[int] | None = None
    num_own: int = 0  # of an answer
    state: str | None = None
    children: list[Message] = field(default_factory=list)

    def line(self) -> list[Message]:
        return [*(self.parent.line() if self.parent else ()), self]


@dataclass
class Session:
    id: str
    durable: bool
    messages: dict[int, Message] = field(default_factory=dict)
    head: int | None = None

    def add(self, id: int, parent: Message | None, role: str, text: str, **about: Any) -> Message:
        message = self.messages[id] = Message(id, parent, role, text, **about)
        if parent is not None:
            parent.children.append(message)
        return message


@dataclass
class Known:
    """A response."""

    record: Record
    session: Session
    events: list[tuple[str, Any]]

    @property
    def message(self) -> Message:
        return self.session.messages[self.record.message_id]


class AnswersMachine(RuleBasedStateMachine):
    known = Bundle("known")
    calling = Bundle("calling")  # answers that made a call, which waits for its output

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.num_lives = self.num_forks = 0
        self.sessions: dict[str, Session] = {}
        self.responses: dict[str, Known] = {}
        self.keys: dict[str, str] = {}
        self.steered: dict[str, list[str]] = {}  # what waits with a call
        self.flush_s, answer_log.FLUSH_S = answer_log.FLUSH_S, 0.0
        self.runner = asyncio.Runner()
        self.run(self.start_all())

    async def start_all(self) -> None:
        self.engine = FakeEngine(EngineSettings(engine="mock", session_len=8000))
        await self.engine.start()
        self.place = Place(Path(self.folder.name) / "0", self.engine, server=SERVER)
        await self.place.open()
        self.tokenizer: Tokenizer = (await self.place.service.model_text()).tokenizer

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(20):
                return await work

        return self.runner.run(bounded())

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        answer_log.FLUSH_S = self.flush_s
        self.run(self.stop_all())
        self.runner.close()
        self.folder.cleanup()

    async def stop_all(self) -> None:
        await self.place.close()
        await self.engine.close()

    # --- what a prompt should be --------------------------------------------------------

    def prompt(self, after: Message | None, texts: list[str]) -> list[int]:
        """From the last answer whose tokens are known, its text where none are."""
        line = after.line() if after else []
        rest = [(message.role, message.text) for message in line]
        ids: list[int] = []
        for index in range(len(line) - 1, -1, -1):
            if line[index].role == "assistant" and line[index].ids is not None:
                ids, rest = line[index].ids, rest[index + 1 :]
                break
        rest += [("user", text) for text in texts]
        rendered = "<|im_end|>\n" if ids else ""
        rendered += "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in rest)
        rendered += "<|im_start|>assistant\n"
        return ids + self.tokenizer.encode(rendered, add_special=False)

    def text(self, ids: list[int]) -> str:
        detokenizer = self.tokenizer.detokenizer(skip_special=True)
        return detokenizer.push(ids) + detokenizer.flush()

    # --- one answer ---------------------------------------------------------------------

    def answered(
        self, answer: Answer, after: Message | None, texts: list[str], own: list[int],
        before: Message | None = None, session: Session | None = None,
    ) -> Known:  # fmt: skip
        """Writes down what has ended: `own` tokens, which go on with those of `before`."""
        record = answer.record
        if session is None:
            session = self.sessions.setdefault(
                record.session, Session(record.session, durable=self.is_durable(record))
            )
        prompt = self.prompt(after, texts) if before is None else list(before.ids)
        assert unpack_ids(self.engine.submits[-1].token_ids) == prompt
        if before is not None:
            own = [*before.ids[len(before.ids) - before.num_own :], *own]
            prompt = prompt[: len(prompt) - before.num_own]
        at = after
        assert len(record.input_ids) == len(texts)
        for id, text in zip(record.input_ids, texts, strict=True):
            at = session.add(id, at, "user", text)
        state = None if record.status == "completed" else "incomplete"
        message = session.add(
            record.message_id, at, "assistant", self.text(own),
            ids=prompt + own, num_own=len(own), state=state,
        )  # fmt: skip
        session.head = message.id
        assert record.text == message.text == said(answer.stream)
        return self.keep(answer, session)

    def keep(self, answer: Answer, session: Session) -> Known:
        record = answer.record
        known = self.responses[record.id] = Known(record, session, told(answer.stream))
        return known

    def is_durable(self, record: Record) -> bool:
        archive = self.place.answers._archive
        return self.run(archive.find("", record.id))[0].durable

    def moved(self, known: Known, keep: bool, record: Record) -> tuple[Session, Message]:
        """Where the answer after this one is: in a copy, if that is kept elsewhere."""
        if keep == known.session.durable:
            return known.session, known.message
        session = self.sessions[record.session] = Session(record.session, durable=keep)
        line = known.message.line()
        first = record.input_ids[0] - len(line)
        last = max(i for i, m in enumerate(line) if m.role == "assistant" and m.ids is not None)
        at = None
        for index, message in enumerate(line):
            ids = message.ids if index == last else None
            at = session.add(first + index, at, message.role, message.text, ids=ids)
        assert at is not None
        return session, at

    async def finished(self, asked: Ask) -> Answer:
        answer = await self.place.answers.begin(asked)
        await finish(answer)
        return answer

    def script(self, pieces: list[list[int]], finish: str) -> list[int]:
        self.engine.will_say(*pieces, finish=finish)
        return [id for piece in pieces for id in piece]

    # --- rules --------------------------------------------------------------------------

    @rule(target=known, text=TEXTS, pieces=PIECES, keep=st.sampled_from([True, True, False]),
          finish=st.sampled_from(["stop", "length"]))  # fmt: skip
    def begin(self, text, pieces, keep, finish) -> str:
        own = self.script(pieces, finish)
        answer = self.run(self.finished(ask(text, keep=keep)))
        return self.answered(answer, None, [text], own).record.id

    @rule(target=known, id=known, texts=st.lists(TEXTS, min_size=1, max_size=2), pieces=PIECES,
          keep=st.sampled_from([True, True, False]))  # fmt: skip
    def follow(self, id, texts, pieces, keep) -> Any:
        known = self.responses.get(id)
        if known is None:
            self.refused(ask("x", previous=id))
            return multiple()
        own = self.script(pieces, "stop")
        answer = self.run(self.finished(ask(*texts, previous=id, keep=keep)))
        assert answer.record.previous == id
        session, after = self.moved(known, keep, answer.record)
        return self.answered(answer, after, texts, own, session=session).record.id

    def refused(self, asked: Ask) -> None:
        try:
            self.run(self.place.answers.begin(asked))
        except AnswerNotFound:
            return
        raise AssertionError("it was not refused")

    @rule(target=known, id=known, text=TEXTS, pieces=PIECES,
          form=st.sampled_from(["head", "edit", "regenerate", "continue"]))  # fmt: skip
    def turn(self, id, text, pieces, form) -> Any:
        known = self.responses.get(id)
        if known is None:
            return multiple()
        session, answer = known.session, known.message
        asked = ask(text, session=session.id, keep=session.durable)
        before, texts, after = None, [text], answer.parent
        if form == "head":
            after = session.messages.get(session.head) if session.head is not None else None
        elif form == "edit":
            after = after.parent if after is not None else None
            asked = ask(text, session=session.id, keep=session.durable, after=after and after.id)
        elif form == "regenerate":
            texts = []
            asked = ask(session=session.id, keep=session.durable, after=answer.parent.id)
        elif answer.state is None or answer.ids is None:
            return multiple()
        else:
            before, texts = answer, []
            asked = ask(session=session.id, keep=session.durable, continues=answer.id)
        own = self.script(pieces, "stop")
        made = self.run(self.finished(asked))
        return self.answered(made, after, texts, own, before, session).record.id

    @rule(target=known, id=known, words=WORDS, how=st.sampled_from(["cancel", "steer", "abandon"]),
          text=TEXTS, pieces=PIECES)  # fmt: skip
    def cut(self, id, words, how, text, pieces) -> Any:
        known = self.responses.get(id)
        if known is None:
            return multiple()
        self.engine.will_hang(*words)
        steered = self.script(pieces, "stop") if how == "steer" else []
        first = self.run(self.hanging(ask("q", previous=id, keep=known.session.durable), words))

        async def stop() -> Answer | None:
            if how == "cancel":
                await self.place.answers.cancel("", first.record.id)
            elif how == "abandon":
                first.stream._on_abandoned()
            else:
                await self.place.answers.steer("", first.record.id, [user(text)], text)
            await first.ended()
            successor = await first.successor()
            if successor is not None:
                await finish(successor)
            return successor

        submits = self.engine.submits
        successor = self.run(stop())
        last = submits.pop() if successor is not None else None
        made = self.answered(first, known.message, ["q"], list("".join(words).encode()),
                             session=known.session)  # fmt: skip
        assert made.record.status == ("cancelled" if how == "cancel" else "incomplete")
        if successor is None:
            assert how != "steer"
            return made.record.id
        submits.append(last)
        assert successor.record.previous == first.record.id
        after = self.answered(successor, made.message, [text], steered, session=known.session)
        return multiple(made.record.id, after.record.id)

    async def hanging(self, asked: Ask, words: list[str]) -> Answer:
        answer = await self.place.answers.begin(asked)
        with answer.stream.reading() as reader:
            while said(answer.stream) != "".join(words):
                await reader.wait()
                reader.take()
        return answer

    @rule(target=known, key=st.sampled_from("xy"), pieces=PIECES)
    def once(self, key, pieces) -> Any:
        own = self.script(pieces, "stop")
        num_before = len(self.engine.submits)
        answer = self.run(self.finished(ask("once", idempotency=(key, b""))))
        id = self.keys.get(key)
        if id is None or id not in self.responses:
            self.keys[key] = answer.record.id
            return self.answered(answer, None, ["once"], own).record.id
        assert answer.record == self.responses[id].record
        assert told(answer.stream) == self.responses[id].events
        assert len(self.engine.submits) == num_before
        self.engine._scripts.pop()
        return multiple()

    @rule(target=calling, text=TEXTS, steers=st.lists(TEXTS, max_size=2))
    def call(self, text, steers) -> str:
        if steers:
            self.engine.will_hang(CALL)
        else:
            self.engine.will_say(CALL)
        answer = self.run(self.called(text, steers))
        id = answer.record.id
        assert [type(item) for item in answer.record.said] == [Call]
        self.keep(answer, Session(answer.record.session, durable=True))
        self.steered[id] = steers
        return id

    async def called(self, text: str, steers: list[str]) -> Answer:
        answer = await self.place.answers.begin(ask(text, fields=TOOLS))
        if steers:
            with answer.stream.reading() as reader:
                while "CallArguments" not in names(answer.stream):
                    await reader.wait()
                    reader.take()
            for each in steers:
                await self.place.answers.steer("", answer.record.id, [user(each)], each)
            await self.place.answers.update("", answer.record.id, {"max_tokens": 1}, {})
        await finish(answer)
        assert await answer.successor() is None
        return answer

    @rule(id=consumes(calling), appended=st.booleans(), text=TEXTS)
    def output(self, id, appended, text) -> None:
        """It may come in a later life; what waited for it comes with it."""
        first = self.responses[id].record
        message = {"role": "tool", "content": text, "tool_call_id": first.said[0].id}
        refused = ask("x", previous=id)
        try:
            self.run(self.place.answers.begin(refused))
            raise AssertionError("the output was not missed")
        except InvalidField:
            pass
        key = SessionKey("", first.session)
        about: dict[str, Any] = {"previous": id, "fields": {"messages": [message]}}
        if appended:
            self.run(self.place.sessions.add(key, [message]))
            about = {"session": key.id}
        self.engine.will_say("Done")
        made = self.run(self.finished(ask(**about))).record
        line = self.run(self.place.sessions.line(key))
        steers = self.steered.pop(id)
        assert [node.message["content"] for node in line[2:]] == [text, *steers, "Done"]
        record = self.run(self.place.answers.record("", id))
        assert record.successor == (made.id if steers else None)
        self.responses[id].record = record

    @rule(id=consumes(known))
    def delete(self, id) -> None:
        known = self.responses.pop(id, None)
        if known is None:
            return
        self.run(self.place.answers.delete("", id))
        session = known.session
        for each in [known.record.message_id, *reversed(known.record.input_ids)]:
            message = session.messages[each]
            if message.children:
                break
            del session.messages[each]
            if message.parent is not None:
                message.parent.children.remove(message)
            if session.head == each:
                session.head = message.parent and message.parent.id

    @rule(id=known)
    def fork(self, id) -> None:
        known = self.responses.get(id)
        if known is None or not known.session.durable:
            return
        self.num_forks += 1
        key = SessionKey("", f"fork{self.num_forks}")
        info = self.run(
            self.place.sessions.fork(SessionKey("", known.session.id), key, at=known.message.id)
        )
        nodes = self.run(self.place.sessions.line(key))
        session = self.sessions[key.id] = Session(key.id, durable=True, head=info.head)
        at = None
        for node, old in zip(nodes, known.message.line(), strict=True):
            at = session.add(
                node.id, at, old.role, old.text, ids=old.ids, num_own=old.num_own, state=old.state
            )

    @rule(kill=st.booleans(), words=WORDS, steers=st.lists(TEXTS, max_size=2), id=known)
    def restart(self, kill, words, steers, id) -> None:
        known = self.responses.get(id)
        hanging = kill and known is not None and known.session.durable
        if hanging:
            self.engine.will_hang(*words)
            answer = self.run(self.hanging(ask("q", previous=id), words))
            self.run(self.written(answer, steers))
        self.run(self.next_life(kill))
        for gone in [i for i, known in self.responses.items() if not known.session.durable]:
            del self.responses[gone]
        self.sessions = {i: session for i, session in self.sessions.items() if session.durable}
        if hanging:
            self.recovered(answer, known, words, steers)

    async def written(self, answer: Answer, steers: list[str]) -> None:
        log, keeper = answer._log, self.place.sessions.keeper
        while log._told or log._writing is not None:
            await keeper.run(lambda store: None)
        for text in steers:
            await answer._steering.take([user(text)], text, lambda _: None)

    async def next_life(self, kill: bool) -> None:
        """Of a dead server, what is on disk then."""
        self.num_lives += 1
        before = Path(self.folder.name) / str(self.num_lives - 1)
        folder = Path(self.folder.name) / str(self.num_lives)
        if kill:
            shutil.copytree(before, folder)
        await self.place.close()
        if not kill:
            shutil.copytree(before, folder)
        self.place = Place(folder, self.engine, server=SERVER)
        await self.place.open()

    def recovered(self, answer: Answer, before: Known, words: list[str], steers: list[str]) -> None:
        record = self.run(self.place.answers.record("", answer.record.id))
        assert (record.status, record.reason) == ("incomplete", "server_restart")
        assert record.text == "".join(words)
        session, prompt = before.session, self.prompt(before.message, ["q"])
        assert unpack_ids(self.engine.submits[-1].token_ids) == prompt
        followed = session.head == before.message.id
        question = session.add(record.input_ids[0], before.message, "user", "q")
        own = list(record.text.encode())
        last = session.add(record.message_id, question, "assistant", record.text,
                           ids=prompt + own, num_own=len(own), state="incomplete")  # fmt: skip
        nodes = self.run(self.place.sessions.nodes(SessionKey("", session.id)))
        for node, text in zip(nodes[len(nodes) - len(steers) :], steers, strict=True):
            last = session.add(node.id, last, "user", text)
        session.head = last.id if followed else session.head
        stream = self.run(self.place.answers.stream("", record.id))
        self.responses[record.id] = Known(record, session, told(stream))

    # --- what is kept ---------------------------------------------------------------------

    @invariant()
    def the_trees_are_those_that_were_said(self) -> None:
        if not hasattr(self, "runner"):
            return
        for session in self.sessions.values():
            if session.durable:
                self.run(self.check_tree(session))
        assert not self.place.sessions.turns.busy

    async def check_tree(self, session: Session) -> None:
        key = SessionKey("", session.id)
        nodes = await self.place.sessions.nodes(key)
        assert [
            (node.id, node.parent, node.message, node.state) for node in nodes
        ] == [
            (m.id, m.parent and m.parent.id, {"role": m.role, "content": m.text}, m.state)
            for m in session.messages.values()
        ]  # fmt: skip
        info = await self.place.sessions.info(key)
        assert (info.head, info.num_messages) == (session.head, len(nodes))

    @invariant()
    def every_answer_can_be_read_again(self) -> None:
        if not hasattr(self, "runner"):
            return
        for id, known in self.responses.items():
            assert self.run(self.place.answers.record("", id)) == known.record
            assert told(self.run(self.place.answers.stream("", id))) == known.events


def test_answers_are_what_was_said() -> None:
    num_examples = max(1, settings().max_examples // 4)
    run_state_machine_as_test(
        AnswersMachine,
        settings=settings(max_examples=num_examples, stateful_step_count=25),
    )
