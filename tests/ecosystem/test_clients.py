"""Other projects' clients, as they are installed, against the server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ServerProcess
from tests.ecosystem.conftest import Run

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
HIDDEN_SIZE = 576  # of SmolLM2-135M


def test_litellm(run: Run) -> None:
    got = run("with_litellm.py")
    assert got["whole"] == got["streamed"] == got["anthropic"] != ""
    assert got["num_logprobs"] == got["completion_tokens"] > 0
    assert got["finish_reason"] == "tool_calls"
    assert isinstance(json.loads(got["arguments"])["city"], str)
    assert 0 <= json.loads(got["formed"])["age"] <= 99
    assert got["text"].startswith(" Paris")
    assert got["dimensions"] == [HIDDEN_SIZE, HIDDEN_SIZE]


def test_langchain(run: Run) -> None:
    got = run("with_langchain.py")
    assert got["whole"] == got["streamed"] == got["batch"][0] != ""
    assert got["responses"] == got["responses_streamed"] == got["whole"]
    assert got["has_logprobs"] and got["output_tokens"] > 0
    assert 0 <= got["person"]["age"] <= 99
    assert got["call"] == ["weather", ["city"]]
    assert got["answered"]
    assert got["dimensions"] == [HIDDEN_SIZE, HIDDEN_SIZE]


def test_instructor(run: Run) -> None:
    people = run("with_instructor.py")
    assert len(people) == 2
    assert all(0 <= person["age"] <= 99 for person in people.values())


def test_llm(
    clients_bin: Path, server: ServerProcess, offline: dict[str, str], tmp_path: Path
) -> None:
    """The command, with the server as one of its models."""
    home = Path(offline["LLM_USER_PATH"])
    home.mkdir()
    (home / "extra-openai-models.yaml").write_text(
        json.dumps(
            [
                {
                    "model_id": "here",
                    "model_name": "SmolLM2-135M-Instruct",
                    "api_base": f"{server.url.rstrip('/')}/v1",
                    "supports_schema": True,
                    "supports_tools": True,
                }
            ]
        )
    )

    def llm(*args: str) -> str:
        command = [str(clients_bin / "llm"), "-m", "here", "-o", "temperature", "0", *args]
        done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    said = llm("Say hello.", "-o", "max_tokens", "16")
    assert said and said == llm("Say hello.", "-o", "max_tokens", "16", "--no-stream")
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    assert 0 <= json.loads(llm("Ann is 30.", "--schema", json.dumps(schema)))["age"] <= 99
    assert llm("And then?", "-c", "-o", "max_tokens", "8")


def lm_eval(
    kind: str, task: str, clients_bin: Path, url: str, offline: dict[str, str], tmp_path: Path
) -> list[dict[str, Any]]:
    """The samples that it logged."""
    tasks = Path(__file__).parent / "tasks"
    (tmp_path / "tasks").mkdir()
    text = (tasks / f"{task}.yaml").read_text()
    (tmp_path / "tasks" / f"{task}.yaml").write_text(
        text.replace("DATA", str(tasks / "capitals.jsonl"))
    )
    args = {
        "local-completions": f"base_url={url}/v1/completions,num_concurrent=3",
        "local-chat-completions": f"base_url={url}/v1/chat/completions,num_concurrent=2",
    }[kind]
    command = [
        *(str(clients_bin / "lm_eval"), "run", "--model", kind, "--tasks", f"lmserve_{task}"),
        *("--model_args", f"model=SmolLM2-135M-Instruct,{args}"),
        *("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out")),
        *("--batch_size", "1" if "chat" in kind else "2"),
        "--log_samples",
        *(["--apply_chat_template"] if "chat" in kind else []),
    ]
    done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def test_lm_eval_log_likelihoods_are_those_of_transformers(
    clients_bin: Path, server: ServerProcess, offline: dict[str, str], tmp_path: Path
) -> None:
    url = server.url.rstrip("/")
    samples = lm_eval("local-completions", "capitals", clients_bin, url, offline, tmp_path)
    assert len(samples) == 4
    for sample in samples:
        for (context, continuation), answer in zip(
            [argument.values() for argument in sample["arguments"].values()],
            sample["filtered_resps"],
            strict=True,
        ):
            golden, greedy = golden_log_likelihood(context, continuation)
            assert float(answer[0]) == pytest.approx(golden, abs=1e-2)
            assert str(answer[1]) == str(greedy)


def test_lm_eval_generates_by_completions_and_by_chat(
    clients_bin: Path, server: ServerProcess, offline: dict[str, str], tmp_path: Path
) -> None:
    url = server.url.rstrip("/")
    for kind in ("local-completions", "local-chat-completions"):
        folder = tmp_path / kind
        folder.mkdir()
        samples = lm_eval(kind, "hello", clients_bin, url, offline, folder)
        assert len(samples) == 4 and all(sample["filtered_resps"][0] for sample in samples)


def golden_log_likelihood(context: str, continuation: str) -> tuple[float, bool]:
    """What transformers says in float32, and whether it would have said so itself."""
    import torch

    from tests.e2e import test_default_model as default

    tokenizer = default.tokenizer()
    before = tokenizer.encode(context, add_special_tokens=False).ids
    whole = tokenizer.encode(context + continuation, add_special_tokens=False).ids
    with torch.inference_mode():
        logits = default.transformers_model()(torch.tensor([whole])).logits[0].log_softmax(-1)
    said = whole[len(before) :]
    places = range(len(before) - 1, len(whole) - 1)
    total = sum(float(logits[place, id]) for place, id in zip(places, said, strict=True))
    greedy = all(int(logits[place].argmax()) == id for place, id in zip(places, said, strict=True))
    return total, greedy
