"""One test for each class of advisory that was published about servers like this one and can apply
here. The ids are in the docstrings; what cannot apply is shown to be absent, at the end."""

from __future__ import annotations

import ast
import asyncio
import hmac
import json
import re
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

import lmserve
from fuzz import answers, gguf_seeds, kv_file
from lmserve.edge.keyring import Keyring
from lmserve.engine import grammars
from lmserve.errors import ModelError, RequestError
from lmserve.server.routes.table import TABLE
from lmserve.service.structures import MAX_KEPT, MAX_KEPT_CHARS, Kept
from lmserve.settings import ServerSettings
from lmserve.text.template import ChatTemplate
from lmserve.weights.gguf_file import GGUFFile
from tests.hardening.asking import ask
from tests.hardening.conftest import told
from tests.hardening.doors import DOORS, USER
from tests.hardening.real import RealServer

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PACKAGE = Path(lmserve.__file__).parent


@pytest.fixture
async def client(engine_server: RealServer) -> AsyncIterator[aiohttp.ClientSession]:
    """Of the real engine; nothing is held after, and it is well."""
    timeout = aiohttp.ClientTimeout(total=50)
    async with aiohttp.ClientSession(engine_server.url, timeout=timeout) as client:
        yield client
        async with asyncio.timeout(20):
            while True:
                if not any((await engine_server.held()).values()):
                    break
                await asyncio.sleep(0.02)
        assert (await client.get("/health")).status == 200


async def post(client: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, bytes]:
    async with client.post(path, data=BytesIO(json.dumps(body).encode())) as response:
        return response.status, await response.read()


async def complete(client: aiohttp.ClientSession, **fields: Any) -> tuple[int, bytes]:
    return await post(client, COMPLETIONS, {"prompt": "hi", "max_tokens": 2} | fields)


async def refused(client: aiohttp.ClientSession, field: str, **fields: Any) -> None:
    status, answer = await complete(client, **fields)
    assert status == 400, (fields, answer)
    assert (told(answer)[1] or "").startswith(field), answer


# --- counts, and fields that belong together --------------------------------------------------


async def test_cve_2026_34756_huge_n_makes_nothing(client: aiohttp.ClientSession) -> None:
    """vLLM < 0.19: objects for every answer before any limit. Also CVE-2024-8939, `best_of`."""
    for n in (129, 10**6, 2**31, 2**63):
        await refused(client, "n", n=n)
        await refused(client, "best_of", best_of=n)


async def test_cve_2026_116173_limits_hold_at_every_door(client: aiohttp.ClientSession) -> None:
    """vLLM: a limit of log probabilities that only one front end had."""
    for door in DOORS:
        for thing, value in (("top_logprobs", "21"), ("prompt_logprobs", "21"), ("n", "129")):
            if thing in door.names:
                status, answer = await ask(client, door, door.with_thing(thing, value))
                assert status == 400, (door.id, thing, answer)


async def test_cve_2026_114051_min_tokens_without_max_tokens(
    client: aiohttp.ClientSession,
) -> None:
    """vLLM < 0.31: fields that contradict each other killed the thread that read them."""
    for least in (100_000, 2**31):
        await refused(client, "min_tokens", min_tokens=least, max_tokens=None)
    assert (await complete(client, min_tokens=2, max_tokens=None, stop_token_ids=[65]))[0] == 200


async def test_cve_2024_8768_empty_prompt(client: aiohttp.ClientSession) -> None:
    """vLLM: an empty prompt ended the engine."""
    for prompt in ("", [], [[]], [""]):
        await refused(client, "prompt", prompt=prompt)


