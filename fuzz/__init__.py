"""Fuzzing of what reads files, a model's text and strangers' grammars: each target is a module."""

TARGETS = (
    "answers",
    "gguf",
    "gguf_tokenizer",
    "key_file",
    "kv_file",
    "safetensors",
    "streams",
    "structures",
)
