"""Two real models beside the default, of other families: as transformers answers, and served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import openai
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from lmserve.engine.core import EngineCore
from lmserve.messages import Submit, pack_ids, unpack_ids
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings

from .conftest import serving
from .small_models import GEMMA3, QWEN2, Model, have

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]  # the first run fetches 700 MB


@dataclass(frozen=True)
class Case:
    model: Model
    prompt: str
    tokens: tuple[int, ...]  # transformers' own, in float32


GEMMA3_CASE = Case(
    GEMMA3,
    "<bos>One, two, three, four,",
    (3493, 236764, 3962, 236764, 6819, 236764, 6589, 236764, 10155, 236764, 3595, 236764),
)
QWEN2_CASE = Case(
    QWEN2,
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\n",
    (785, 6722, 315, 9625, 374, 12095, 13, 151645),
)


@contextmanager
def client_of(model: Model, *args: str) -> Iterator[openai.OpenAI]:
    """Of a server of its own, started as a user would."""
    options = ("--session-len", "256", "--model-name", "m", *args)
    with serving(str(have(model)), *options) as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def ours(case: Case, dtype: str) -> list[int]:
    settings = EngineSettings(
        model=str(have(case.model)), dtype=dtype, device="cpu", session_len=128, num_blocks=16
    )
    core = EngineCore(settings)
    core.load(lambda stage: None)
    ids = ids_of(core, case.prompt)
    sampling = SamplingParams(temperature=0.0, max_tokens=len(case.tokens), ignore_eos=True)
    core.handle([Submit(0, pack_ids(ids), sampling)])
    tokens: list[int] = []
    while core.has_work():
        for output in core.step().outputs:
            assert output.error is None
            tokens += unpack_ids(output.token_ids)
    return tokens


def ids_of(core: EngineCore, prompt: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(core._runner.assets.tokenizer_file))
    return tokenizer.encode(prompt, add_special_tokens=False).ids


@pytest.mark.slow
@pytest.mark.parametrize("case", [GEMMA3_CASE, QWEN2_CASE], ids=["gemma3", "qwen2"])
def test_float32_and_transformers_give_the_golden_tokens(case):
    assert ours(case, "float32") == list(case.tokens)
    path = have(case.model)
    transformers.utils.logging.disable_progress_bar()
    options = {"gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **options)
    module = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        **options,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).eval()
    prompt = tokenizer(case.prompt, add_special_tokens=False, return_tensors="pt")
    out = module.generate(
        **prompt, max_new_tokens=len(case.tokens), do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    assert out[0, prompt.input_ids.shape[1] :].tolist() == list(case.tokens)


def test_gemma3_is_served():
    """A base model without a chat template: it goes on with what it is given."""
    with client_of(GEMMA3, "--chat-template", "base") as client:
        counted = client.completions.create(
            model="m", prompt="One, two, three, four,", max_tokens=12, temperature=0
        )
        assert counted.choices[0].text == " five, six, seven, eight, nine, ten,"
        assert counted.usage.prompt_tokens == 9  # with its BOS
        sky = "user: What color is the sky?\nassistant: The sky is"
        answer = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": sky}], max_tokens=2, temperature=0
        )
        assert answer.choices[0].message.content.strip() == "blue."


@pytest.mark.slow
def test_qwen2_is_served():
    with client_of(QWEN2) as client:
        question = {"role": "user", "content": "What is the capital of France?"}
        answer = client.chat.completions.create(
            model="m", messages=[question], max_tokens=20, temperature=0
        )
        assert answer.choices[0].message.content == "The capital of France is Paris."
        assert answer.choices[0].finish_reason == "stop"