async def test_cve_2026_93989_ids_beyond_the_vocabulary(client: aiohttp.ClientSession) -> None:
    """vLLM: ids past the logits' width wrote over the logits of others. Also CVE-2026-21869 of
    llama.cpp, a negative index; its `n_discard` is no field here."""
    for id in (-1, 10**6, 2**31, 2**63 - 1):
        for field, value in (
            ("allowed_token_ids", [id]),
            ("stop_token_ids", [id]),
            ("logit_bias", {str(id): 1}),
            ("bad_words", [[id]]),
            ("prompt", [id]),
        ):
            await refused(client, field, **{field: value})
    plain = await complete(client, temperature=0)
    negative = await complete(client, temperature=0, n_discard=-1, n_keep=-(2**31))
    assert text_of(plain) == text_of(negative)


def text_of(said: tuple[int, bytes]) -> str:
    assert said[0] == 200, said
    return str(json.loads(said[1])["choices"][0]["text"])


# --- grammars, patterns and schemas -----------------------------------------------------------


async def test_cve_2026_55574_patterns_that_backtrack(client: aiohttp.ClientSession) -> None:
    """vLLM: no limit of time on a pattern; and PYSEC-2026-3933, the same by another field."""
    for pattern in ("(a+)+b", "((a*)*)*b", "(a|aa)+$", "(.*a){20}b"):
        for fields in (
            {"guided_regex": pattern},
            {"structured_outputs": {"regex": pattern}},
            {"guided_json": {"type": "string", "pattern": pattern}},
        ):
            status, answer = await complete(client, **fields)
            assert status in (200, 400), (fields, answer)


async def test_cve_2026_25048_thirty_thousand_parentheses(client: aiohttp.ClientSession) -> None:
    """xgrammar < 0.1.32: they overflowed the stack."""
    deep = "(" * 30_000 + '"a"' + ")" * 30_000
    await refused(client, "guided_grammar", guided_grammar=f"start: {deep}")
    await refused(client, "guided_grammar", guided_grammar=f"root ::= {deep}")
    await refused(client, "guided_regex", guided_regex="(" * 30_000 + ")" * 30_000)


async def test_ghsa_5cmr_4px5_23pc_a_grammar_of_itself(client: aiohttp.ClientSession) -> None:
    """xgrammar < 0.1.21: rules that are themselves."""
    for source in ("root ::= root", "start: start", "start: a\na: b\nb: a"):
        await refused(client, "guided_grammar", guided_grammar=source)
    status, _ = await complete(client, guided_grammar='start: start "a" | "b"')
    assert status in (200, 400)


def test_cve_2025_32381_endless_schemas_fill_nothing() -> None:
    """xgrammar and vLLM (GHSA-hf3c-wxg2-49q9, CVE-2025-29770): each schema was kept for ever, in
    memory or on disk."""
    kept = Kept()
    for number in range(100_000):
        kept.put(number.to_bytes(16, "big"), "x" * 100)
    assert len(kept) == MAX_KEPT
    for number in range(100):
        kept.put(number.to_bytes(16, "big"), "x" * 2**20)
    assert len(kept) * 2**20 <= MAX_KEPT_CHARS + 2**20
    assert grammars.MAX_KEPT <= MAX_KEPT  # a matcher is larger than its source


async def test_ghsa_vrq3_r879_7m65_schemas_of_tools_that_are_none(
    client: aiohttp.ClientSession,
) -> None:
    """vLLM: a `pattern` or `type` in a tool's schema that is none ended the server."""
    for schema in ({"type": "x"}, {"type": "string", "pattern": "("}, {"pattern": 1}, {"type": 1}):
        parameters = {"type": "object", "properties": {"a": schema}}
        function = {"name": "f", "strict": True, "parameters": parameters}
        body = {"messages": [USER], "tools": [{"type": "function", "function": function}]}
        status, answer = await post(client, CHAT, body | {"tool_choice": "required"})
        assert status == 400 and (told(answer)[1] or "").startswith("tools"), answer


async def test_cve_2026_105757_one_requests_backend_and_empty_forms(
    client: aiohttp.ClientSession,
) -> None:
    """vLLM < 0.30: a backend of one's own, an empty form, a padding token below 0."""
    status, _ = await complete(client, guided_choice=["a"], guided_decoding_backend="outlines")
    assert status in (200, 400)
    for fields in ({"guided_choice": []}, {"guided_regex": ""}, {"guided_grammar": ""}):
        await refused(client, next(iter(fields)), **fields)
    await refused(client, "structured_outputs", structured_outputs={"choice": []})
    assert (await complete(client, pad_token_id=-1))[0] == 200  # which is no field


