"""Answers one message: python chat_completions.py http://127.0.0.1:23333"""

import sys

from lmserve_client import APIClient

with APIClient(sys.argv[1]) as api_client:
    model_name = api_client.available_models[0]
    messages = [{"role": "user", "content": "Say this is a test!"}]
    for item in api_client.chat_completions_v1(model=model_name, messages=messages):
        print(item)
