"""langchain-openai: `with_langchain.py URL` prints what it got as JSON."""

import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

url = sys.argv[1].rstrip("/")
own = {"model": "SmolLM2-135M-Instruct", "base_url": f"{url}/v1", "api_key": "none"}


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=99)


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


hello = [HumanMessage("Say hello.")]
chat = ChatOpenAI(**own, temperature=0, max_tokens=16)
whole = chat.bind(logprobs=True).invoke(hello)
streamed = "".join(chunk.text for chunk in chat.stream(hello))
batch = chat.batch([hello, [HumanMessage("Count to three.")]])
person = (
    ChatOpenAI(**own, temperature=0, max_tokens=200)
    .with_structured_output(Person, method="json_schema")
    .invoke("Ann is 30 years old.")
)
caller = ChatOpenAI(**own, temperature=0, max_tokens=200)
called = caller.bind_tools([weather], tool_choice="weather").invoke("Is it raining in Rome?")
call = called.tool_calls[0]
answered = chat.bind_tools([weather], tool_choice="none").invoke(
    [HumanMessage("Is it raining?"), called, ToolMessage("It rains.", tool_call_id=call["id"])]
)
responses = ChatOpenAI(**own, temperature=0, max_tokens=16, use_responses_api=True)
followed = responses.invoke(hello)
response_pieces = "".join(chunk.text for chunk in responses.stream(hello))
embeddings = OpenAIEmbeddings(**own, check_embedding_ctx_length=False)
print(
    json.dumps(
        {
            "whole": whole.text,
            "has_logprobs": bool(whole.response_metadata["logprobs"]["content"]),
            "output_tokens": whole.usage_metadata["output_tokens"],
            "streamed": streamed,
            "batch": [one.text for one in batch],
            "person": person.model_dump(),
            "call": [call["name"], sorted(call["args"])],
            "answered": answered.text,
            "responses": followed.text,
            "responses_streamed": response_pieces,
            "dimensions": [len(one) for one in embeddings.embed_documents(["one", "two"])],
        }
    )
)