# --- what reads a model's text, and templates --------------------------------------------------


def test_cve_2025_71379_text_that_makes_parsers_backtrack() -> None:
    """vLLM: patterns over a model's text; CVE-2025-9141: `eval` of arguments. test_model_output.py
    counts what reading costs."""
    for kind in range(len(answers.FORMS)):
        for text in ("<tool_call>" * 2000, "[" + "f(a=1)," * 2000, "{" * 10_000, " " * 10_000):
            answers.told(answers.parser(kind), [text])


async def test_cve_2026_107183_no_parser_by_request(client: aiohttp.ClientSession) -> None:
    """llama.cpp: a parser that the client sent."""
    body = {"messages": [USER], "max_tokens": 2, "temperature": 0, "seed": 1}
    plain = await post(client, CHAT, body)
    for fields in (
        {"chat_parser": '{"parsers": []}', "chat_format": 99},
        {"tool_call_parser": "nobody", "reasoning_parser": "nobody", "grammar_lazy": True},
    ):
        status, answer = await post(client, CHAT, body | fields)
        assert (status, choices_of(answer)) == (200, choices_of(plain[1]))


def choices_of(answer: bytes) -> Any:
    return json.loads(answer)["choices"]


async def test_cve_2026_115911_no_template_by_request(client: aiohttp.ClientSession) -> None:
    """vLLM 0.19 to 0.32: endless loops and huge strings; also PYSEC-2026-2013, and
    GHSA-69j4-grxj-j64p, values in the place of the render's own arguments."""
    for path in (CHAT, f"{CHAT}/render", "/tokenize"):
        for field, value in (
            ("chat_template", "{% for x in range(10**9) %}x{% endfor %}"),
            ("chat_template_kwargs", {"chat_template": "{{ 'x' * 10**9 }}"}),
            ("chat_template_kwargs", {"tokenize": True}),
            ("chat_template_kwargs", {"messages": []}),
        ):
            status, answer = await post(client, path, {"messages": [USER], field: value})
            assert status == 400 and field in told(answer)[0], (path, answer)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ ('%s' * 10)|attr('for' + 'mat') }}{{ ''|attr('__class__') }}",
        "{% include '/etc/hosts' %}",
        "{{ lipsum.__globals__['os'].popen('true').read() }}",
    ],
)
def test_cve_2026_5760_a_models_template_runs_nothing(source: str) -> None:
    """SGLang: the template of a model ran Python."""
    try:
        said = ChatTemplate(source).render([USER])
    except (RequestError, ModelError):
        return
    assert "class" not in said and "built-in" not in said and "localhost" not in said


async def test_cve_2026_44222_placeholders_typed_as_text(client: aiohttp.ClientSession) -> None:
    """vLLM: the tokens that stand for an image, with no image."""
    for text in ("<image>", "<|image_pad|><|vision_start|>", "<audio><video>", "<|im_start|>"):
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
        assert (await post(client, CHAT, body))[0] == 200
        assert (await complete(client, prompt=text))[0] == 200


# --- links, bodies, tensors -------------------------------------------------------------------


async def test_cve_2026_24779_no_link_of_a_client_is_followed(
    client: aiohttp.ClientSession,
) -> None:
    """vLLM (CVE-2025-6242, and CVE-2026-34753 by a batch), LMDeploy (CVE-2026-33626, and
    CVE-2026-63764 by a redirect), LightRAG (CVE-2026-85740). test_media.py has every form, and
    every door; a batch's lines go through the same."""
    for url in ("http://127.0.0.1:1/", "http://[64:ff9b::7f00:1]/", "file:///etc/hosts"):
        part = {"type": "image_url", "image_url": {"url": url}}
        status, answer = await post(client, CHAT, {"messages": [{**USER, "content": [part]}]})
        assert status == 400 and "messages" in (told(answer)[1] or ""), answer


