"""What each thing must not be, as JSON text. Nothing here is ever let through, on any route."""

from __future__ import annotations

import json

NUMBERS = ("2147483648", "-2147483649", "9223372036854775808", "-1e308", "1e308")
NOT_NUMBERS = ('"1"', "true", "[]", "[1]", "{}", "[[[[]]]]")
NOT_WHOLE = (*NOT_NUMBERS, "1.5", "1e308", "18446744073709551616")
NOT_TEXT = ("1", "true", "[]", "{}", "1e308", "[[[[]]]]")
NOT_FLAG = ("1", "0", '"true"', "[]", "{}", "1e308")
NOT_OBJECT = ("1", "true", '"x"', "[]", "[{}]", "1e308")
WRONG_IDS = ("[-1]", "[1000000]", "[2147483648]", "[9223372036854775807]", "[18446744073709551616]")
NOT_IDS = ("-1", "true", '"1"', '["a"]', "[true]", "[1.5]", "[null]", "[[[1]]]", "{}", *WRONG_IDS)

_wide = json.dumps(["x"] * 1000)
_deep = '{"a":' * 300 + "1" + "}" * 300
_nested_schema = '{"items":' * 10000 + "{}" + "}" * 10000
_enum = json.dumps({"enum": list(range(100_000))})

