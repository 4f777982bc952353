"""The chat templates that a recipe may call by name, as Jinja texts: how the makers of each format lay a chat out.

Each is data for transformers' ``apply_chat_template``; nothing is rendered here.
"""

from __future__ import annotations

from collections.abc import Mapping

_CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
_LLAMA3 = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}"
    "{{- message['content'] | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)
_ALPACA = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '### Instruction:\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- '### Response:\n' -}}{%- endif -%}"
    "{{- message['content'] | trim + '\n\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### Response:\n' -}}{%- endif -%}"
)
# A system message stands before the first one of the user, inside the same brackets.
_MISTRAL = (
    "{{- bos_token -}}"
    "{%- set opening = namespace(text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{%- set opening.text = message['content'] | trim + '\n\n' -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '[INST] ' + opening.text + message['content'] | trim + ' [/INST]' -}}{%- set opening.text = '' -%}"
    "{%- else -%}{{- ' ' + message['content'] | trim + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)
_EXAONE = (
    "{%- if messages[0]['role'] != 'system' -%}{{- '[|system|][|endofturn|]\n' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '[|' + message['role'] + '|]' + message['content'] -}}"
    "{{- '\n' if message['role'] == 'user' else '[|endofturn|]\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[|assistant|]' -}}{%- endif -%}"
)
NAMED: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}