async def test_cve_2026_100650_a_body_is_too_large_before_it_is_read(
    client: aiohttp.ClientSession, engine_server: RealServer
) -> None:
    """vLLM: a limit after the whole was read. CVE-2026-109229, -22773, -22778 are of images, of
    which none is opened here."""
    reader, writer = await asyncio.open_connection("127.0.0.1", engine_server.port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: {10**12}\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_cve_2025_62164_no_tensor_is_taken(client: aiohttp.ClientSession) -> None:
    """vLLM: embeddings as a pickled tensor with wrong indices; CVE-2026-56340, -73557."""
    doors = {door.id: door for door in DOORS}
    for path in (CHAT, COMPLETIONS, "/generate", "/v1/responses"):
        body = doors[path].body | {"prompt_embeds": "gASVAAAAAAAAAAA="}
        status, answer = await post(client, path, body)
        assert status == 400 and "prompt_embeds" in told(answer)[0], (path, answer)


# --- who gets in ------------------------------------------------------------------------------
# CVE-2026-48746, CVE-2026-48710 and CVE-2026-49468 (a Host with a path in it), CVE-2026-112266 (an
# id that another's begins with), CVE-2026-7302 (`../` in an upload's name): test_ids.py


def test_cve_2025_59425_keys_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM: the comparison ended at the first byte that differs."""
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def heard(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare(one, other)

    keyring = Keyring(["first", "second", "third"])
    monkeypatch.setattr(hmac, "compare_digest", heard)
    for key in ("first", "third", "nobody", ""):
        compared.clear()
        keyring.owner_of(key)
        assert len(compared) == 3, "every key, whichever fits"
    assert all(len(digest) == 32 for digest in compared), "digests, which are all of one length"


async def test_ghsa_5jx5_hqx5_2vrj_a_page_that_rebinds_its_name(
    client: aiohttp.ClientSession,
) -> None:
    """Ollama: a web page whose own name leads to this address; llama.cpp: open to any page."""
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        async with client.get("/v1/models", headers={"Host": host}) as response:
            assert response.status in (403, 421), host
    page = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    async with client.post(COMPLETIONS, json={"prompt": "a"}, headers=page) as response:
        assert response.status == 403
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_cve_2025_46570_a_salt_keeps_a_cache_apart(client: aiohttp.ClientSession) -> None:
    """vLLM: how fast an answer begins tells who else asked it. CVE-2025-46722 is of images."""
    prompt = [65 + index % 20 for index in range(200)]

    async def cached(salt: str) -> int:
        status, answer = await complete(client, prompt=prompt, cache_salt=salt)
        assert status == 200, answer
        return int(json.loads(answer)["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert await cached("ann") == 0
    assert await cached("ann") > 0
    assert await cached("bob") == 0


# --- files ------------------------------------------------------------------------------------


def test_cve_2026_43629_a_crafted_kv_file_is_refused() -> None:
    """llama.cpp: sizes in a session's file that overflow; also CVE-2026-110809."""
    for seed in kv_file.seeds():
        for at in range(1, len(seed), 3):
            for value in (0, 0x7F, 0xFF):
                kv_file.check(seed[:at] + bytes([value]) * 8 + seed[at + 8 :])


def counts() -> Iterator[bytes]:
    """Headers that promise what no file can hold."""
    for number in (2**31, 2**32 - 1, 2**63, 2**64 - 1):
        size = number.to_bytes(8, "little")
        head = b"GGUF\x03\0\0\0"
        yield head + size + bytes(8)
        yield head + bytes(8) + size
        yield head + bytes(8) + (1).to_bytes(8, "little") + size + b"a"
    yield gguf_seeds.file({}, {"a": (0, 1)})  # a division by it
    yield gguf_seeds.file({"general.alignment": 0}, {"a": (1,)})


def test_cve_2026_7482_a_crafted_gguf_is_refused(tmp_path: Path) -> None:
    """Ollama (CVE-2025-66959, -66960, CVE-2024-12055) and llama.cpp (CVE-2024-23605): counts and
    sizes past the file, a division by zero. fuzz/gguf.py looks for more."""
    for index, data in enumerate(counts()):
        path = tmp_path / f"{index}.gguf"
        path.write_bytes(data)
        with pytest.raises(ModelError):
            GGUFFile(path)


# --- what there is none of --------------------------------------------------------------------

RUNS_CODE = {"eval", "exec", "compile", "__import__"}
READS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "zmq"}
WORTH_A_LOOK = re.compile(
    rf"\b({'|'.join((*RUNS_CODE, *READS_CODE, 'torch.load', 'yaml.load', 'shell'))})\b"
)