SCHEMAS = (
    "[]",
    "1",
    '{"type":"x"}',
    '{"type":1}',
    '{"type":["string",1]}',
    '{"type":"object","properties":1}',
    '{"type":"object","properties":{"a":1}}',
    '{"type":"object","required":1}',
    '{"type":"string","pattern":1}',
    '{"type":"string","pattern":"("}',
    '{"type":"string","pattern":"(?<=a)b"}',
    '{"type":"string","pattern":"(a)\\\\1"}',
    '{"type":"string","pattern":"a{1000000}"}',
    '{"type":"string","minLength":5,"maxLength":2}',
    '{"type":"string","minLength":-1}',
    '{"type":"integer","minimum":5,"maximum":2}',
    '{"type":"integer","minimum":"a"}',
    '{"type":"array","minItems":5,"maxItems":2}',
    '{"type":"string","minLength":9223372036854775807}',
    '{"$ref":"http://localhost/x"}',
    '{"$ref":"file:///etc/passwd"}',
    '{"$ref":"#/nowhere"}',
    '{"$ref":1}',
    '{"enum":[]}',
    '{"enum":1}',
    '{"anyOf":[]}',
    '{"anyOf":1}',
    '{"not":{}}',
    "false",
    _nested_schema,
    _enum,
)
REGEXES = (
    '""',
    "1",
    "[]",
    '"("',
    '"[z-a]"',
    '"(?<=a)b"',
    '"(?=a)b"',
    '"(a)\\\\1"',
    '"a{1000000}"',
    json.dumps("a" * 2**20),
    json.dumps("(" * 30_000 + ")" * 30_000),
    json.dumps("(a|" * 9000 + ")" * 9000),
    '"[^\\\\s\\\\S]"',
)
GRAMMARS = (
    '""',
    "1",
    "{}",
    '"hello"',
    '"start: nothing"',
    '"start: start"',
    '"start: start \\"a\\" | start"',
    '"a: \\"b\\""',
    '"root ::= root"',
    '"root ::= ("',
    '"start: /(/"',
    '"start: %json {}"',
    '"%llguidance {}\\nstart: \\"a\\""',
    json.dumps("start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    json.dumps("root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000),
    json.dumps("start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(5000))),
    json.dumps('start: "' + "a" * 2**20 + '"'),
)
_tools = [{"type": "function", "name": f"f{i}", "function": {"name": f"f{i}"}} for i in range(129)]

BAD: dict[str, tuple[str, ...]] = {
    "model": ('"nobody"', *NOT_TEXT),
    "n": ("0", "-1", "129", *NUMBERS, *NOT_WHOLE),
    "best_of": ("0", "-1", "129", *NUMBERS, *NOT_WHOLE),
    "top_logprobs": ("-1", "21", *NUMBERS, '"1"', "[]", "[1]", "{}", "1.5"),
    "prompt_logprobs": ("-1", "21", *NUMBERS, *NOT_WHOLE),
    "stream_interval": ("0", "-1", "1025", *NUMBERS, *NOT_WHOLE),
    "max_completion_tokens": ("0", "-1", "-2147483649", *NOT_WHOLE),
    "max_tokens": NOT_WHOLE,
    "min_tokens": ("-1", "3", "100000", *NUMBERS, *NOT_WHOLE),
    "thinking_token_budget": ("-1", "100000", *NUMBERS, *NOT_WHOLE),
    "temperature": ("-0.1", "2.1", "-1", *NUMBERS, *NOT_NUMBERS),
    "top_p": ("0", "-1", "1.1", *NUMBERS, *NOT_NUMBERS),
    "min_p": ("-1", "1.1", *NUMBERS, *NOT_NUMBERS),
    "top_k": ("-2", "1000000", *NUMBERS, *NOT_WHOLE),
    "repetition_penalty": ("0", "-1", "2.1", *NUMBERS, *NOT_NUMBERS),
    "presence_penalty": ("-2.1", "2.1", *NUMBERS, *NOT_NUMBERS),
    "frequency_penalty": ("-2.1", "2.1", *NUMBERS, *NOT_NUMBERS),
    "seed": ("9223372036854775808", "-9223372036854775809", *NOT_WHOLE),
    "stop": ('""', '[""]', '["a",""]', "1", "true", "{}", "[1]", "[null]", '[["a"]]', _wide),
    "bad_words": (
        *('""', '"a"', '[""]', "1", "true", "{}", "[1]", "[null]", '[["a"]]', _wide),
        json.dumps(["x" * 257]),
    ),
    "logit_bias": (
        *("1", "true", '"1"', "[]", "[1]", '{"a":1}', '{"":1}', '{"1":"1"}', '{"1":null}'),
        *('{"1":101}', '{"1":-101}', '{"1":1e308}', '{"1":true}', '{"1":[]}', '{"-1":1}'),
        *('{"1000000":1}', '{"2147483648":1}', '{"9223372036854775808":1}', '{"1.5":1}'),
        *('{"99999999999999999999":1}', '{" 1":1}', '{"1e3":1}', '{"\\u0661":1}'),
        json.dumps({str(i): 1 for i in range(1025)}),
    ),
    "allowed_token_ids": NOT_IDS,
    "stop_token_ids": (*NOT_IDS, json.dumps([1] * 257)),
    "prompt_ids": ("[]", "[[]]", "true", "{}", '[["a"]]', "[null]", "[1.5]", *WRONG_IDS),
    "shown_ids": ("true", "{}", '[["a"]]', "[null]", "[1.5]", *WRONG_IDS),
    "many_prompts": ("[]", json.dumps(["a"] * 3000), '["a",1]', '["a",null]', "[{}]"),
    "prompt": ('""', "null", "1", "true", "{}", "[]", "[null]", "[[[[]]]]", "1e308"),
    "messages": (
        *("1", "true", "{}", "null", "[1]", "[null]", "[[]]", "[{}]", '[{"role":"user"}]', "[]"),
        *('[{"role":"user","content":1}]', '[{"role":"user","content":{}}]'),
        *('[{"role":"user","content":null}]', '[{"role":"user","content":[1]}]'),
        *('[{"role":"user","content":[{}]}]', '[{"role":"user","content":[{"type":"text"}]}]'),
        *('[{"role":"user","content":[{"type":"image_url","image_url":{"url":"file:///x"}}]}]',),
        *('[{"role":"<|im_start|>","content":"x"}]', '[{"role":"","content":"x"}]'),
        *('[{"role":1,"content":"x"}]', '[{"content":"x"}]'),
    ),
    "labels": ("[]", '["a"]', '["a",""]', '["a"," "]', "1", '"a"', "[1,2]", "{}", _wide),
    "dimensions": ("0", "-1", "65", *NUMBERS, *NOT_WHOLE),
    "encoding_format": ('"x"', '""', *NOT_TEXT),
    "pooling": ('"max"', '""', *NOT_TEXT),
    "top_n": ("0", "-1", *NOT_WHOLE),
    "priority": ("-1", "101", *NUMBERS, *NOT_WHOLE),
    "deadline_s": ("0", "-1", "86401", *NUMBERS, *NOT_NUMBERS),
    "session_id": NOT_WHOLE,
    "stream_options": (*NOT_OBJECT, '{"include_usage":1}', '{"include_usage":true}'),
    "response_format": (
        *(*NOT_OBJECT, "{}", '{"type":1}', '{"type":"x"}', '{"type":"json_schema"}'),
        *('{"type":"regex"}', '{"type":"choice","choice":[]}', '{"type":"choice","choice":[""]}'),
        *('{"type":"json_schema","json_schema":{"schema":{"type":"x"}}}',),
        *('{"type":"json_object","schema":{"$ref":"http://localhost"}}',),
    ),
    "structured_outputs": (
        *NOT_OBJECT,
        '{"json":"{"}',
        '{"regex":"("}',
        '{"regex":"a","grammar":"b"}',
    ),
    "guided_choice": ("[]", '[""]', '"a"', "1", "{}", "[1]", json.dumps(["a"] * 10001)),
    "guided_json": ('"{"', '"[]"', *SCHEMAS[:1]),
    "format": ("1", "[]", '"x"', '{"type":"x"}', '{"type":1}', '{"type":"json_schema"}'),
    "schema": SCHEMAS,
    "regex": REGEXES,
    "grammar": GRAMMARS,
    "chat_template_kwargs": (
        *NOT_OBJECT,
        *(
            json.dumps({name: []})
            for name in "messages tokenize add_generation_prompt tools bos_token __class__ "
            "chat_template raise_exception namespace self".split()
        ),
    ),
    "tools": (
        *("1", "true", '"x"', "{}", "[1]", "[null]", "[[]]", "[{}]", '[{"type":"x"}]'),
        *('[{"type":"function"}]', '[{"type":"function","function":{},"parameters":1}]'),
        json.dumps(_tools),
        json.dumps(_tools[:1] * 2),
        *(
            json.dumps([{"type": "function", "name": name, "function": {"name": name}}])
            for name in ("", "a b", "<|im_start|>", "x" * 65, "a\n", "é", "../x", '"')
        ),
    ),
    "tool_choice": ('"x"', '"required"', "1", "[]", "{}", '{"type":"function"}', '{"type":1}'),
    "options": (*NOT_OBJECT,),
    "metadata": (*NOT_OBJECT, '{"a":1}', json.dumps({"a": "x" * 513})),
    "reasoning": (*NOT_OBJECT, '{"effort":"x"}', '{"effort":1}', '{"max_tokens":-1}'),
    "text": (
        *NOT_OBJECT,
        '{"format":1}',
        '{"format":{"type":"x"}}',
        '{"format":{"type":"json_schema"}}',
    ),
    "ignore_eos": NOT_FLAG,
    "skip_special_tokens": NOT_FLAG,
    "stream": NOT_FLAG,
    "include_stop_str_in_output": NOT_FLAG,
    "return_token_ids": NOT_FLAG,
    "add_special_tokens": NOT_FLAG,
    "return_token_strs": NOT_FLAG,
    "add_bos": NOT_FLAG,
    "system": ("1", "true", "{}", "[1]", "[{}]"),
}
