"""Chat templates in the structure of those of well-known families, in our own words."""

from __future__ import annotations

# Qwen 2.5 and 3: functions in the system message, calls in tags, results as tags of the user
QWEN = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}# Tools\n<tools>{% for tool in tools %}\n"
    "{{ tool | tojson }}{% endfor %}\n</tools>\nAnswer with <tool_call>\n"
    '{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n'
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}"
    "<|im_end|>\n{% endif %}{% for message in messages %}"
    "{% if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% elif message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if message.reasoning_content and loop.last %}<think>\n{{ message.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{% set call = call.function or call %}"
    '\n<tool_call>\n{"name": "{{ call.name }}", "arguments": '
    "{% if call.arguments is string %}{{ call.arguments }}{% else %}"
    "{{ call.arguments | tojson }}{% endif %}}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "\n<tool_response>\n{{ message.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
# the same with arguments that are always encoded
QWEN_25 = QWEN.replace(
    "{% if call.arguments is string %}{{ call.arguments }}{% else %}"
    "{{ call.arguments | tojson }}{% endif %}",
    "{{ call.arguments | tojson }}",
).replace("{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>"
          "\n\n{% endif %}", "").replace(
    "{% if message.reasoning_content and loop.last %}<think>\n{{ message.reasoning_content }}\n"
    "</think>\n\n{% endif %}", "")  # fmt: skip

# Llama 3.1 to 3.3: functions in the first user message, one call a message
LLAMA = (
    "{{ bos_token }}{% if tools_in_user_message is not defined %}"
    "{% set tools_in_user_message = true %}{% endif %}"
    "{% if tools is not defined %}{% set tools = none %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\n{% if tools is not none %}Environment: ipython\n"
    "{% endif %}{{ system }}<|eot_id|>"
    "{% if tools_in_user_message and not tools is none %}"
    "{% set first = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
    "<|start_header_id|>user<|end_header_id|>\n\nFunctions:\n{% for t in tools %}"
    "{{ t | tojson(indent=4) }}\n{% endfor %}{{ first }}<|eot_id|>{% endif %}"
    "{% for message in messages %}"
    "{% if not (message.role == 'ipython' or message.role == 'tool' or "
    "'tool_calls' in message) %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>"
    "{% elif 'tool_calls' in message %}{% if not message.tool_calls | length == 1 %}"
    "{{ raise_exception('single tool-calls only') }}{% endif %}"
    "{% set call = message.tool_calls[0].function %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>'
    "{% else %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{% if message.content is mapping or message.content is iterable %}"
    "{{ message.content | tojson }}{% else %}{{ message.content }}{% endif %}<|eot_id|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

# Mistral: turns alternate, ids have nine letters and digits
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{% if tools and loop.first %}[AVAILABLE_TOOLS] [{% for tool in tools %}{{ tool | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}][/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ message.content }}[/INST]"
    "{% elif message.tool_calls is defined and message.tool_calls is not none %}[TOOL_CALLS] ["
    "{% for call in message.tool_calls %}{% set out = call.function | tojson %}{{ out[:-1] }}"
    "{% if call.id is not defined or call.id | length != 9 %}"
    "{{ raise_exception('ids must have 9 characters') }}{% endif %}"
    ', "id": "{{ call.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}'
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}"
    "{% elif message.role == 'tool' %}{% if message.tool_call_id | length != 9 %}"
    "{{ raise_exception('ids must have 9 characters') }}{% endif %}"
    '[TOOL_RESULTS] {"content": {{ message.content }}, "call_id": "{{ message.tool_call_id }}"}'
    "[/TOOL_RESULTS]{% else %}{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "{% endfor %}"
)

# DeepSeek R1: arguments are text, thinking has begun
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}<|User|>"
    "{{ message['content'] }}{% elif message.role == 'assistant' and message.tool_calls %}"
    "<|Assistant|>{% for call in message['tool_calls'] %}<|call|>"
    "{{ call['function']['name'] + '\n```json\n' + call['function']['arguments'] + '\n```' }}"
    "{% endfor %}{% elif message.role == 'assistant' %}<|Assistant|>"
    "{{ message['content'].split('</think>')[-1] }}<|end|>"
    "{% elif message.role == 'tool' %}<|output|>{{ message.content }}"
    "{% elif message.role == 'system' %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)

# ChatML alone: no word of functions
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Gemma 2: no system message, no other roles, turns alternate
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

ALL = {
    "qwen": QWEN,
    "qwen-2.5": QWEN_25,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "deepseek": DEEPSEEK,
    "chatml": CHATML,
    "gemma": GEMMA,
}
