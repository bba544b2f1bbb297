"""Goes on with a text, as it is made: python completions.py http://127.0.0.1:23333"""

import sys

from lmserve_client import APIClient

with APIClient(sys.argv[1]) as api_client:
    model_name = api_client.available_models[0]
    for item in api_client.completions_v1(model=model_name, prompt="hi", stream=True):
        print(item["choices"][0]["text"], end="", flush=True)
    print()