def looked_at(pattern: re.Pattern[str]) -> Iterator[tuple[str, ast.AST]]:
    """The syntax of our modules that have such a word at all, and where it stands."""
    for path in PACKAGE.rglob("*.py"):
        if pattern.search(text := path.read_text()):
            for node in ast.walk(ast.parse(text)):
                yield f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}", node


def test_cve_2025_32444_nothing_is_unpickled_and_no_text_is_run() -> None:
    """vLLM (CVE-2025-47277), SGLang (CVE-2026-3059, -3060, -3989, -7301, -86793, CVE-2025-10164),
    LMDeploy (CVE-2026-76850, CVE-2025-3162): pickles from a socket, a request, a checkpoint."""
    for where, node in looked_at(WORTH_A_LOOK):
        match node:
            case ast.Import():
                assert not {each.name.split(".")[0] for each in node.names} & READS_CODE, where
            case ast.ImportFrom():
                assert (node.module or "").split(".")[0] not in READS_CODE, where
            case ast.Call(func=ast.Name(id=name)):
                assert name not in RUNS_CODE, where
            case ast.Call():
                assert ast.unparse(node.func) not in ("torch.load", "yaml.load"), where
                assert not [each for each in node.keywords if each.arg == "shell"], where


def test_cve_2025_32444_only_the_server_listens(engine_server: RealServer) -> None:
    """And by default on this machine alone: the engine is told by a pair of sockets."""
    assert ServerSettings().server_name == "127.0.0.1"
    info = engine_server.handle.info
    assert info is not None
    assert not [each for each in psutil.Process(info.pid).net_connections() if each.laddr]


def test_cve_2026_22807_no_code_of_a_model_is_run() -> None:
    """vLLM (`auto_map`), LMDeploy (CVE-2026-46432, trust that was not asked for)."""
    said = [
        keyword.value
        for _, node in looked_at(re.compile("trust_remote_code"))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "trust_remote_code"
    ]
    assert said, "transformers is asked for models, and is told"
    assert all(isinstance(value, ast.Constant) and value.value is False for value in said)


ABSENT = (
    *("/collective_rpc", "/server_info", "/reset_prefix_cache", "/update_weights", "/debug"),
    *("/start_profile", "/stop_profile", "/dumper", "/set_internal_state", "/slots", "/props"),
    *("/load_lora_adapter", "/v1/load_lora_adapter", "/api/pull", "/api/push", "/api/create"),
    *("/api/delete", "/api/blobs/sha256:0", "/init_weights_update_group", "/v1/images/generations"),
    *("/v1/audio/transcriptions", "/invocations", "/pause", "/scale_elastic_ep"),
)


async def test_cve_2026_15971_no_route_for_debugging(client: aiohttp.ClientSession) -> None:
    """SGLang (CVE-2026-111391), vLLM's `/collective_rpc`; and Ollama's registry, which could be
    hostile."""
    for path in ABSENT:
        for method in ("GET", "POST", "PUT", "DELETE"):
            async with client.request(method, path) as response:
                assert response.status == 404, (method, path)
    assert not {route.path for route in TABLE} & set(ABSENT)
