"""instructor: `with_instructor.py URL` prints what it got as JSON."""

import json
import sys

import instructor
import openai
from pydantic import BaseModel, Field

url = sys.argv[1].rstrip("/")


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=99)


people = {}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=mode)
    person = client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        response_model=Person,
        messages=[{"role": "user", "content": "Ann is 30 years old."}],
        temperature=0,
        max_tokens=200,
        max_retries=0,
    )
    people[mode.value] = person.model_dump()
print(json.dumps(people))
