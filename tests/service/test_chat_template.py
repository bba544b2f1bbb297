"""`--chat-template`, `--meta-instruction` and `--max-log-len` in answers."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lmserve.bridge.assets import CHAT_TEMPLATE, EOS_ID, IM_END
from lmserve.bridge.fake import FakeEngine
from lmserve.errors import ModelError
from lmserve.messages import unpack_ids
from lmserve.service.generate import Service, collect
from lmserve.service.metrics import Metrics
from lmserve.settings import LogSettings, ServerSettings, Settings
from lmserve.types import GenerateRequest

HI = [{"role": "user", "content": "hi"}]
MakeService = Callable[[Settings], Service]


@pytest.fixture
async def make_service(engine: FakeEngine) -> AsyncIterator[MakeService]:
    services: list[Service] = []

    def make(settings: Settings) -> Service:
        services.append(Service(engine, settings, Metrics(engine, settings)))
        return services[-1]

    yield make
    for service in services:
        service.close()


def shaped(**server: str) -> Settings:
    return Settings(server=ServerSettings(**server))


def json_template(folder: Path, **fields: object) -> str:
    path = folder / "template.json"
    path.write_text(json.dumps(fields))
    return str(path)


async def prompt_of(service: Service, engine: FakeEngine, request: GenerateRequest) -> str:
    await collect(await service.generate(request))
    text = await service.model_text()
    return text.tokenizer.decode(unpack_ids(engine.submits[-1].token_ids), skip_special=False)


async def test_a_named_template_shapes_the_prompt(engine: FakeEngine, make_service: MakeService):
    service = make_service(shaped(chat_template="vicuna", meta_instruction="Be kind."))
    prompt = await prompt_of(service, engine, GenerateRequest(messages=HI, max_tokens=1))
    assert prompt == "Be kind. USER: hi ASSISTANT:"  # the mock's tokenizer adds no BOS


async def test_the_meta_instruction_is_for_chats_alone(
    engine: FakeEngine, make_service: MakeService
):
    service = make_service(shaped(meta_instruction="Be kind."))
    chat = GenerateRequest(messages=HI, max_tokens=1)
    assert await prompt_of(service, engine, chat) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    plain = GenerateRequest(text="hi", max_tokens=1)
    assert await prompt_of(service, engine, plain) == "hi"


async def test_a_meta_instruction_the_template_refuses_stops_the_start(
    engine: FakeEngine, make_service: MakeService, tmp_path: Path
):
    path = tmp_path / "strict.jinja"
    path.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    await make_service(shaped(chat_template=str(path))).prepare()
    service = make_service(shaped(chat_template=str(path), meta_instruction="Be kind."))
    with pytest.raises(ModelError, match="--meta-instruction: .*no system role"):
        await service.prepare()


async def test_a_stop_word_that_is_text_ends_a_chat_and_is_not_shown(
    engine: FakeEngine, make_service: MakeService, tmp_path: Path
):
    spec = json_template(tmp_path, model_name="chatml", stop_words=["User:"])
    service = make_service(shaped(chat_template=spec))
    engine.will_say("Hello. Us", "er: more")
    text, done = await collect(await service.generate(GenerateRequest(messages=HI)))
    assert (text, done.finish_reason, done.stop_reason) == ("Hello. ", "stop", "User:")
    for request in (
        GenerateRequest(text="hi"),
        GenerateRequest(messages=HI, ignore_eos=True),
    ):
        engine.will_say("User: more")
        assert (await collect(await service.generate(request)))[0] == "User: more"


async def test_a_stop_word_that_is_a_special_token_ends_a_chat(
    engine: FakeEngine, make_service: MakeService, tmp_path: Path
):
    spec = json_template(tmp_path, user="U:", stop_words=[IM_END, "<|im_start|>"])
    service = make_service(shaped(chat_template=spec))
    await collect(await service.generate(GenerateRequest(messages=HI, max_tokens=1)))
    await collect(await service.generate(GenerateRequest(text="hi", max_tokens=1)))
    chat, plain = (submit.sampling.stop_token_ids for submit in engine.submits)
    assert EOS_ID not in chat  # that one ends every answer
    assert (chat, plain) == ((256,), ())


async def test_what_was_run_under_another_template_is_known_to_differ(make_service: MakeService):
    keys = {
        (await make_service(settings).model_text()).text_key
        for settings in (Settings(), shaped(chat_template="llama2"), shaped(meta_instruction="x"))
    }
    assert len(keys) == 3


async def test_prompts_are_logged_cut_to_what_is_asked_for(
    make_service: MakeService, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, "lmserve.service.prompt")
    request = GenerateRequest(text="a secret\nprompt", max_tokens=1)
    await collect(await make_service(Settings()).generate(request))
    assert not caplog.records
    service = make_service(Settings(log=LogSettings(max_log_len=10)))
    await collect(await service.generate(request))
    assert [record.message for record in caplog.records] == [
        r"prompt of 15 characters: 'a secret\np'"
    ]
