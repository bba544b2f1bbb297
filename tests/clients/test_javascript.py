"""The JavaScript client in Node, and once in a browser, over the same network that fails."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.clients.faults import Site

FILE = Path(__file__).parents[2] / "clients" / "javascript" / "lmserve.js"
HANDSHAKE_BYTES = 300  # more than the server's answer to an upgrade, less than any event after it
# Each script is the body of a function of these; `tell` hands the test a word and waits for it.
PROGRAM = """
import * as lmserve from %s;
import { createInterface } from "node:readline";
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const tell = async (word) => {
  console.log(JSON.stringify({ word }));
  await lines.next();
};
const run = async ({ lmserve, url, options, tell, heard }) => {%s};
%s
const url = process.argv[2];
const options = JSON.parse(process.argv[3]);
const result = await run({ lmserve, url, options, tell, heard });
console.log(JSON.stringify({ result: result ?? null }));
process.exit(0);
"""
HEARD = """
async function heard(answer, text) {
  let said = "";
  for await (const piece of answer) if ((said += piece) === text) return;
  throw new Error(`it said ${said}`);
}
"""
OPEN = "const client = new lmserve.Lmserve({ url, ...options });\n"


def node() -> list[str]:
    """Node with a WebSocket."""
    path = shutil.which("node")
    if path is None:
        pytest.skip("no Node on the PATH")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    found = re.match(r"v(\d+)", version.stdout)
    assert found is not None
    if int(found[1]) < 20:
        pytest.skip(f"Node {version.stdout.strip()} has no WebSocket")
    return [path] if int(found[1]) >= 22 else [path, "--experimental-websocket", "--no-warnings"]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        site = Site(tmp_path / "data", stack)
        await site.start()
        stack.push_async_callback(site.stop)
        yield site


@pytest.fixture
def run(site: Site, tmp_path: Path) -> Callable[..., Any]:
    """Runs a script; `told` are what its words make happen."""

    async def run(script: str, told: dict[str, Callable[[], Any]] | None = None, **options: Any):
        program = tmp_path / "program.mjs"
        program.write_text(PROGRAM % (json.dumps(FILE.as_uri()), OPEN + script, HEARD))
        process = await asyncio.create_subprocess_exec(
            *node(),
            str(program),
            site.proxy.url,
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdin is not None and process.stdout is not None
            async for line in process.stdout:
                said = json.loads(line)
                if "result" in said:
                    return said["result"]
                done = (told or {})[said["word"]]()
                if asyncio.iscoroutine(done):
                    await done
                process.stdin.write(b"\n")
            assert process.stderr is not None
            raise AssertionError((await process.stderr.read()).decode())
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    return run


@pytest.fixture(params=[True, False], ids=["websocket", "http"])
def websocket(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_an_answer(site: Site, run: Callable[..., Any], websocket: bool) -> None:
    site.fake.will_say("Hel", "lo")
    told = await run(
        """
        const types = [];
        const onEvent = (event) => types.push(event.type);
        const answer = await client.respond({ input: "hi", temperature: 0.5, onEvent });
        const response = await answer.response();
        return [await answer.text(), response.status, response.session === answer.session,
                types[0], types.at(-1), answer.reusedTokens, lmserve.textOf(response)];
        """,
        websocket=websocket,
    )
    ends = ["response.created", "response.completed"]
    assert told == ["Hello", "completed", True, *ends, 0, "Hello"]
    assert site.fake.submits[0].sampling.temperature == 0.5


async def test_sessions(site: Site, run: Callable[..., Any], websocket: bool) -> None:
    site.fake.will_say("One").will_say("Two").will_say("Three")
    told = await run(
        """
        const { sessions } = client;
        const session = await sessions.create({ title: "One" });
        await (await client.respond({ input: "a", session })).text();
        const line = await sessions.messages(session);
        const edited = await client.respond({ input: "b", session, edit: line[0] });
        await edited.text();
        const again = await client.respond({ regenerate: edited });
        await again.text();
        await sessions.append(session, [{ role: "user", content: "c" }]);
        const renamed = await sessions.rename(session, "Uno");
        const rolled = await sessions.rollback(session, line[1]);
        const fork = await sessions.fork(session, { at: line[1] });
        const copy = await sessions.import(await sessions.export(session));
        const listed = (await sessions.list({ limit: 10 })).data.length;
        const cancelled = await sessions.cancel(session);
        const tree = (await sessions.messages(session, { tree: true })).length;
        await sessions.delete(session);
        const refused = await sessions.get(session).catch((error) => error);
        return [renamed.title, rolled.head === line[1].id, fork.num_messages, copy.num_messages,
                listed, cancelled, tree, refused.status, refused.code];
        """,
        websocket=websocket,
    )
    assert told == ["Uno", True, 2, 6, 3, False, 6, 404, "session_not_found"]


async def test_steer_update_cancel(site: Site, run: Callable[..., Any], websocket: bool) -> None:
    site.fake.will_hang("Once", " upon").will_hang("In", " short")
    told = await run(
        """
        const answer = await client.respond({ input: "a story" });
        const first = answer.id;
        const all = answer.text();
        await heard(answer, "Once upon");
        const steered = await answer.steer("shorter!");
        await heard(answer, "Once uponIn short");
        await answer.update({ max_output_tokens: 40 });
        const cancelled = await answer.cancel();
        const late = await answer.response().then(() => answer.steer("no")).catch((e) => e);
        return [await all, steered.response_id === first, steered.successor_id === answer.id,
                answer.ids.length, cancelled.status, late.name, late.input];
        """,
        websocket=websocket,
    )
    assert told == ["Once uponIn short", True, True, 2, "cancelled", "SteerFailed", "no"]
    assert site.fake.updates[0].sampling.max_tokens == 40


async def test_refusals_are_typed(site: Site, run: Callable[..., Any], websocket: bool) -> None:
    site.fake.will_fail("out of luck", "Hel")
    told = await run(
        """
        const refused = await client.respond({ input: "hi", temperature: 9 }).catch((e) => e);
        const answer = await client.respond({ input: "hi" });
        const failed = await answer.text().catch((error) => error);
        return [refused.status, refused.param, failed.name, failed.message];
        """,
        websocket=websocket,
    )
    assert told == [400, "temperature", "AnswerFailed", "out of luck"]


@pytest.mark.parametrize("key_in", ["subprotocol", "event"])
async def test_keys(tmp_path: Path, key_in: str) -> None:
    async with AsyncExitStack() as stack:
        site = Site(tmp_path / "data", stack)
        site.api_keys = ("sécret/+",)
        await site.start()
        stack.push_async_callback(site.stop)
        site.fake.will_say("Hello")
        told = await run_with(site, tmp_path)(
            """
            const answer = await client.respond({ input: "hi" });
            const wrong = new lmserve.Lmserve({ url, ...options, apiKey: "wrong" });
            const refused = await wrong.respond({ input: "hi" }).catch((error) => error);
            return [await answer.text(), client.numConnections, refused.status];
            """,
            apiKey="sécret/+",
            keyIn=key_in,
        )
        assert told == ["Hello", 1, 401]


def run_with(site: Site, tmp_path: Path) -> Callable[..., Any]:
    function: Callable[..., Any] = run.__wrapped__(site, tmp_path)
    return function


async def test_no_token_is_lost_or_doubled(
    site: Site, run: Callable[..., Any], websocket: bool
) -> None:
    script = """
        const ask = async (n) => {
          const answer = await client.respond({ input: "hi", max_output_tokens: n });
          const numbers = [];
          for await (const event of answer.events()) numbers.push(event.sequence_number);
          return [await answer.text(), numbers.every((number, at) => number === at)];
        };
        return Promise.all([5, 17, 29, 41, 53, 65].map(ask));
        """
    twins = await run(script, websocket=websocket)
    before = site.proxy.num_connections
    site.proxy.cuts = iter([400, 900, 3_000, 5_000, 1_500, 700, 9_000, 4_000, 2_000, 6_000])
    assert await run(script, websocket=websocket) == twins
    assert site.proxy.num_connections > before + 3
    assert len(site.fake.submits) == 12


async def test_a_cut_loses_nothing_that_was_said(
    site: Site, run: Callable[..., Any], websocket: bool
) -> None:
    """Neither when it is asked nor when it is steered."""

    def cut() -> None:
        site.proxy.cuts = iter([HANDSHAKE_BYTES])
        site.proxy.cut()

    site.fake.will_hang("Once", " upon").will_say("In short")
    told = await run(
        """
        await client.sessions.list();
        await tell("cut");
        const answer = await client.respond({ input: "a story" });
        await heard(answer, "Once upon");
        await tell("cut");
        await heard(answer, "Once upon");
        await answer.steer("shorter!");
        const tree = await client.sessions.messages(answer.session, { tree: true });
        return [await answer.text(), tree.length];
        """,
        {"cut": cut},
        websocket=websocket,
    )
    assert told[0] == "Once uponIn short"
    assert told[1] == 4
    assert len(site.fake.submits) == 2


async def test_a_connection_that_went_silent(site: Site, run: Callable[..., Any]) -> None:
    site.fake.will_hang("Once", " upon").will_say("In short")
    told = await run(
        """
        const answer = await client.respond({ input: "a story" });
        await heard(answer, "Once upon");
        await tell("stall");
        await answer.steer("shorter!");
        return [await answer.text(), client.numConnections];
        """,
        {"stall": site.proxy.stall},
        silenceMs=100,
    )
    assert told == ["Once uponIn short", 2]
    assert len(site.fake.submits) == 2


async def test_http_where_there_can_be_no_websocket(site: Site, run: Callable[..., Any]) -> None:
    site.proxy.upgrades = False
    site.fake.will_say("Hello")
    told = await run(
        """
        const answer = await client.respond({ input: "hi" });
        return [await answer.text(), client.numConnections];
        """
    )
    assert told == ["Hello", 0]


@pytest.mark.parametrize("upgrades", [True, False])
async def test_what_it_goes_over_is_told(
    site: Site, run: Callable[..., Any], websocket: bool, upgrades: bool
) -> None:
    site.proxy.upgrades = upgrades
    site.fake.will_say("Hello")
    told = await run(
        """
        const states = [];
        const onConnection = (state) => states.push(state);
        const other = new lmserve.Lmserve({ url, ...options, onConnection });
        await (await other.respond({ input: "hi" })).text();
        other.close();
        return states;
        """,
        websocket=websocket,
    )
    assert ("http" in told, told[-1]) == (not (websocket and upgrades), "closed")
    assert websocket or told == ["http", "closed"]


async def test_a_server_that_restarts(site: Site, run: Callable[..., Any], websocket: bool) -> None:
    async def restart() -> None:
        site.proxy.down = True
        await site.stop()
        await site.start()
        site.fake.will_say(" a time")
        site.proxy.down = False
        site.proxy.cut()

    site.fake.will_hang("Once", " upon")
    told = await run(
        """
        const answer = await client.respond({ input: "a story" });
        await heard(answer, "Once upon");
        await tell("restart");
        const error = await answer.text().catch((error) => error);
        const rest = await client.respond({ continue: error.response });
        return [error.name, lmserve.textOf(error.response), await rest.text()];
        """,
        {"restart": restart},
        websocket=websocket,
    )
    assert told == ["AnswerInterrupted", "Once upon", "Once upon a time"]


async def test_an_outage_is_told_in_the_end(
    site: Site, run: Callable[..., Any], websocket: bool
) -> None:
    def down() -> None:
        site.proxy.down = True
        site.proxy.cut()

    site.fake.will_hang("Once")
    told = await run(
        """
        const answer = await client.respond({ input: "a story" });
        await heard(answer, "Once");
        await tell("down");
        const lost = await answer.text().catch((error) => error);
        client.close();
        const closed = await client.sessions.list().catch((error) => error);
        return [lost.name, closed.name];
        """,
        {"down": down},
        websocket=websocket,
        reconnectWithinMs=200,
    )
    assert told == ["ConnectionLost", "ConnectionLost"]


async def test_a_draft_is_told(site: Site, run: Callable[..., Any], websocket: bool) -> None:
    told = await run(
        """
        const session = await client.sessions.create();
        const draft = client.draft(session);
        for (const text of ["What is 🎈", "What is the cap", "What is the capital of Fran"]) {
          draft.set(text);
          await draft.flush();
        }
        const answer = await client.respond({ input: "What is the capital of France?", session });
        return (await answer.text()).length > 0;
        """,
        websocket=websocket,
    )
    assert told is True


async def test_the_example(site: Site) -> None:
    site.fake.will_say("Hel", "lo").will_say("again")
    example = FILE.parents[1] / "examples" / "conversation.mjs"
    process = await asyncio.create_subprocess_exec(
        *node(), str(example), site.proxy.url, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert said.decode().startswith("Hello\nagain\n")
    assert said.decode().splitlines()[-1].endswith("assistant: again")


@pytest.mark.browser
async def test_in_a_browser(site: Site) -> None:
    """From the file that the server itself has."""
    playwright_api = pytest.importorskip("playwright.async_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    site.fake.will_hang("Once", " upon").will_say("In short")
    async with playwright_api.async_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = await playwright.chromium.launch(executable_path=path, args=flags)
        try:
            page = await browser.new_page()
            await page.goto(f"{site.proxy.url}/web/lmserve.js")
            await page.expose_function("cut", site.proxy.cut)
            told = await page.evaluate(
                """async () => {
                  const { Lmserve } = await import("/web/lmserve.js");
                  const client = new Lmserve();
                  const session = await client.sessions.create({ title: "One" });
                  const answer = await client.respond({ input: "a story", session });
                  let said = "";
                  for await (const piece of answer) {
                    if ((said += piece) === "Once upon") break;
                  }
                  client.draft(session).set("And then");
                  await window.cut();
                  await client.draft(session).flush();
                  await answer.steer("shorter!");
                  const text = await answer.text();
                  const line = await client.sessions.messages(session);
                  return [text, line.length, client.numConnections];
                }"""
            )
        finally:
            await browser.close()
    assert told == ["Once uponIn short", 4, 2]


@pytest.mark.network
@pytest.mark.timeout(200)
@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on the PATH")
def test_its_types_hold(tmp_path: Path) -> None:
    install = ["npm", "install", "--silent", "--no-audit", "--prefix", str(tmp_path)]
    try:
        subprocess.run([*install, "typescript@5"], check=True, timeout=100, capture_output=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"typescript cannot be fetched: {str(error)[:200]}")
    options = "--noEmit --allowJs --checkJs --strict --target es2022 --module es2022"
    command = [str(tmp_path / "node_modules" / ".bin" / "tsc"), *options.split()]
    done = subprocess.run(
        [*command, "--lib", "es2022,dom,dom.iterable", str(FILE)],
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
