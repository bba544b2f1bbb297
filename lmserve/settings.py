"""One frozen tree of settings: defaults < file < environment < command line.

Every field carries its documentation; `lmserve config show` prints each value with its
origin, and a test holds docs/configuration.md to this file. Loading is in
`lmserve.cli.config`; nothing else reads files or the environment for settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def setting(
    default: Any,
    doc: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    pattern: str | None = None,
    form: str = "text",
    secret: bool = False,
) -> Any:
    """A dataclass field that carries its documentation and what it accepts.

    Numbers: `least` and `most` are allowed themselves, `above` is not. Text: `pattern` is a
    regular expression for all of it (of each item, in a list), `form` the same in words.
    `lmserve.fields` checks them. `secret`: the value is never shown.
    """
    limits = {"least": least, "most": most, "above": above, "pattern": pattern, "form": form}
    return field(default=default, metadata={"doc": doc, "secret": secret, **limits})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    server_name: str = setting(
        "127.0.0.1", "address to listen on", pattern=r"\S+", form="a name or address"
    )
    server_port: int = setting(23333, "port to listen on; 0 picks a free one", least=0, most=65535)
    model_name: str | None = setting(None, "name clients use; default: the model's own")
    api_keys: tuple[str, ...] = setting(
        (),
        "keys, one of which every call must bring; default: anyone may call",
        pattern=r"[\x21-\x7e]{1,256}",
        form="printable ASCII without spaces",
        secret=True,
    )
    ssl: bool = setting(False, "serve HTTPS, with the files in $SSL_KEYFILE and $SSL_CERTFILE")
    allow_origins: tuple[str, ...] = setting(
        (), "origins of other web pages that may call, or *; default: none", pattern=r"\S+"
    )
    allow_methods: tuple[str, ...] = setting(
        ("*",), "methods they may use, or *", pattern=r"\*|[A-Za-z]+", form="a method or *"
    )
    allow_headers: tuple[str, ...] = setting(
        ("*",), "headers they may send, or *", pattern=r"\*|[\w-]+", form="a header's name or *"
    )
    allow_credentials: bool = setting(False, "whether they may send cookies and credentials")
    allow_terminate_by_client: bool = setting(False, "let GET /terminate end the server")
    enable_abort_handling: bool = setting(False, "let POST /abort_request end answers")
    docs: bool = setting(True, "serve the pages and /openapi.json")
    metrics: bool = setting(True, "serve /metrics")
    chat_template: str | None = setting(
        None,
        "a chat template's name, or its file (.jinja, or LMDeploy's .json); default: the model's",
    )
    meta_instruction: str | None = setting(
        None, "what the model is told first, where a conversation brings no system message"
    )
    tool_call_parser: str = setting(
        "auto",
        "how the model writes calls of tools: auto (by its chat template), none, hermes, llama3, "
        "mistral, mistral-list, internlm or json",
        pattern=r"[\w.-]+",
        form="auto, none or a parser's name",
    )
    reasoning_parser: str = setting(
        "auto",
        "how it writes its reasoning: auto (by its chat template), none, think, magistral, seed "
        "or command",
        pattern=r"[\w.-]+",
        form="auto, none or a parser's name",
    )
    cap: Literal["chat", "completion", "python"] = setting(
        "chat", "what a prompt of /v1/chat/interactive becomes: a chat, or text to go on with"
    )
    proxy_url: str | None = setting(
        None,
        "a distributor (`lmserve serve proxy`) to register with",
        pattern=r"https?://\S+",
        form="an http(s) URL",
    )
    advertise_url: str | None = setting(
        None,
        "the URL under which that distributor reaches this server; default: where it listens",
        pattern=r"https?://\S+",
        form="an http(s) URL",
    )
    max_body_bytes: int = setting(8 * 2**20, "largest request body read", least=1024)
    max_queued_requests: int = setting(1024, "requests waiting or running before 429", least=1)
    max_queued_tokens: int = setting(4 * 2**20, "their prompt tokens before 429", least=1)
    write_timeout_s: float = setting(
        30.0, "a client that reads nothing this long is dropped", above=0
    )
    keep_alive_s: float = setting(
        15.0, "an event stream silent this long says a comment; 0: never", least=0
    )
    drain_timeout_s: float = setting(
        10.0, "at shutdown, running answers get this long to finish", least=0
    )


@dataclass(frozen=True, slots=True)
class AccessSettings:
    key_file: str | None = setting(
        None, "a file of API keys, with names, scopes and limits; read again when it changes"
    )
    admin_keys: tuple[str, ...] = setting(
        (),
        "keys for what only an administrator may do; where some are set, api_keys may not",
        pattern=r"[\x21-\x7e]{1,256}",
        form="printable ASCII without spaces",
        secret=True,
    )
    admin_port: int | None = setting(
        None,
        "serve administration and metrics on a port of their own, and not on the other; 0 picks "
        "a free one",
        least=0,
        most=65535,
    )
    admin_name: str | None = setting(
        None,
        "the address of that port; default: 127.0.0.1",
        pattern=r"\S+",
        form="a name or address",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "names that calls may be for, beside addresses, localhost and names without a dot, or *; "
        "default: any, but where this server has a loopback address and no keys, only those",
        pattern=r"\*|[A-Za-z0-9_.-]+",
        form="a host's name or *",
    )
    isolate_cache: bool = setting(
        True, "prompts of one API key never find the KV of another's, nor tell by their speed"
    )


@dataclass(frozen=True, slots=True)
class LimitSettings:
    max_key_requests: int | None = setting(
        None, "requests of one API key, waiting or running, before 429", least=1
    )
    key_requests_per_minute: int | None = setting(
        None, "requests of one API key in a minute before 429", least=1
    )
    key_tokens_per_minute: int | None = setting(
        None, "tokens of one API key, of prompts and answers, in a minute before 429", least=1
    )
    max_queue_s: float | None = setting(
        None,
        "a request that would wait longer than this for its first step, by what is measured, gets "
        "429; default: it waits",
        above=0,
    )
    max_connections: int = setting(4096, "connections before others are turned away", least=1)
    max_sockets: int = setting(1024, "WebSockets before others get 503", least=1)
    header_timeout_s: float = setting(
        10.0, "the head of a request must have come within this time", above=0
    )
    body_timeout_s: float = setting(
        30.0, "a body of which nothing comes for this long is given up", above=0
    )
    text_timeout_s: float = setting(
        10.0, "chat template, tokens and grammar of one request may take this long", above=0
    )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    model: str | None = setting(
        None, "a directory, a .gguf file or a hub id; default: the embedded SmolLM2-135M-Instruct"
    )
    revision: str | None = setting(
        None, "branch, tag or commit of a hub id; default: its main branch", pattern=r"[\w./-]+"
    )
    generation_config: str = setting(
        "auto",
        "the sampling that applies where a request names none; auto: the model's own, lmdeploy: "
        "none of it, else the directory of another generation_config.json",
        pattern=r".+",
        form="auto, lmdeploy or a directory",
    )
    engine: Literal["child", "thread", "mock"] = setting(
        "child", "where the engine runs: a child process, a thread, or a mock without a model"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "type of weights and activations; auto: the fastest the device has"
    )
    device: str = setting(
        "auto",
        "cpu, cuda, cuda:N; auto: cuda where there is one",
        pattern=r"auto|cpu|cuda(:\d+)?",
        form="auto, cpu, cuda or cuda:N",
    )
    session_len: int | None = setting(
        None,
        "longest context in tokens, prompt and answer together; default: the model's",
        least=2,
    )
    max_batch_size: int | None = setting(
        None,
        "sequences run together in a step; default: 64 on cpu, 256 on cuda",
        least=1,
    )
    max_step_tokens: int | None = setting(
        None,
        "tokens run in a step: decodes first, then prefill chunks, for which the decodes wait; "
        "default: 128 on cpu, 4096 on cuda",
        least=1,
    )
    cache_max_entry_count: float | None = setting(
        None,
        "KV cache as a share (0-1) of the memory free after loading; default on cpu: the lesser "
        "of 512 MiB and a quarter of what is available; on cuda: 0.8",
        above=0,
        most=1,
    )
    num_blocks: int | None = setting(
        None,
        "KV blocks; default: as many as fit the memory given by cache_max_entry_count",
        least=1,
    )
    block_size: int | None = setting(
        None, "tokens in a KV block; default: what suits the attention backend", least=1
    )
    kv_cache_dtype: Literal["auto", "fp8"] = setting(
        "auto", "type of the KV cache; fp8 holds twice the tokens, and rounds them; on cuda"
    )
    kernels: Literal["auto", "amx", "avx512", "avx2", "triton", "twins", "torch"] = setting(
        "auto",
        "what computes: lmserve's own kernels, on cpu by the processor's instructions, on cuda of "
        "triton, or torch; twins: triton's path in plain torch on any device, to check it; auto: "
        "the fastest that runs here",
    )
    attention: Literal[
        "auto", "native", "cpu", "sdpa", "flash_attn", "flash_attn_3", "varlen", "triton", "paged"
    ] = setting(
        "auto",
        "attention backend: native, cpu and sdpa on cpu, the others on cuda; auto: the fastest "
        "that passes its probe",
    )
    quantization: Literal["none", "fp8"] = setting(
        "none", "fp8: weights become 8-bit floats as they are loaded; on cuda"
    )
    load_format: Literal["auto", "dummy"] = setting(
        "auto", "dummy: random weights in place of the model's, to measure speed"
    )
    overlap: Literal["auto", "on", "off"] = setting(
        "auto",
        "begin a step before the tokens of the one before it are read; auto: on cuda",
    )
    graphs: bool = setting(True, "on cuda: replay the kernels of a decode step as one graph")
    deterministic: bool = setting(
        False,
        "answers do not depend on the batch: one product per weight for all row counts; lmserve's "
        "own kernels always work so",
    )
    threads: int | None = setting(
        None, "CPU threads of the engine; default: the cores available", least=1
    )
    prefix_cache: bool = setting(True, "reuse the KV of shared prompt beginnings")
    speculation: Literal["off", "ngram"] = setting(
        "off",
        "propose tokens and check several in one step, where that pays; ngram: those that followed "
        "the same words before, in the prompt or the answer",
    )
    speculation_tokens: int = setting(
        8, "tokens proposed to a sequence in a step, at most", least=1
    )
    fair: bool = setting(
        True, "API keys that want more than their share wait for those that had less"
    )
    profile: str | None = setting(
        None,
        "a file for a trace of every step and request, which ui.perfetto.dev shows; default: none",
    )
    cache_dir: str | None = setting(
        None, "downloaded models and converted tokenizers; default: the user's cache"
    )
    stuck_after_s: float = setting(5.0, "the engine is called stuck when silent this long", above=0)
    kill_after_s: float = setting(
        60.0, "a silent engine is killed and started again after this long", above=0
    )
    restart: bool = setting(True, "start the engine again when it dies")
    restart_wait_s: float = setting(
        10.0, "while it starts again, requests wait this long before 503", least=0
    )
    standby: bool = setting(
        True, "keep a process ready (150 MB) from which a dead engine is started within a second"
    )
    mock_tokens_s: float = setting(
        0.0, "mock: steps per second and stream; 0 is full speed", least=0
    )


@dataclass(frozen=True, slots=True)
class SessionSettings:
    data_dir: str | None = setting(
        None, "where conversations are kept; default: the user's data directory"
    )
    session_ttl_s: float = setting(
        7 * 86400.0, "a conversation without a turn for this long is forgotten", above=0
    )
    max_sessions: int = setting(
        10_000, "conversations kept; the one unused longest makes room", least=1
    )
    max_session_tokens: int = setting(
        64 * 2**20, "their tokens in all; the one unused longest makes room", least=1
    )
    session_busy: Literal["wait", "refuse"] = setting(
        "wait", "a call for a conversation that is being answered waits its turn, or gets 409"
    )


@dataclass(frozen=True, slots=True)
class StreamSettings:
    stream_grace_s: float = setting(
        60.0, "an answer that can be resumed goes on this long without a reader", least=0
    )
    stream_keep_s: float = setting(
        300.0, "the events of an ended stream are kept in memory this long", least=0
    )
    max_stream_bytes: int = setting(
        4 * 2**20, "events kept of one stream; the oldest make room", least=4096
    )
    max_streams_bytes: int = setting(
        256 * 2**20, "events kept of all streams; those ended longest ago make room", least=4096
    )


@dataclass(frozen=True, slots=True)
class WarmSettings:
    pin_s: float = setting(
        600.0, "the KV of a conversation is kept from eviction this long after a turn", least=0
    )
    pin_share: float = setting(
        0.5, "share of the KV cache that conversations may keep so", least=0, most=1
    )
    spill: bool = setting(True, "write the KV of idle conversations to disk, and read it again")
    spill_after_s: float = setting(
        15.0, "a conversation without a turn for this long is idle", least=0
    )
    spill_max_bytes: int = setting(
        8 * 2**30, "KV on disk in all; that unused longest makes room", least=0
    )
    drafts: bool = setting(True, "run what is being typed ahead of its being sent")


@dataclass(frozen=True, slots=True)
class BatchSettings:
    max_file_bytes: int = setting(100 * 2**20, "largest file that is uploaded", least=1024)
    max_files_bytes: int = setting(
        4 * 2**30, "files in all, with the results of batches", least=1024
    )
    batch_concurrency: int = setting(8, "lines of batches that run together", least=1)
    max_batches: int = setting(1000, "batches of one owner that are kept when they ended", least=1)


@dataclass(frozen=True, slots=True)
class LogSettings:
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "least level logged")
    log_format: Literal["text", "json"] = setting(
        "text", "lines for people, or one JSON object a line"
    )
    max_log_len: int = setting(
        0, "characters of each prompt logged, at level debug; 0 is none", least=0
    )
    otlp_traces_endpoint: str | None = setting(
        None,
        "an OpenTelemetry collector's URL for traces of requests (OTLP over HTTP); needs the "
        "extra otel",
        pattern=r"https?://\S+",
        form="an http(s) URL",
    )


@dataclass(frozen=True, slots=True)
class Settings:
    server: ServerSettings = field(default_factory=ServerSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    streams: StreamSettings = field(default_factory=StreamSettings)
    warm: WarmSettings = field(default_factory=WarmSettings)
    batches: BatchSettings = field(default_factory=BatchSettings)
    log: LogSettings = field(default_factory=LogSettings)
