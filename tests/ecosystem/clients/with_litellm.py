"""litellm: `with_litellm.py URL` prints what it got as JSON."""

import json
import sys

import litellm

url = sys.argv[1].rstrip("/")
own = {"model": "openai/SmolLM2-135M-Instruct", "api_base": f"{url}/v1", "api_key": "none"}
hello = [{"role": "user", "content": "Say hello."}]
weather = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
schema = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}

whole = litellm.completion(
    **own, messages=hello, max_tokens=16, temperature=0, logprobs=True, top_logprobs=2
)
pieces = [
    chunk.choices[0].delta.content or ""
    for chunk in litellm.completion(
        **own, messages=hello, max_tokens=16, temperature=0, stream=True
    )
    if chunk.choices
]
called = litellm.completion(
    **own, messages=hello, max_tokens=200, tools=[weather], tool_choice="required", temperature=0
)
formed = litellm.completion(
    **own,
    messages=hello,
    max_tokens=64,
    response_format={
        "type": "json_schema",
        "json_schema": {"name": "age", "schema": schema, "strict": True},
    },
)
text = litellm.text_completion(
    model="text-completion-openai/SmolLM2-135M-Instruct",
    api_base=f"{url}/v1",
    api_key="none",
    prompt="The capital of France is",
    max_tokens=4,
    temperature=0,
    logprobs=1,
)
embedded = litellm.embedding(**own, input=["one", "two"])
anthropic = litellm.completion(
    model="anthropic/SmolLM2-135M-Instruct",
    api_base=url,
    api_key="none",
    messages=hello,
    max_tokens=16,
    temperature=0,
)
print(
    json.dumps(
        {
            "whole": whole.choices[0].message.content,
            "num_logprobs": len(whole.choices[0].logprobs.content),
            "completion_tokens": whole.usage.completion_tokens,
            "streamed": "".join(pieces),
            "finish_reason": called.choices[0].finish_reason,
            "arguments": called.choices[0].message.tool_calls[0].function.arguments,
            "formed": formed.choices[0].message.content,
            "text": text.choices[0].text,
            "dimensions": [len(one["embedding"]) for one in embedded.data],
            "anthropic": anthropic.choices[0].message.content,
        }
    )
)
